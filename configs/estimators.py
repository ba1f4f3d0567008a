"""What must be known of the built-in advantage estimators before anything is loaded; the estimators
themselves are in `rollouts.advantages`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from configs.base import Config, Fraction, Share

Scope: TypeAlias = Literal["group", "source", "batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatorTraits:
    """How an estimator's advantages come about."""

    scope: Scope = "group"
    """Scope where the recipe names none."""
    scopes: tuple[Scope, ...] = ("group", "source", "batch")
    """Scopes that make sense."""
    centred: bool = False
    """Whether the scope's mean is subtracted too, as no group's is."""
    values: bool = False
    """Whether it needs a critic."""
    greedy: bool = False
    """Whether it needs a greedy rollout of each task."""
    learns_alone: bool = False
    """Whether a group of one teaches anything."""


_OVER_THE_STEP: tuple[Scope, ...] = ("source", "batch")
TRAITS: Mapping[str, EstimatorTraits] = {
    "gae": EstimatorTraits(
        scope="source", scopes=_OVER_THE_STEP, centred=True, values=True, learns_alone=True
    ),
    "reinforce_pp": EstimatorTraits(
        scope="batch", scopes=_OVER_THE_STEP, centred=True, learns_alone=True
    ),
    "reinforce_pp_baseline": EstimatorTraits(scope="batch", scopes=_OVER_THE_STEP),
    "remax": EstimatorTraits(greedy=True, learns_alone=True),
    "none": EstimatorTraits(scopes=("group",)),
}
"""Of the estimators that differ from the plain ones."""
PLAIN = EstimatorTraits()


def traits(use: str) -> EstimatorTraits:
    """Return the traits of an estimator, built in or of one's own."""
    return TRAITS.get(use, PLAIN)


class GaeConfig(Config):
    """Arguments of the estimator `gae`."""

    gamma: Share = 1.0
    """Discount of the return, per token."""
    lam: Fraction = 0.95
    """Weight of later temporal differences: 0 trusts the values alone, 1 the rewards alone."""
