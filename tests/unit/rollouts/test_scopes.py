"""Advantages over a step: worked by hand, and the same however the step is cut."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from configs.plug import PlugConfig
from configs.schema import RunConfig
from rollouts.advantages import STD_EPS, grpo
from rollouts.packing import assemble, plan_minibatches
from rollouts.scopes import (
    advantage_variance,
    estimator_plug,
    mean_advantage,
    scale_advantages,
    scaled,
)
from rollouts.types import (
    Completion,
    FinishReason,
    GroupRequest,
    Rollout,
    RolloutGroup,
    RolloutStatus,
    SampleHandle,
    Sampling,
    Task,
    TrainingSample,
    Turn,
)
from tests.unit.rollouts.steps import GradedStep


def recipe(scopes: Sequence[str], estimator: str = "grpo") -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 1,
            "model": {"path": "m"},
            "batch": {"groups_per_step": 1},
            "sources": [
                {
                    "name": f"s{i}",
                    "data": {"procedural": "reasoning_gym/lcm"},
                    "rewards": [{"name": "r", "use": "exact"}],
                    "advantage": {"use": estimator},
                    "advantage_scope": scope,
                }
                for i, scope in enumerate(scopes)
            ],
        }
    )


class Step(GradedStep):
    """Made of rewards alone."""

    def add(self, source: int, rewards: Sequence[float | None], lengths: Sequence[int] = ()):
        lengths = lengths or [2] * len(rewards)
        name, number = self.cfg.sources[source].name, len(self.groups)
        self.add_group(_group(name, number, rewards, lengths))

    def advantages(self) -> list[list[float]]:
        """Return the advantages that the trainer would see of each group, one a sample."""
        return [[_only(sample) for sample in samples] for samples in self.trained()]


def _only(sample: TrainingSample) -> float:
    assert not sample.advantages[~sample.loss_mask].any()
    (value,) = set(sample.advantages[sample.loss_mask].tolist())
    return value


def _group(
    source: str, number: int, rewards: Sequence[float | None], lengths: Sequence[int]
) -> RolloutGroup:
    request = GroupRequest(
        group_id=f"{source}/train/{number}#e0a0",
        task=Task(
            task_id=f"{source}/train/{number}", source=source, prompt=(), answer=None, metadata={}
        ),
        group_size=len(rewards),
        sampling=Sampling(temperature=1.0, max_tokens=64),
        step=1,
    )
    rollouts = tuple(
        Rollout(
            index=i,
            turns=(_turn(length),),
            status=RolloutStatus.INVALID if reward is None else RolloutStatus.COMPLETED,
            reward=reward,
            reward_parts={} if reward is None else {"r": reward},
        )
        for i, (reward, length) in enumerate(zip(rewards, lengths, strict=True))
    )
    return RolloutGroup(request=request, rollouts=rollouts, generate_s=0.0)


def _turn(length: int) -> Turn:
    return Turn(
        prompt_ids=np.arange(3, dtype=np.int32),
        completion=Completion(
            token_ids=np.arange(length, dtype=np.int32),
            logprobs=np.zeros(length, np.float32),
            finish_reason=FinishReason.STOP,
            versions=(),
        ),
        text="",
    )


def test_source_scope_by_hand() -> None:
    """Rewards less their group's mean, over the deviation of all of these in the source."""
    step = Step(recipe(["source", "source"]))
    step.add(0, [1.0, 0.0])  # 0.5, -0.5
    step.add(0, [3.0, 1.0])  # 1, -1
    step.add(1, [10.0, 0.0, 5.0])  # 5, -5, 0
    std0 = ((0.25 + 0.25 + 1 + 1) / 4) ** 0.5 + STD_EPS
    std1 = (50 / 3) ** 0.5 + STD_EPS
    expected = [[0.5 / std0, -0.5 / std0], [1 / std0, -1 / std0], [5 / std1, -5 / std1, 0.0]]
    for found, by_hand in zip(step.advantages(), expected, strict=True):
        np.testing.assert_allclose(found, by_hand, rtol=1e-6)


def test_batch_scope_is_over_all_who_have_it_and_no_one_else() -> None:
    step = Step(recipe(["batch", "batch", "group", "source"]))
    step.add(0, [1.0, 0.0])  # 0.5, -0.5
    step.add(1, [4.0, 0.0])  # 2, -2
    step.add(2, [100.0, 0.0])
    step.add(3, [7.0, 0.0])
    std = ((0.25 * 2 + 4 * 2) / 4) ** 0.5 + STD_EPS
    first, second, grouped, alone = step.advantages()
    np.testing.assert_allclose(first, [0.5 / std, -0.5 / std], rtol=1e-6)
    np.testing.assert_allclose(second, [2 / std, -2 / std], rtol=1e-6)
    np.testing.assert_allclose(grouped, grpo(np.array([100.0, 0.0])), rtol=1e-6)
    np.testing.assert_allclose(alone, [1.0, -1.0], rtol=1e-5)


def test_group_scope_is_left_to_the_estimator_to_the_bit() -> None:
    step = Step(recipe(["group"]))
    step.add(0, [1.0, 0.0, 0.25])
    step.add(0, [3.0, 1.0])
    planned = scale_advantages(step.cfg, step.groups)
    assert all(after is before for after, before in zip(planned, step.groups, strict=True))
    assert scaled(step.samples[0, 0], 1.0) is step.samples[0, 0]


