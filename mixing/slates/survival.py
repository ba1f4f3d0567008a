"""How many of a source's groups are worth training on, and how many to order for that.

Measured on steps that were trained, in dispatch order up to the group that filled the last place:
what it says is a function of the recipe, the data and the policy, not of who finished first.
"""

from collections.abc import Iterable, Mapping
from math import ceil

_MEMORY = 0.9
"""Weight that a step keeps at each later one."""
_EPS = 1e-9

SurvivalState = dict[str, list[float]]


class Survival:
    """The survival of every source, 1 until something else was seen.

    Args:
        most: largest factor by which more are ordered than needed; 1 orders as many.
    """

    def __init__(self, names: Iterable[str], most: float):
        self._most = most
        self._seen = dict.fromkeys(names, (0.0, 0.0))
        """Groups that survived and groups decided, the past fading."""

    def rate(self, name: str) -> float:
        """Return the share of a source's groups that survive; one imagined survivor is counted
        among them, so that the first few do not say too much."""
        good, decided = self._seen[name]
        return (good + 1) / (decided + 1)

    def candidates(self, name: str, needed: int) -> int:
        """Return how many groups to order at once for so many places."""
        return min(ceil(needed / self.rate(name) - _EPS), ceil(needed * self._most - _EPS))

    def observe(self, name: str, good: int, decided: int) -> None:
        """Take in what a trained step decided."""
        if decided:
            before = self._seen[name]
            self._seen[name] = (_MEMORY * before[0] + good, _MEMORY * before[1] + decided)

    def state_dict(self) -> SurvivalState:
        """Return what was seen."""
        return {name: list(seen) for name, seen in self._seen.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Take up what `state_dict` returned."""
        self._seen = {name: (state[name][0], state[name][1]) for name in self._seen}
