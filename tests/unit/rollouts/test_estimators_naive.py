"""Every estimator and scope, mixed in one step, against the table of docs/objectives.md written out
rollout by rollout."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from configs.schema import RunConfig
from rollouts.advantages import STD_EPS, resolve_advantage
from rollouts.samples import credit_group, to_training_samples
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
    GroupSummary,
    Rollout,
    RolloutGroup,
    RolloutStatus,
    SampleHandle,
    Sampling,
    Task,
    TrainingSample,
    Turn,
)

PLAIN = ("grpo", "mean_baseline", "rloo", "remax")
OVER_THE_STEP = ("reinforce_pp", "reinforce_pp_baseline")
CHOICES = [
    *((use, scope) for use in PLAIN for scope in (None, "source", "batch")),
    *((use, scope) for use in OVER_THE_STEP for scope in (None, "source")),
    ("gdpo", None),
    ("gdpo", "batch"),
    ("none", None),
]  # fmt: skip
CENTRED = ("reinforce_pp",)
WEIGHTS = {"right": 1.0, "style": 0.5}


def recipe(choices: Sequence[tuple[str, str | None]]) -> RunConfig:
    sources: list[dict[str, Any]] = [
        {
            "name": f"s{i}",
            "data": {"procedural": "reasoning_gym/lcm"},
            "rewards": [{"name": n, "use": "exact", "weight": w} for n, w in WEIGHTS.items()],
            "advantage": {"use": "grpo" if use == "gdpo" else use},
            "advantage_scope": scope,
            "objective": {"combine": "normalize_then_sum"} if use == "gdpo" else {},
        }
        for i, (use, scope) in enumerate(choices)
    ]
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 1,
            "model": {"path": "m"},
            "batch": {"groups_per_step": 1},
            "sources": sources,
        }
    )


def rollout(dice: np.random.Generator, index: int) -> Rollout:
    """One of a few rewards, so that groups are often flat; some are invalid."""
    valid = index == 0 or dice.random() < 0.8
    parts = {"right": float(dice.integers(0, 2)), "style": float(dice.choice([0, 0.3, 1.7]))}
    length = int(dice.integers(1, 6))
    completion = Completion(
        token_ids=np.arange(length, dtype=np.int32),
        logprobs=np.full(length, -1.0, np.float32),
        finish_reason=FinishReason.STOP,
        versions=(),
    )
    prompt = np.arange(2, dtype=np.int32)
    return Rollout(
        index=index,
        turns=(Turn(prompt_ids=prompt, completion=completion, text=""),),
        status=RolloutStatus.COMPLETED if valid else RolloutStatus.INVALID,
        reward=sum(WEIGHTS[n] * v for n, v in parts.items()) if valid else None,
        reward_parts=parts,
    )


def draw(dice: np.random.Generator, source: str, number: int) -> RolloutGroup:
    task = Task(
        task_id=f"{source}/train/{number}", source=source, prompt=(), answer=None, metadata={}
    )
    size = int(dice.integers(1, 6))
    request = GroupRequest(
        group_id=f"{task.task_id}#e0a0",
        task=task,
        group_size=size,
        sampling=Sampling(temperature=1.0, max_tokens=8),
        step=1,
    )
    return RolloutGroup(
        request=request,
        rollouts=tuple(rollout(dice, i) for i in range(size)),
        greedy=rollout(dice, 0),
        generate_s=0.0,
    )  # fmt: skip


def flat(values: np.ndarray) -> bool:
    return float(np.ptp(values)) < 1e-9


def own(use: str, scope: str | None, group: RolloutGroup) -> np.ndarray:
    """What a group's valid rollouts have before the scope: reward less baseline."""
    valid = [r for r in group.rollouts if r.reward is not None]
    rewards = np.array([r.reward for r in valid])
    assert group.greedy is not None and group.greedy.reward is not None
    match use:
        case "none":
            return 0 * rewards
        case "reinforce_pp":
            return rewards
        case "remax":
            return rewards - group.greedy.reward
        case "rloo":
            others = [
                np.delete(rewards, i).mean() if len(valid) > 1 else r for i, r in enumerate(rewards)
            ]
            return rewards - np.array(others)  # fmt: skip
        case "gdpo":
            total = 0 * rewards
            for name, weight in WEIGHTS.items():
                part = np.array([r.reward_parts[name] for r in valid])
                total += 0 if flat(part) else weight * (part - part.mean()) / part.std()
            return total
    centred = rewards - rewards.mean()
    if use == "grpo" and scope is None and not flat(rewards):
        centred = centred / rewards.std()
    return centred