def test_invalid_rollouts_take_no_part() -> None:
    with_invalid, without = (Step(recipe(["source"])) for _ in range(2))
    with_invalid.add(0, [None, 1.0, 0.0, None])
    with_invalid.add(0, [2.0, None, 0.0])
    without.add(0, [1.0, 0.0])
    without.add(0, [2.0, 0.0])
    assert with_invalid.advantages() == without.advantages()


def test_groups_without_contrast_stay_exactly_zero_and_count_in_the_spread() -> None:
    step = Step(recipe(["source"]))
    step.add(0, [0.1 + 0.2, 0.3, 0.3])  # equal up to rounding
    step.add(0, [1.0])
    step.add(0, [1.0, 0.0])
    same, lone, pair = step.advantages()
    assert same == [0.0] * 3 and lone == [0.0]
    std = (2 * 0.25 / 6) ** 0.5 + STD_EPS
    np.testing.assert_allclose(pair, [0.5 / std, -0.5 / std], rtol=1e-6)
    flat = Step(recipe(["source"]))
    flat.add(0, [0.5, 0.5])
    assert flat.advantages() == [[0.0, 0.0]]


def test_an_estimator_of_ones_own_is_divided_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import rollouts.advantages as advantages

    plugs = {**advantages.BUILT_IN, "raw": lambda rewards: rewards}
    monkeypatch.setattr(advantages, "BUILT_IN", plugs)
    step = Step(recipe(["batch", "batch"], estimator="raw"))
    step.add(0, [1.0, 0.0])
    step.add(1, [0.0, 3.0])
    std = (10 / 4) ** 0.5 + STD_EPS  # about 0, as no mean is subtracted
    np.testing.assert_allclose(step.advantages(), [[1 / std, 0], [0, 3 / std]], rtol=1e-6)


def test_where_only_tokens_differ_the_spread_is_that_of_tokens() -> None:
    """Sample means that are nearly alike made a factor of almost a million."""
    cfg = recipe(["source"], "mean_baseline")
    for seed in range(20):
        dice = np.random.default_rng(seed)
        step = Step(cfg)
        step.add(0, [0.0, 1.0, 1.0], [4, 6, 2])
        (group,) = step.groups
        handles: list[SampleHandle] = []
        for handle in group.samples:
            sample = step.samples[0, handle.row]
            tokens = dice.normal(size=handle.num_loss_tokens)
            sample.advantages[sample.loss_mask] = tokens - tokens.mean()
            mean, variance = mean_advantage(sample), advantage_variance(sample)
            handles.append(replace(handle, advantage=mean, advantage_variance=variance))
        step.groups = [replace(group, samples=tuple(handles))]
        found = [scaled(step.samples[0, h.row], h.advantage_scale) for h in step.planned()]
        squares = [np.mean(s.advantages[s.loss_mask].astype(np.float64) ** 2) for s in found]
        assert np.mean(squares) == pytest.approx(1, abs=1e-4)


def test_grpo_keeps_its_arguments_and_others_their_name() -> None:
    grouped, over_source = recipe(["group", "source"]).sources
    assert estimator_plug(grouped).use == "grpo"
    assert estimator_plug(over_source).use == "mean_baseline"
    mine = over_source.model_copy(update={"advantage": PlugConfig(use="m:f", args={"a": 1})})
    assert estimator_plug(mine) == PlugConfig(use="m:f", args={"a": 1})


@pytest.mark.parametrize("seed", range(30))
def test_ranks_packing_and_minibatches_change_no_advantage(seed: int) -> None:
    """Every token's advantage, wherever its sample went, is r - mean over the scope's deviation."""
    rng = random.Random(seed)
    scopes = [rng.choice(["group", "source", "batch"]) for _ in range(3)]
    step, centred = Step(recipe(scopes)), {}
    for number in range(rng.randint(3, 9)):
        source, size = rng.randrange(3), rng.randint(1, 5)
        rewards = [rng.choice([None, 0.0, 0.5, 1.0, 4.0]) for _ in range(size)]
        if all(r is None for r in rewards):
            rewards[0] = 1.0
        step.add(source, rewards, [rng.randint(1, 9) for _ in rewards])
        known = np.array([r for r in rewards if r is not None])
        centred[number] = (scopes[source], source, known - known.mean())
    want: dict[tuple[object, int], float] = {}
    for number, (scope, source, values) in centred.items():
        pool = [
            v
            for s, other, v in centred.values()
            if s == scope and (scope == "batch" or other == source)
        ]
        spread = values if scope == "group" else np.concatenate(pool)
        std = np.std(spread)
        for row, value in enumerate(values):
            want[number, row] = value / (std + STD_EPS) if std > 0 else 0.0
    for dp, minibatches, max_tokens in ((1, 1, 1000), (2, 1, 20), (3, 2, 15), (4, 3, 40)):
        plans = plan_minibatches(
            step.planned(),
            dp=dp,
            num_minibatches=minibatches,
            max_tokens=max_tokens,
        )
        seen: dict[tuple[object, int], float] = {}
        for plan in (p for m in plans for rank in m.grid for p in rank):
            batch = assemble(
                [scaled(step.samples[h.ref, h.row], h.advantage_scale) for h in plan.samples], None
            )
            for handle, start, end in zip(
                plan.samples, batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True
            ):
                inside = batch.advantages[start:end][batch.loss_mask[start:end]]
                assert len(set(inside.tolist())) == 1
                seen[handle.ref, handle.row] = float(inside[0])
        assert seen.keys() == want.keys()
        for place, value in seen.items():
            assert value == pytest.approx(want[place], rel=1e-5, abs=1e-7)
