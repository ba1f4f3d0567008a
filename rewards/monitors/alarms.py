"""What a monitor says, and when: an alarm is raised once, stands, and is cleared once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from configs.guards import UpdateRemedy


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Why a monitor thinks that a reward is being hacked."""

    text: str
    """What was seen, as half a sentence after the source's name."""
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """A change of a monitor's mind."""

    step: int
    source: str
    monitor: str
    """Its field of `monitors`, or `guards/` and its field there."""
    event: Literal["raised", "cleared"]
    action: UpdateRemedy
    text: str
    figures: Mapping[str, float]

    @property
    def field(self) -> str:
        """The recipe's field of whoever raised it."""
        return self.monitor.replace("/", ".") if "/" in self.monitor else f"monitors.{self.monitor}"

    def __str__(self) -> str:
        where = f"{self.source}: " if self.source else ""
        if self.event == "cleared":
            return f"alarm cleared ({self.monitor}) after step {self.step}: {where}{self.text}"
        return f"ALARM ({self.monitor}) after step {self.step}: {where}{self.text}"

    def record(self) -> dict[str, JsonValue]:
        """Return it as a line of alarms.jsonl."""
        return {
            "step": self.step,
            "source": self.source,
            "monitor": self.monitor,
            "event": self.event,
            "action": self.action,
            "text": self.text,
            **self.figures,
        }


class Latch:
    """Raises after `persist` findings in a row, and clears after as many without."""

    def __init__(self, persist: int):
        self._persist = persist
        self._run = 0
        self.standing: Finding | None = None
        """The latest finding, while raised."""

    def observe(self, finding: Finding | None) -> Literal["raised", "cleared"] | None:
        """Take what was found after one more step; say whether that changes anything."""
        if finding is not None and self.standing is not None:
            self.standing = finding
        differs = (finding is not None) != (self.standing is not None)
        self._run = self._run + 1 if differs else 0
        if self._run < self._persist:
            return None
        self._run = 0
        self.standing = finding
        return "raised" if finding is not None else "cleared"


@dataclass(frozen=True, slots=True)
class Figures:
    """One row of metrics.jsonl or eval.jsonl, as one source's monitors see it."""

    row: Mapping[str, JsonValue] | Mapping[str, float]
    prefix: str
    """`source/<name>/`; empty for rows without."""

    def get(self, name: str) -> float | None:
        """Return a number; None where the row has none that is finite."""
        value = self.row.get(self.prefix + name)
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)


@dataclass(frozen=True, slots=True)
class Looked:
    """A monitor had something to look at."""

    finding: Finding | None = None


class Monitor:
    """Watches one source. Its state is a function of the rows that it was shown, so that a resumed
    run, which shows it the same rows again, goes on as if it had never ended."""

    def observe(self, figures: Figures) -> Looked | None:
        """Take a trained step's row; None where that says nothing."""

    def evaluated(self, step: int, figures: Figures) -> Looked | None:
        """Take a row of eval.jsonl; None where that says nothing."""
