"""Advantages of a group's rollouts from their rewards.

A group is always explicit: its rewards come together, and nothing is reshaped out of a batch.
Rollouts without a reward (invalid) are left out of mean and deviation, and get no advantage.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from configs.errors import ConfigError, Problem
from configs.plugs import bind, resolve
from configs.schema import PlugConfig, SourceConfig

F64: TypeAlias = NDArray[np.float64]
Estimator: TypeAlias = Callable[[F64], F64]

STD_EPSILON = 1e-6
"""Added to the deviation in `grpo`."""
ZERO_VARIANCE = 1e-9
"""A spread of rewards up to this is none: floating-point noise must not become a gradient."""


def grpo(rewards: F64) -> F64:
    """(r - mean) / (std + eps) with the biased deviation (arXiv 2402.03300); [G] -> [G].

    Exactly 0 for a single rollout and for equal rewards.
    """
    if len(rewards) < 2 or np.ptp(rewards) <= ZERO_VARIANCE:
        return np.zeros(len(rewards))
    return (rewards - rewards.mean()) / (rewards.std() + STD_EPSILON)


def mean_baseline(rewards: F64) -> F64:
    """r - mean, without the division that favours easy and hard tasks (arXiv 2503.20783).

    Exactly 0 for a single rollout and for equal rewards.
    """
    if len(rewards) < 2 or np.ptp(rewards) <= ZERO_VARIANCE:
        return np.zeros(len(rewards))
    return rewards - rewards.mean()


BUILT_IN: Mapping[str, Estimator] = {"grpo": grpo, "mean_baseline": mean_baseline}


def resolve_advantage(plug: PlugConfig, *, where: str = "advantage") -> Estimator:
    """Return the estimator named by `plug` with its arguments bound; ConfigError if it is none."""
    found = resolve(plug.use, BUILT_IN, where=f"{where}.use")
    return bind(found, plug.args, parameters=("rewards",), where=f"{where}.args")


def group_advantages(
    rewards: Sequence[float | None], estimator: Estimator
) -> tuple[float | None, ...]:
    """Return each rollout's advantage; None where its reward is None.

    Raises:
        ValueError: the estimator returned another shape, or a value that is not finite.
    """
    valid = [i for i, r in enumerate(rewards) if r is not None]
    found = np.asarray(estimator(np.array([rewards[i] for i in valid], np.float64)), np.float64)
    if found.shape != (len(valid),) or not np.isfinite(found).all():
        raise ValueError(
            f"the advantage estimator must return {len(valid)} finite numbers for "
            f"{len(valid)} rewards; it returned {found!r}"
        )
    advantages: list[float | None] = [None] * len(rewards)
    for i, value in zip(valid, found.tolist(), strict=True):
        advantages[i] = value
    return tuple(advantages)


def validate_advantages(sources: Sequence[SourceConfig]) -> list[Problem]:
    """Return what is wrong with the sources' estimators."""
    problems: list[Problem] = []
    for source in sources:
        try:
            resolve_advantage(source.advantage, where=f"sources.{source.name}.advantage")
        except ConfigError as error:
            problems.extend(error.problems)
    return problems