@pytest.mark.parametrize("seed", range(60))
def test_advantages_are_those_of_the_table(seed: int) -> None:
    dice = np.random.default_rng(seed)
    choices = [CHOICES[i] for i in dice.permutation(len(CHOICES))[:4]]
    cfg = recipe(choices)
    groups = [draw(dice, f"s{dice.integers(4)}", n) for n in range(int(dice.integers(4, 12)))]
    samples: dict[tuple[object, int], TrainingSample] = {}
    summaries: list[GroupSummary] = []
    wanted: list[np.ndarray] = []
    pools: dict[tuple[str, bool], list[np.ndarray]] = {}
    scopes = {"gdpo": "source", "reinforce_pp": "batch", "reinforce_pp_baseline": "batch"}
    places: list[tuple[str, bool]] = []
    for number, group in enumerate(groups):
        name = group.request.task.source
        source, (use, scope) = cfg.source(name), choices[int(name[1:])]
        credits = credit_group(group, source, resolve_advantage(estimator_plug(source)))
        handles: list[SampleHandle] = []
        for row, sample in enumerate(to_training_samples(group, source, 0.0, credits)):
            samples[number, row] = sample
            handles.append(
                SampleHandle(
                    ref=number,
                    row=row,
                    num_tokens=len(sample.token_ids),
                    num_loss_tokens=int(sample.loss_mask.sum()),
                    advantage=mean_advantage(sample),
                    advantage_variance=advantage_variance(sample),
                )
            )
        summaries.append(
            GroupSummary(
                group_id=group.request.group_id,
                task_id=group.request.task.task_id,
                source=name,
                step=1,
                rollouts=(),
                samples=tuple(handles),
                group_ref=None,
                oldest_version=0,
                newest_version=0,
                generate_s=0.0,
                grade_s=0.0,
            )
        )
        wanted.append(own(use, scope, group))
        scope = scope or scopes.get(use, "group")
        pool = (f"{scope}/{name}" if scope == "source" else scope, use in CENTRED)
        places.append(pool)
        pools.setdefault(pool, []).append(wanted[-1])
    for number, summary in enumerate(scale_advantages(cfg, summaries)):
        expected, (scope, centred) = wanted[number], places[number]
        if scope != "group":
            whole = np.concatenate(pools[scope, centred])
            expected = expected - (whole.mean() if centred else 0)
            spread = whole.std() if centred else np.sqrt(np.mean(whole**2))
            expected = expected / (spread if spread > 1e-7 else 1)
        for handle, value in zip(summary.samples, expected, strict=True):
            assert isinstance(handle.ref, int)
            found = scaled(
                samples[handle.ref, handle.row], handle.advantage_scale, handle.advantage_shift
            )
            inside = found.advantages[found.loss_mask]
            assert not found.advantages[~found.loss_mask].any()
            np.testing.assert_allclose(
                inside, value, rtol=5e-5, atol=20 * STD_EPS, err_msg=f"{choices}"
            )


def test_nearly_equal_advantages_of_a_baseline_from_outside_make_no_huge_factor() -> None:
    """All rollouts beat the greedy one, one of them by a hair less: less the mean there is next to
    nothing to divide by, but the mean is not taken off."""
    advantages = [1.0] * 63 + [0.999]
    group = GroupSummary(
        group_id="g",
        task_id="t",
        source="s0",
        step=1,
        rollouts=(),
        samples=tuple(
            SampleHandle(ref=0, row=i, num_tokens=3, num_loss_tokens=2, advantage=a)
            for i, a in enumerate(advantages)
        ),
        group_ref=None,
        oldest_version=0,
        newest_version=0,
        generate_s=0.0,
        grade_s=0.0,
    )
    (scaled_group,) = scale_advantages(recipe([("remax", "source")]), [group])
    assert scaled_group.samples[0].advantage_scale == pytest.approx(1.0, rel=1e-3)
