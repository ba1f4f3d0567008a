"""Gates between parts, the scale of a step, and which groups still teach something."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.data import DataConfig
from configs.difficulty import DifficultyConfig
from configs.objective import GateConfig, ObjectiveConfig
from configs.schema import RewardConfig, RunConfig, SourceConfig
from rollouts.advantages import grpo
from rollouts.filters import Verdict, is_zero_variance, judge
from rollouts.objective import gate
from rollouts.samples import credit_group, rollout_stats, to_training_samples
from rollouts.scopes import estimator_plug, mean_advantage, scale_advantages
from rollouts.types import (
    Completion,
    FinishReason,
    GroupRequest,
    GroupSummary,
    Rollout,
    RolloutGroup,
    RolloutStatus,
    SampleHandle,
    Sampling,
    Task,
    Turn,
)
from tests.made_groups import made_group

TURN = Turn(
    prompt_ids=np.array([1], np.int32),
    completion=Completion(
        token_ids=np.array([2, 3], np.int32),
        logprobs=np.zeros(2, np.float32),
        finish_reason=FinishReason.STOP,
        versions=(),
    ),
    text="",
)
CHAIN = (GateConfig(part="format", needs="right"), GateConfig(part="style", needs="format"))


def source(
    combine: str = "normalize_then_sum", *, name: str = "s", gates: tuple[GateConfig, ...] = ()
) -> SourceConfig:
    return SourceConfig(
        name=name,
        data=DataConfig(jsonl="x"),
        rewards=tuple(RewardConfig(name=n, use="exact") for n in ("right", "style")),
        objective=ObjectiveConfig.model_validate({"combine": combine, "gates": gates}),
    )


def group(*parts: tuple[float, float] | None, name: str = "s") -> RolloutGroup:
    """Return a graded group of rollouts with (right, style); None for an invalid one."""
    rollouts = tuple(
        Rollout(
            index=i,
            turns=(TURN,),
            status=RolloutStatus.INVALID if p is None else RolloutStatus.COMPLETED,
            reward=None if p is None else sum(p),
            reward_parts={} if p is None else {"right": p[0], "style": p[1]},
        )
        for i, p in enumerate(parts)
    )
    task = Task(task_id=f"{name}/train/0", source=name, prompt=(), answer=None, metadata={})
    request = GroupRequest(
        group_id=f"{name}/train/0#e0a0",
        task=task,
        group_size=len(parts),
        sampling=Sampling(temperature=1.0, max_tokens=9),
        step=1,
    )
    return RolloutGroup(request=request, rollouts=rollouts, generate_s=0.0)


def run(*sources: SourceConfig) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 1,
            "model": {"path": "x"},
            "sources": sources,
            "batch": {"groups_per_step": 1},
        }
    )


def test_gdpo_normalises_parts_under_every_scope() -> None:
    for scope, plain in (("group", "grpo"), ("source", "mean_baseline")):
        gdpo = source().model_copy(update={"advantage_scope": scope})
        by_weight = source("weighted_sum").model_copy(update={"advantage_scope": scope})
        assert estimator_plug(gdpo).use == "grpo"
        assert estimator_plug(by_weight).use == plain


def summary(graded: RolloutGroup, of: SourceConfig) -> GroupSummary:
    credits = credit_group(graded, of, grpo)
    handle = SampleHandle(ref=None, row=0, num_tokens=3, num_loss_tokens=2)
    samples = to_training_samples(graded, of, 0.0, credits)
    return made_group(
        rollout_stats(graded.rollouts, credits),
        group_id=graded.request.group_id,
        source=of.name,
        samples=[
            replace(handle, row=i, advantage=mean_advantage(s)) for i, s in enumerate(samples)
        ],
        has_signal=credits.advantages.has_signal,
    )


@pytest.mark.parametrize(
    ("parts", "counted", "closed"),
    [
        ((1.0, 1.0, 0.5), (1.0, 1.0, 0.5), ()),
        ((0.9, 1.0, 0.5), (0.9, 0.0, 0.0), ("format", "style")),  # a closed gate shuts the next
        ((1.0, 0.9, 0.5), (1.0, 0.9, 0.0), ("style",)),
    ],
)
def test_gates_are_chains(
    parts: tuple[float, ...], counted: tuple[float, ...], closed: tuple[str, ...]
) -> None:
    names = ("right", "format", "style")
    given_parts = dict(zip(names, parts, strict=True))
    for order in (CHAIN, CHAIN[::-1]):  # the order in which they are written is no matter
        found, shut = gate(given_parts, order)
        assert tuple(found.values()) == counted and shut == closed
    assert given_parts == dict(zip(names, parts, strict=True))


def test_what_a_closed_gate_gives_is_the_recipes() -> None:
    penalty = GateConfig(part="style", needs="right", at_least=0.5, otherwise=-1.0)
    assert gate({"right": 0.4, "style": 0.3}, [penalty])[0] == {"right": 0.4, "style": -1.0}
    assert gate({"right": 0.5, "style": 0.3}, [penalty])[0] == {"right": 0.5, "style": 0.3}


def test_style_counts_only_where_the_answer_is_right() -> None:
    gates = (GateConfig(part="style", needs="right"),)
    graded = group((0.0, 1.0), (0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    credits = credit_group(graded, source(gates=gates), grpo)
    wrong, also_wrong, plain, good = credits.advantages.whole
    assert wrong == also_wrong < plain < good
    assert credits.closed == (("style",), ("style",), (), ())
    stats = rollout_stats(graded.rollouts, credits)
    assert [s.closed_parts for s in stats] == list(credits.closed)
    assert stats[0].reward_parts == {"right": 0.0, "style": 1.0}  # raw values stay
    added = [sum(s.part_advantages.values()) for s in stats]
    np.testing.assert_allclose(added, credits.advantages.whole, 1e-6)


def test_a_group_of_equal_totals_and_different_parts_has_signal_under_gdpo_alone() -> None:
    # right answers are rare here: GDPO pays the one right answer more than it takes for style
    graded = group((1.0, 0.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
    drop = DifficultyConfig(drop_zero_variance=True, max_resamples=3)
    decoupled = summary(group((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)), source())
    assert {r.reward for r in decoupled.rollouts} == {1.0}
    for of, flat in ((source(), True), (source("weighted_sum"), True)):
        assert is_zero_variance(summary(graded, of)) is flat  # mirror images cancel
    weighed = source().model_copy(
        update={
            "rewards": (
                RewardConfig(name="right", use="exact", weight=2.0),
                RewardConfig(name="style", use="exact"),
            )
        }
    )
    told = summary(graded, weighed)
    assert not is_zero_variance(told)
    assert judge(told, drop, last_chance=False) is Verdict.TRAIN
    assert (
        judge(summary(graded, source("weighted_sum")), drop, last_chance=False) is Verdict.RESAMPLE
    )


def test_parts_that_trade_off_unevenly_are_told_apart() -> None:
    # totals are all 1, but `right` takes two values and `style` three
    graded = group((1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.5, 0.5), (1.0, 0.0))
    assert is_zero_variance(summary(graded, source("weighted_sum")))
    assert summary(group(None, None), source()).has_signal is False


parts_st = st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0]))


@given(st.lists(st.lists(parts_st, min_size=2, max_size=6), min_size=1, max_size=5))
def test_gdpo_scales_a_step_to_deviation_one_source_by_source(
    drawn: list[list[tuple[float, float]]],
) -> None:
    ours, other = source(), source("weighted_sum", name="t")
    groups = [summary(group(*parts), ours) for parts in drawn]
    foreign = summary(group((1.0, 0.0), (0.0, 0.0), name="t"), other)
    *scaled, untouched = scale_advantages(run(ours, other), [*groups, foreign])
    assert untouched is foreign
    advantages = np.array([s.advantage for g in scaled for s in g.samples])
    (scale,) = {s.advantage_scale for g in scaled for s in g.samples}
    assert abs(advantages.mean()) < 1e-6  # nothing for the batch's mean to take off
    assert scale == pytest.approx(1 / (advantages.std() + 1e-6) if advantages.any() else 1.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_parts_add_up_to_the_advantage_of_a_weighted_sum(seed: int) -> None:
    random = Random(seed)
    parts = [(random.random(), random.random()) for _ in range(6)]
    found = credit_group(group(*parts), source("weighted_sum"), grpo).advantages
    np.testing.assert_allclose(sum(found.parts.values()), found.whole, atol=1e-6)
