"""Quotas of very unequal weights, and a mixer over three procedural sources."""

import json
from collections.abc import Callable
from fractions import Fraction
from math import ceil, floor

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from configs.data import DataConfig
from configs.schema import BatchConfig, ModelConfig, RewardConfig, RunConfig, SourceConfig
from mixing.mixer import Mixer
from mixing.quota.rounding import Quota
from mixing.quota.shares import Demand, exact, groups_due
from rollouts.types import GroupRequest

unequal = st.lists(
    st.tuples(st.floats(1, 10, allow_nan=False), st.integers(-9, 9)), min_size=1, max_size=8
).map(lambda parts: {f"s{i}": m * 10.0**e for i, (m, e) in enumerate(parts)})


def instead(mixer: Mixer, request: GroupRequest) -> GroupRequest:
    """Give a group up; return what is sampled in its place."""
    mixer.casting.give_up(request.group_id)
    (fresh,) = mixer.refill(request.step, fresh=True)
    return fresh


def targets(weights: dict[str, float], groups: int) -> dict[str, Fraction]:
    due = groups_due({n: Demand(weight=exact(w)) for n, w in weights.items()}, groups)
    assert due is not None
    return due


@settings(max_examples=30, deadline=None)
@given(unequal, st.integers(1, 300))
def test_any_weights_give_whole_steps_near_their_share(
    weights: dict[str, float], groups: int
) -> None:
    quota, due = Quota(list(weights)), targets(weights, groups)
    got = dict.fromkeys(weights, 0)
    for step in range(1, 60):
        counts = quota.next_counts(due)
        assert sum(counts.values()) == groups
        for name, target in due.items():
            assert floor(target) <= counts[name] <= ceil(target)
            got[name] += counts[name]
            assert abs(got[name] - step * target) < len(weights)


def test_a_million_to_one_gives_exactly_one_in_a_million() -> None:
    quota, due = Quota(["big", "rare"]), targets({"big": 999_999.0, "rare": 1.0}, 100)
    rare = [quota.next_counts(due)["rare"] for _ in range(10_000)]
    assert sum(rare) == 1


MIX = {"lcm": 2.0, "spell_backward": 1.0, "count_bits": 0.5}
SMALL: dict[str, JsonValue] = {"min_value": 1, "max_value": 12}
"""So few questions that held-out items would be met in training, were they not passed over."""


def recipe(seed: int) -> RunConfig:
    """Return a mix of three reasoning-gym sources, with small epochs."""
    sources = tuple(
        SourceConfig(
            name=name,
            data=DataConfig(
                procedural=f"reasoning_gym/{name}",
                size=7,
                held_out=6,
                args=SMALL if name == "lcm" else {},
            ),
            rewards=(RewardConfig(name="r", use="reasoning_gym"),),
            weight=weight,
        )
        for name, weight in MIX.items()
    )
    return RunConfig(
        name="t",
        seed=seed,
        num_steps=20,
        model=ModelConfig(path="m"),
        sources=sources,
        batch=BatchConfig(groups_per_step=9, max_staleness=1),
    )


def go(mixer: Mixer, first: int, last: int) -> list[GroupRequest]:
    """Plan steps, with failures on the way: a retry and a replacement in every third."""
    made: list[GroupRequest] = []
    for step in range(first, last):
        requests = mixer.plan_step(step)
        made += requests
        if step % 3 == 0:
            again = mixer.retry(requests[0])
            assert again is not None and again.task is requests[0].task
            fresh = instead(mixer, requests[-1])
            items = [r.task.task_id for r in requests]
            assert fresh.task.task_id not in items
            made += [again, fresh]
    return made


def test_three_procedural_sources_resume_at_any_step_as_if_never_stopped() -> None:
    cfg = recipe(seed=3)
    whole = go(Mixer(cfg), 1, 15)
    for cut in (2, 4, 9):
        stopped, resumed = Mixer(cfg), Mixer(cfg)
        before = go(stopped, 1, cut)
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert before + go(resumed, cut, 15) == whole


def test_no_held_out_question_is_trained_on_and_seeds_differ() -> None:
    mixer = Mixer(recipe(seed=3))
    planned = go(mixer, 1, 15)
    trained = {r.task.prompt[-1].content for r in planned}
    held_out = {t.prompt[-1].content for name in MIX for t in mixer.held_out(name)}
    assert len(held_out) == 18 and not trained & held_out
    assert len({r.group_id for r in planned}) == len(planned)
    other = go(Mixer(recipe(seed=4)), 1, 15)
    assert [r.group_id for r in other] != [r.group_id for r in planned]
    assert {t.task_id for t in mixer.held_out("lcm")} == {
        t.task_id for t in Mixer(recipe(seed=4)).held_out("lcm")
    }


def test_a_checkpoint_remembers_the_items_of_the_steps_in_flight(
    make_run: Callable[..., RunConfig],
) -> None:
    """Pending groups fail after a resume: their replacements repeat nothing of their step."""
    for seed in range(12):
        cfg = make_run({"a": 5}, groups=3, max_staleness=1, seed=seed)
        whole, resumed = Mixer(cfg), Mixer(cfg)
        flying = [whole.plan_step(step) for step in (1, 2, 3)][1:]
        resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
        for requests in flying:
            items = {r.task.task_id for r in requests}
            for request in requests[:2]:  # 5 items: three are planned, two are left
                fresh = instead(resumed, request)
                assert fresh == instead(whole, request)
                assert fresh.task.task_id not in items
                items.add(fresh.task.task_id)
        assert resumed.plan_step(4) == whole.plan_step(4)
