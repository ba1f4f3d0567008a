"""A run's metrics by name, small enough for a page."""

import math
from array import array
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

NUMBERS = 130_000
"""Numbers that a page holds of a run's metrics: about 1 MB of text."""
_DIGITS = 5


class Columns:
    """What metrics.jsonl holds: a step's number of each name; NaN where a step has none."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.other: set[str] = set()
        """Names of what is no number, and so is not drawn."""
        self._values: dict[str, array[float]] = {}

    @property
    def names(self) -> list[str]:
        """Names of all that is a number."""
        return list(self._values)

    def add(self, row: Mapping[str, Any]) -> bool:
        """Take in one step's metrics; False where the row has no step.

        A row of a step that is there already stands for it and for all after it, as in a run that
        went on from a checkpoint.
        """
        step = row.get("step")
        if not isinstance(step, int | float) or isinstance(step, bool) or not math.isfinite(step):
            return False
        self._cut(int(step))
        count = len(self.steps)
        for name, value in row.items():
            if name == "step":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                self.other.add(name)
                continue
            column = self._values.setdefault(name, array("d"))
            column.extend([math.nan] * (count - len(column)))
            column.append(math.nan if value is None else float(value))
        self.steps.append(int(step))
        return True

    def _cut(self, step: int) -> None:
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
        for column in self._values.values():
            del column[len(self.steps) :]

    def values(self, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return a number a step; NaN where there is none, and where the name is unknown."""
        found = np.full(len(self.steps), np.nan)
        column = self._values.get(name, array("d"))
        found[: len(column)] = column
        return found

    def to_json(self, numbers: int = NUMBERS) -> dict[str, Any]:
        """Return the columns for the page.

        Where there are more than `numbers`, each point is the mean of `every` steps in a row, and
        `low` and `high` have the least and the greatest of them. A column whose numbers are all the
        same is that number.
        """
        names = sorted(self._values)
        every = 1
        if names and len(self.steps) * len(names) > numbers:
            points = max(1, numbers // (3 * len(names)))
            every = math.ceil(len(self.steps) / points)
        starts = range(0, len(self.steps), every)
        found: dict[str, Any] = {
            "steps": [self.steps[min(s + every, len(self.steps)) - 1] for s in starts],
            "every": every,
            "stride": _stride(self.steps) * every,
            "series": {},
            "not_numbers": sorted(self.other)[:50],
        }
        if every > 1:
            found["low"], found["high"] = {}, {}
        for name in names:
            whole = self.values(name)
            if not np.isfinite(whole).any():
                continue
            if np.isfinite(whole).all() and (whole == whole[0]).all():
                found["series"][name] = _short(float(whole[0]))
                continue
            buckets = [whole[s : s + every] for s in starts]
            found["series"][name] = [_reduced(b, np.mean) for b in buckets]
            if every > 1:
                found["low"][name] = [_reduced(b, np.min) for b in buckets]
                found["high"][name] = [_reduced(b, np.max) for b in buckets]
        return found


def _stride(steps: list[int]) -> int:
    """Return how far the steps usually lie apart, so that a missing one can be seen."""
    gaps = sorted(b - a for a, b in pairwise(steps))
    return gaps[len(gaps) // 2] if gaps else 1


def _reduced(values: np.ndarray[Any, np.dtype[np.float64]], how: Any) -> float | int | None:
    known = values[np.isfinite(values)]
    return _short(float(how(known))) if len(known) else None


def _short(value: float) -> float | int:
    """Return the number with as many digits as a chart can show; a count stays exact."""
    if value == int(value) and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.{_DIGITS}g}")
