"""How much a series of step means has moved, and whether that can be chance.

The noise of one step is taken from the differences of successive steps (von Neumann, 1941): a
trend hardly adds to it, so that it is known before and after a change alike.
"""

import math
from collections import deque
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The latest steps of a series against others."""

    before: float
    now: float
    stderr: float
    """Standard error of `now - before`."""

    @property
    def size(self) -> float:
        """How far it moved."""
        return self.now - self.before

    def exceeds(self, margin: float, sigmas: float) -> bool:
        """Whether it rose by more than the margin, and by more than chance would have it."""
        return self.size > margin and self.size > sigmas * self.stderr

    def falls(self, margin: float, sigmas: float) -> bool:
        """Whether it fell so."""
        return -self.size > margin and -self.size > sigmas * self.stderr


class Series:
    """A number a step: its first `window` values, its latest, its best window and its noise."""

    def __init__(self, window: int):
        self._window = window
        self._first: list[float] = []
        self._recent: deque[float] = deque(maxlen=window)
        self._squares: deque[float] = deque(maxlen=4 * window)
        self._sum = 0.0
        self._count = 0
        self._best: float | None = None

    def add(self, value: float) -> None:
        """Take the next step's value."""
        if self._recent:
            square = (value - self._recent[-1]) ** 2
            self._squares.append(square)
            self._sum += square
            self._count += 1
        if len(self._first) < self._window:
            self._first.append(value)
        self._recent.append(value)
        if len(self._recent) == self._window:
            self._best = self.now if self._best is None else max(self._best, self.now)

    @property
    def full(self) -> bool:
        """Whether the latest values are no longer the first ones."""
        return self._count + 1 >= 2 * self._window

    @property
    def now(self) -> float:
        """Mean of the latest values."""
        return fmean(self._recent)

    @property
    def start(self) -> float:
        """Mean of the first values."""
        return fmean(self._first)

    @property
    def best(self) -> float:
        """Highest mean of a window so far."""
        return self.now if self._best is None else self._best

    @property
    def stderr(self) -> float:
        """Standard error of the mean of a window: by the noise of late or of all steps, whichever
        is larger."""
        if not self._count:
            return math.inf
        noise = max(self._sum / self._count, fmean(self._squares)) / 2
        return math.sqrt(noise / self._window)

    def since_start(self) -> Change | None:
        """Return how far the latest values are from the first; None before there are both."""
        return self._against(self.start) if self.full else None

    def since_best(self) -> Change | None:
        """Return how far they are from their best; None before there are two windows."""
        return self._against(self.best) if self.full else None

    def _against(self, before: float) -> Change:
        return Change(before=before, now=self.now, stderr=math.sqrt(2) * self.stderr)
