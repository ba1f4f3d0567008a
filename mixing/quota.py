"""How many groups of each source a step has: largest remainder, with the remainder carried."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor


class Quota:
    """Splits P groups a step over sources by weight.

    A source's target of a step is P * weight / sum of weights. It gets the target's whole part,
    and a left-over group goes to whom the past owes most (its credit). So each step's count lies
    within 1 of the target, and counts over n steps stay a bounded distance from n targets.
    All arithmetic is exact.
    """

    def __init__(self, weights: Mapping[str, float], groups_per_step: int):
        exact = {name: Fraction(repr(weight)) for name, weight in weights.items()}
        total = sum(exact.values())
        self._targets = {n: groups_per_step * w / total for n, w in exact.items()}
        self._left_over = groups_per_step - sum(floor(t) for t in self._targets.values())
        self._credit = dict.fromkeys(self._targets, Fraction(0))

    @property
    def targets(self) -> Mapping[str, Fraction]:
        """Groups per step that each source is due, as exact fractions."""
        return self._targets

    def next_counts(self) -> dict[str, int]:
        """Return the groups of each source in the next step; their sum is P."""
        counts = {name: floor(target) for name, target in self._targets.items()}
        for name, target in self._targets.items():
            self._credit[name] += target - counts[name]
        split = [name for name, target in self._targets.items() if target.denominator > 1]
        split.sort(key=lambda name: -self._credit[name])  # stable: ties go by recipe order
        for name in split[: self._left_over]:
            counts[name] += 1
            self._credit[name] -= 1
        return counts

    def state_dict(self) -> dict[str, str]:
        """Return the carried credit of each source, as exact fractions."""
        return {name: str(credit) for name, credit in self._credit.items()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take up the credit that `state_dict` returned; sources must be the same."""
        self._credit = {name: Fraction(state[name]) for name in self._credit}


def interleave(counts: Mapping[str, int]) -> Sequence[str]:
    """Return each name as often as its count says, spread evenly and always in the same order."""
    places = [
        (Fraction(2 * k + 1, 2 * count), order, name)
        for order, (name, count) in enumerate(counts.items())
        for k in range(count)
    ]
    return [name for _, _, name in sorted(places)]
