"""Every estimator and scope, mixed in one step, against the table of docs/objectives.md written out
rollout by rollout."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from configs.schema import RunConfig
from rollouts.advantages import STD_EPS
from rollouts.scopes import scale_advantages
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
    Turn,
)
from tests.made_groups import made_group
from tests.unit.rollouts.steps import GradedStep

PLAIN = ("grpo", "mean_baseline", "rloo", "remax")
OVER_THE_STEP = ("reinforce_pp", "reinforce_pp_baseline")
CHOICES = [
    *((use, scope) for use in PLAIN for scope in (None, "source", "batch")),
    *((use, scope) for use in OVER_THE_STEP for scope in (None, "source")),
    ("gdpo", None),
    ("gdpo", "batch"),
    ("none", None),
]
CENTRED = ("reinforce_pp",)
SCOPES = {"gdpo": "source", "reinforce_pp": "batch", "reinforce_pp_baseline": "batch"}
"""Of those that are not normalised by the group unless told."""
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
    )


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
            return rewards - np.array(others)
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


def expected(
    groups: Sequence[RolloutGroup], choices: Sequence[tuple[str, str | None]]
) -> list[np.ndarray]:
    """What each group's valid rollouts are trained with."""
    asked = [choices[int(g.request.task.source[1:])] for g in groups]
    before = [own(use, scope, g) for g, (use, scope) in zip(groups, asked, strict=True)]
    pools = [
        (scope or SCOPES.get(use, "group"), use in CENTRED, g.request.task.source)
        for g, (use, scope) in zip(groups, asked, strict=True)
    ]
    found: list[np.ndarray] = []
    for values, (scope, centred, source) in zip(before, pools, strict=True):
        if scope == "group":
            found.append(values)
            continue
        whole = np.concatenate(
            [
                b
                for b, (other, alike, name) in zip(before, pools, strict=True)
                if other == scope and alike == centred and (scope == "batch" or name == source)
            ]
        )
        spread = whole.std() if centred else np.sqrt(np.mean(whole**2))
        centre = whole.mean() if centred else 0.0
        found.append((values - centre) / (spread if spread > 1e-7 else 1))
    return found


@pytest.mark.parametrize("seed", range(60))
def test_advantages_are_those_of_the_table(seed: int) -> None:
    dice = np.random.default_rng(seed)
    choices = [CHOICES[i] for i in dice.permutation(len(CHOICES))[:4]]
    step = GradedStep(recipe(choices))
    groups = [draw(dice, f"s{dice.integers(4)}", n) for n in range(int(dice.integers(4, 12)))]
    for group in groups:
        step.add_group(group)
    for found, wanted in zip(step.trained(), expected(groups, choices), strict=True):
        for sample, value in zip(found, wanted, strict=True):
            inside = sample.advantages[sample.loss_mask]
            assert not sample.advantages[~sample.loss_mask].any()
            np.testing.assert_allclose(
                inside, value, rtol=5e-5, atol=20 * STD_EPS, err_msg=f"{choices}"
            )


def test_nearly_equal_advantages_of_a_baseline_from_outside_make_no_huge_factor() -> None:
    """All rollouts beat the greedy one, one of them by a hair less: less the mean there is next to
    nothing to divide by, but the mean is not taken off."""
    advantages = [1.0] * 63 + [0.999]
    samples = (
        SampleHandle(ref=0, row=i, num_tokens=3, num_loss_tokens=2, advantage=a)
        for i, a in enumerate(advantages)
    )
    group = made_group(source="s0", samples=samples)
    (scaled_group,) = scale_advantages(recipe([("remax", "source")]), [group])
    assert scaled_group.samples[0].advantage_scale == pytest.approx(1.0, rel=1e-3)
