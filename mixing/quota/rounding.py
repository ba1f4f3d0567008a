"""How many groups of each source a step has: largest remainder, with the remainder carried."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil, floor

_LONGEST = 2**256
_GRID = 2**128
_MOST_OWED = 64


class Quota:
    """Turns targets, which change from step to step or do not, into whole groups.

    A source gets its target's whole part, and a left-over group goes to whom the past owes most
    (its credit). So each step's count lies within 1 of the target, and counts over n steps stay a
    bounded distance from the sum of n targets. A source that is owed, or owes, a whole group
    because one was put in another's place gets it back at the next step.

    All arithmetic is exact. Only where targets keep changing (a ramp) would its fractions grow
    without end: credit whose denominator passes 2^256 is rounded to 2^-128 of a group.
    """

    def __init__(self, names: Sequence[str]):
        self._credit = dict.fromkeys(names, Fraction(0))

    @property
    def credit(self) -> Mapping[str, Fraction]:
        """Groups that each source is owed (or owes, where negative); their sum is 0."""
        return self._credit

    def next_counts(
        self, targets: Mapping[str, Fraction], bounds: Mapping[str, int | None] | None = None
    ) -> dict[str, int]:
        """Return the groups of each source in the next step.

        Args:
            targets: groups due to each source; their sum is a whole number, and that of the counts.
            bounds: most groups that a source can give; none is below its target.
        """
        bounds = bounds or {}
        self._shorten()
        due = {name: target + self._credit[name] for name, target in targets.items()}
        counts = {name: self._least(name, target) for name, target in targets.items()}
        left_over = int(sum(targets.values())) - sum(counts.values())
        for _ in range(left_over):
            open_to = [n for n, t in targets.items() if counts[n] < self._most(n, t, bounds.get(n))]
            counts[max(open_to, key=lambda n: due[n] - counts[n])] += 1  # ties: recipe order
        for name, count in counts.items():
            self._credit[name] = due[name] - count
        return counts

    def swap(self, planned: str, given: str) -> None:
        """Tell that a group planned for one source was given to another."""
        self._credit[planned] += 1
        self._credit[given] -= 1

    def miss(self, name: str, targets: Mapping[str, Fraction]) -> None:
        """Tell that a step had one group of `name` less, and so was smaller: the others' parts of
        what is left were too large. What a source is owed is bounded, so that one that stalled does
        not flood the steps after.

        Args:
            targets: groups that were due to each source in the step.
        """
        if self._credit[name] >= _MOST_OWED:
            return
        self._credit[name] += 1
        groups = sum(targets.values())
        for other, target in targets.items():
            self._credit[other] -= target / groups

    def _least(self, name: str, target: Fraction) -> int:
        back = self._credit[name] <= -1 and target >= 1
        return floor(target) - (back and target.denominator == 1)

    def _most(self, name: str, target: Fraction, bound: int | None) -> int:
        back = self._credit[name] >= 1 and target > 0
        most = ceil(target) + (back and target.denominator == 1)
        return most if bound is None else min(most, bound)

    def _shorten(self) -> None:
        if all(credit.denominator < _LONGEST for credit in self._credit.values()):
            return
        *others, last = self._credit
        for name in others:
            self._credit[name] = Fraction(round(self._credit[name] * _GRID), _GRID)
        self._credit[last] = -sum((self._credit[name] for name in others), Fraction(0))

    def state_dict(self) -> dict[str, str]:
        """Return the carried credit of each source, as exact fractions."""
        return {name: str(credit) for name, credit in self._credit.items()}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Take up the credit that `state_dict` returned; sources must be the same."""
        self._credit = {name: Fraction(state[name]) for name in self._credit}


def interleave(counts: Mapping[str, int]) -> Sequence[str]:
    """Return each name as often as its count says, spread evenly and always in the same order."""
    places = [  # quotients of small whole numbers: floats order them as exact fractions would
        ((2 * k + 1) / (2 * count), order, name)
        for order, (name, count) in enumerate(counts.items())
        for k in range(count)
    ]
    return [name for _, _, name in sorted(places)]
