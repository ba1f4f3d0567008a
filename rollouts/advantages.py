"""Advantages of a group from its rewards. Estimators are functions of rewards [G] -> [G]."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import ConfigError, Problem
from configs.plugs import bind, resolve
from configs.schema import PlugConfig, SourceConfig
from rollouts.types import F32

F64 = NDArray[np.float64]
Estimator = Callable[[F64], NDArray[Any]]

STD_EPS = 1e-6
"""Added to the standard deviation in `grpo`."""
SAME = 1e-9
"""Rewards whose spread is at most this, relative to the largest (or to 1), count as equal."""


def grpo(rewards: F64) -> F64:
    """Return (r - mean) / (std + STD_EPS), std over all G, not G - 1 (arXiv:2402.03300).

    A group of one, or of equal rewards, gives exactly 0.
    """
    if all_same(rewards):
        return np.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + STD_EPS)


def mean_baseline(rewards: F64) -> F64:
    """Return r - mean: no division by the spread (Dr. GRPO, arXiv:2503.20783).

    A group of one, or of equal rewards, gives exactly 0.
    """
    if all_same(rewards):
        return np.zeros_like(rewards)
    return rewards - rewards.mean()


def all_same(rewards: F64) -> bool:
    """Whether a group's rewards, up to rounding, tell nothing apart; so for a group of one."""
    return len(rewards) < 2 or bool(np.ptp(rewards) <= SAME * max(1.0, np.abs(rewards).max()))


BUILT_IN: Mapping[str, Estimator] = {"grpo": grpo, "mean_baseline": mean_baseline}


def resolve_advantage(plug: PlugConfig, *, where: str = "") -> Estimator:
    """Return the estimator with its arguments bound; ConfigError if it is not one."""
    found = resolve(plug.use, BUILT_IN, where=where)
    return bind(found, plug.args, parameters=("rewards",), use=plug.use, where=where)


def validate_advantages(sources: Sequence[SourceConfig]) -> list[Problem]:
    """Return every problem with the sources' advantage estimators."""
    problems: list[Problem] = []
    for source in sources:
        try:
            resolve_advantage(source.advantage, where=f"sources.{source.name}.advantage")
        except ConfigError as error:
            problems.extend(error.problems)
    return problems


def group_advantages(rewards: Sequence[float | None], estimator: Estimator) -> F32:
    """Return the advantage of each rollout [G].

    Args:
        rewards: None where the rollout is invalid: it takes no part in the estimate, and its place
            holds 0.

    Raises:
        ValueError: the estimator returned another shape, or a value that is not finite.
    """
    advantages = np.zeros(len(rewards), np.float32)
    valid = np.array([reward is not None for reward in rewards], bool)
    known = np.array([reward for reward in rewards if reward is not None], np.float64)
    if len(known) == 0:
        return advantages
    estimate = np.asarray(estimator(known.copy())).astype(np.float32)
    if estimate.shape != known.shape or not np.isfinite(estimate).all():
        raise ValueError(
            f"the advantage estimator must return {len(known)} finite numbers for the rewards "
            f"{known.tolist()}, returned {estimate.tolist()}"
        )
    advantages[valid] = estimate
    return advantages
