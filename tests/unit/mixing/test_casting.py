"""Late groups: what a later step makes of those that were moved to it."""

from dataclasses import replace

from mixing.mixer import Mixer
from mixing.quota.allocator import MixEvent
from rollouts.types import GroupSummary, SampleHandle


def good(play, request) -> GroupSummary:
    handle = SampleHandle(ref=None, row=0, num_tokens=2, num_loss_tokens=1)
    return replace(play(request, 0.5), samples=(handle,))


def test_a_late_group_that_fails_in_a_step_without_its_source_is_replaced_by_another(
    make_run, play
) -> None:
    cfg = make_run(
        {"a": 5, "b": 20}, groups=2, limits={"a": {"max_items": 1}}, mix={"max_wait_s": 5.0}
    )
    mixer = Mixer(cfg)
    a, b = sorted(mixer.order(0), key=lambda r: r.task.source)
    mixer.casting.graded(good(play, b))
    assert mixer.casting.defer(1) == {a.group_id: 2}
    mixer.casting.close(1)
    own = mixer.order(1)
    assert [r.task.source for r in own] == ["b", "b"]
    mixer.casting.give_up(a.group_id)
    (instead,) = mixer.order(1)
    assert instead.task.source == "b"
    for request in (*own, instead):
        mixer.casting.graded(good(play, request))
    assert mixer.casting.lineup(2) == tuple(r.group_id for r in (*own, instead))
    events = [e for e in mixer.take_events() if isinstance(e, MixEvent)]
    assert "substituted" in {e.kind for e in events}


def test_an_item_that_was_moved_to_a_step_is_not_drawn_for_it_again(make_run, play) -> None:
    for seed in range(20):
        cfg = make_run({"a": 3}, groups=2, seed=seed, mix={"max_wait_s": 5.0})
        mixer = Mixer(cfg)
        first, second = mixer.order(0)
        mixer.casting.graded(good(play, first))
        assert mixer.casting.defer(1) == {second.group_id: 2}
        mixer.casting.close(1)
        own = mixer.order(1)
        assert second.task.task_id not in {r.task.task_id for r in own}
