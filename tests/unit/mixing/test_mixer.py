"""The mixer: quotas over real requests, no repeats, retries bounded, resume = no resume."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.schema import RunConfig
from mixing.mixer import Mixer
from mixing.slates.group_ids import parse_group_id
from rollouts.types import GroupRequest

MakeRun = Callable[..., RunConfig]
WEIGHTS = {"a": 2.0, "b": 1.0, "c": 0.5}


def instead(mixer: Mixer, request: GroupRequest) -> GroupRequest:
    """Give a group up; return what is sampled in its place."""
    mixer.casting.give_up(request.group_id)
    (fresh,) = mixer.refill(request.step, fresh=True)
    return fresh


def ids(requests: tuple[GroupRequest, ...]) -> list[str]:
    return [r.group_id for r in requests]


def test_a_step_has_its_groups_by_weight_and_interleaved(make_run: MakeRun) -> None:
    mixer = Mixer(make_run({"a": 40, "b": 40, "c": 40}, weights=WEIGHTS, groups=7))
    for step in range(1, 9):
        requests = mixer.plan_step(step)
        assert Counter(r.task.source for r in requests) == {"a": 4, "b": 2, "c": 1}
        assert [r.task.source for r in requests] != sorted(r.task.source for r in requests)
        assert {r.step for r in requests} == {step}
        assert {r.group_size for r in requests} == {3}


def test_no_task_twice_in_a_step_nor_in_an_epoch(make_run: MakeRun) -> None:
    mixer = Mixer(make_run({"a": 9}, groups=4))
    planned = [mixer.plan_step(step) for step in range(1, 28)]
    for requests in planned:
        assert len({r.task.task_id for r in requests}) == 4
    drawn = [r.group_id for requests in planned for r in requests]
    assert len(set(drawn)) == len(drawn) == 108
    per_item = Counter(parse_group_id(g)[0] for g in drawn)
    assert len(per_item) == 9 and set(per_item.values()) <= {11, 12, 13}


def test_a_source_smaller_than_its_share_repeats_with_unique_ids(make_run: MakeRun) -> None:
    mixer = Mixer(make_run({"a": 3}, groups=8))
    requests = mixer.plan_step(1)
    assert len({r.task.task_id for r in requests}) == 3
    assert len({r.group_id for r in requests}) == 8


def test_held_out_tasks_are_never_trained_on(make_run: MakeRun) -> None:
    mixer = Mixer(make_run({"a": 10, "b": 10}, groups=10))
    trained = {r.task.prompt for step in range(1, 9) for r in mixer.plan_step(step)}
    held_out = {t.prompt for name in "ab" for t in mixer.held_out(name)}
    assert len(held_out) == 4 and len(trained) == 20
    assert not trained & held_out


def test_retries_are_bounded_and_replacements_are_fresh(make_run: MakeRun) -> None:
    cfg = make_run({"a": 12, "b": 12}, groups=4)
    mixer = Mixer(cfg)
    requests = mixer.plan_step(1)
    attempts = [requests[0]]
    while (again := mixer.retry(attempts[-1])) is not None:
        attempts.append(again)
    assert [parse_group_id(r.group_id)[2] for r in attempts] == [0, 1, 2, 3]
    assert {(r.task.task_id, r.step, r.sampling) for r in attempts} == {
        (requests[0].task.task_id, 1, requests[0].sampling)
    }
    fresh = instead(mixer, attempts[-1])
    assert fresh.task.source == requests[0].task.source and fresh.step == 1
    assert fresh.task not in [r.task for r in requests]
    assert parse_group_id(fresh.group_id)[2] == 0
    later = {r.group_id for step in range(2, 5) for r in mixer.plan_step(step)}
    assert fresh.group_id not in later


def test_replacements_in_flight_over_an_epoch_do_not_repeat_a_step(make_run: MakeRun) -> None:
    mixer = Mixer(make_run({"a": 6}, groups=4, max_staleness=1))
    first, second = mixer.plan_step(1), mixer.plan_step(2)
    fresh = instead(mixer, first[0])
    assert fresh.task not in [r.task for r in first]
    fresh = instead(mixer, second[0])
    assert fresh.task not in [r.task for r in second]


def test_steps_are_planned_once_in_rising_order(make_run: MakeRun) -> None:
    mixer = Mixer(make_run({"a": 6}))
    mixer.plan_step(4)
    with pytest.raises(ValueError, match="step 4 is planned already"):
        mixer.plan_step(4)


def test_seeds_give_different_orders_and_the_same_seed_the_same(make_run: MakeRun) -> None:
    one, same, other = (Mixer(make_run({"a": 50}, seed=s)) for s in (1, 1, 2))
    first = ids(one.plan_step(1))
    assert first == ids(same.plan_step(1)) != ids(other.plan_step(1))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    groups=st.integers(1, 9),
    cut=st.integers(0, 8),
    replaced=st.sets(st.integers(1, 8)),
)
def test_resume_is_no_resume(
    make_run: MakeRun, sizes: list[int], groups: int, cut: int, replaced: set[int]
) -> None:
    cfg = make_run(dict(zip("abc", sizes, strict=False)), weights=WEIGHTS, groups=groups)

    def go(mixer: Mixer, steps: range) -> list[GroupRequest]:
        made: list[GroupRequest] = []
        for step in steps:
            requests = mixer.plan_step(step)
            made += requests
            if step in replaced:
                made.append(instead(mixer, requests[0]))
        return made

    whole = Mixer(cfg)
    go(whole, range(1, cut + 1))
    resumed = Mixer(cfg)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert go(resumed, range(cut + 1, 13)) == go(whole, range(cut + 1, 13))


def test_a_restored_pending_request_is_replaced_as_without_the_stop(make_run: MakeRun) -> None:
    cfg = make_run({"a": 5}, groups=3, max_staleness=1)
    whole = Mixer(cfg)
    pending = (whole.plan_step(1), whole.plan_step(2))[1]
    resumed = Mixer(cfg)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    fresh = instead(resumed, pending[0])
    assert fresh == instead(whole, pending[0])
    assert fresh.task not in [r.task for r in pending]


def test_a_checkpoint_of_other_sources_is_refused(make_run: MakeRun) -> None:
    state = Mixer(make_run({"a": 5, "b": 5})).state_dict()
    with pytest.raises(ConfigError, match=r"sources\.b: is in the checkpoint and not"):
        Mixer(make_run({"a": 5})).load_state_dict(state)
    with pytest.raises(ConfigError) as caught:
        Mixer(make_run({"a": 5, "b": 5, "c": 5})).load_state_dict(state)
    assert [p.where for p in caught.value.problems] == ["sources.c"]


@pytest.mark.parametrize("size", [3, 5, 6, 40])
def test_a_source_of_other_items_goes_on_at_its_next_epoch(make_run: MakeRun, size: int) -> None:
    before = Mixer(make_run({"a": 5, "b": 5}, groups=4))
    drawn = {r.group_id for step in range(1, 5) for r in before.plan_step(step)}
    state = json.loads(json.dumps(before.state_dict()))
    cfg = make_run({"a": size, "b": 5}, groups=4)
    rows = [{"prompt": f"new {i}", "answer": str(i)} for i in range(size + 2)]
    Path(cfg.sources[0].data.jsonl[0]).write_text("".join(json.dumps(r) + "\n" for r in rows))
    after = Mixer(cfg)
    after.load_state_dict(state)
    later = [r for step in range(5, 9) for r in after.plan_step(step)]
    assert not drawn & {r.group_id for r in later}
    epochs = {parse_group_id(g)[1] for g in drawn if g.startswith("a/")}
    own = [r for r in later if r.task.source == "a"]
    assert min(parse_group_id(r.group_id)[1] for r in own) == max(epochs) + 1
    assert all(r.task.prompt[0].content.startswith("new") for r in own)
    unchanged = [r.group_id for r in later if r.task.source == "b"]
    goes_on = [r for step in range(5, 9) for r in before.plan_step(step)]
    assert unchanged == [r.group_id for r in goes_on if r.task.source == "b"]
