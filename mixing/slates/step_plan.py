"""What was planned for a step that is not trained yet."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypedDict

from mixing.quota.allocator import Allocation
from mixing.quota.rounding import interleave


class StepPlanState(TypedDict):
    """A step's plan as JSON."""

    places: list[str]
    shares: dict[str, float]
    due: dict[str, str]
    group_sizes: dict[str, int]
    repeats: bool
    drawn: list[str]
    used: dict[str, list[int]]


@dataclass(slots=True, kw_only=True)
class StepPlan:
    """One step: who has each place, and whose items were drawn."""

    places: list[str]
    """Source of each place, interleaved."""
    shares: dict[str, float]
    """Target share of each source, in `mix.unit`."""
    due: dict[str, Fraction]
    """Groups that each live source was due."""
    group_sizes: dict[str, int]
    repeats: bool
    """Whether all sources together have too few items for it."""
    drawn: set[str] = field(default_factory=set[str])
    """Sources whose items were drawn."""
    used: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    """Items by source, so that none is in the step twice."""

    @classmethod
    def of(cls, allocation: Allocation, group_sizes: Mapping[str, int]) -> "StepPlan":
        """Return the plan of a step that was just allocated."""
        return cls(
            places=list(interleave(allocation.counts)),
            shares=dict(allocation.shares),
            due=dict(allocation.due),
            group_sizes=dict(group_sizes),
            repeats=allocation.repeats,
        )

    def undrawn(self) -> Counter[str]:
        """Return how many places of each source have no item yet."""
        return Counter(name for name in self.places if name not in self.drawn)

    def state_dict(self) -> StepPlanState:
        """Return it as JSON."""
        return {
            "places": list(self.places),
            "shares": dict(self.shares),
            "due": {name: str(groups) for name, groups in self.due.items()},
            "group_sizes": dict(self.group_sizes),
            "repeats": self.repeats,
            "drawn": sorted(self.drawn),
            "used": {name: sorted(items) for name, items in self.used.items()},
        }

    @classmethod
    def load(cls, state: StepPlanState, names: Iterable[str]) -> "StepPlan":
        """Return what `state_dict` was made of.

        Args:
            names: sources whose items are still the same.
        """
        same = set(names)
        return cls(
            places=list(state["places"]),
            shares=dict(state["shares"]),
            due={name: Fraction(groups) for name, groups in state["due"].items()},
            group_sizes=dict(state["group_sizes"]),
            repeats=state["repeats"],
            drawn=set(state["drawn"]),
            used={name: set(items) for name, items in state["used"].items() if name in same},
        )
