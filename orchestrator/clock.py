"""Where a step's wall time goes.

Several phases may be open at once (groups generate while others are graded). Each moment of wall
time is given to one phase: the open one that stands first in `PRIORITY`. So phases add up to the
wall time, and `grade` is only what grading costs beyond generation.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PRIORITY = (
    "checkpoint",
    "evaluate",
    "sync",
    "train",
    "reference",
    "critic",
    "pack",
    "log",
    "dispatch",
    "generate",
    "grade",
)
"""`idle` is a moment in which none of these is open."""


class PhaseClock:
    """Accumulates seconds by phase; read and reset once a step by `lap`."""

    def __init__(self) -> None:
        self._open: dict[str, int] = dict.fromkeys(PRIORITY, 0)
        self._seconds: dict[str, float] = dict.fromkeys((*PRIORITY, "idle"), 0.0)
        self._since = self._lap_began = time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Mark the enclosed time, including awaits, as spent in `name`."""
        self._settle()
        self._open[name] += 1
        try:
            yield
        finally:
            self._settle()
            self._open[name] -= 1

    def lap(self) -> tuple[float, Mapping[str, float]]:
        """Return wall seconds since the last lap and their split, and begin a new lap."""
        self._settle()
        wall = self._since - self._lap_began
        split, self._seconds = self._seconds, dict.fromkeys(self._seconds, 0.0)
        self._lap_began = self._since
        return wall, split

    def _settle(self) -> None:
        now = time.monotonic()
        current = next((n for n in PRIORITY if self._open[n]), "idle")
        self._seconds[current] += now - self._since
        self._since = now
