"""What the steps so far add up to, by source: the fold of metrics.jsonl's rows.

A live step and a row that an earlier attempt wrote are taken in by the same code. So a resumed
run, whose metrics.jsonl ends at its checkpoint, goes on with exactly the sums it had there.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from orchestrator.records.step_metrics import UNITS

RECENT_STEPS = 10
"""Latest steps with the source that its recent training reward is the mean of."""


@dataclass(slots=True)
class _Sums:
    """One source's."""

    due: float = 0.0
    """Of the shares of each step."""
    graded: int = 0
    units: dict[str, int] = field(default_factory=lambda: dict.fromkeys(UNITS, 0))
    rewards: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    """Mean and count of the valid rollouts of recent steps."""


class RunTotals:
    """Sums over a run's steps."""

    def __init__(self, sources: Sequence[str]):
        self._sums = {name: _Sums() for name in sources}
        self._steps = 0

    def add(self, metrics: Mapping[str, JsonValue] | Mapping[str, float]) -> None:
        """Take in one step's metrics."""
        self._steps += 1
        for name, sums in self._sums.items():

            def value(key: str, prefix: str = f"source/{name}") -> float:
                found = metrics.get(f"{prefix}/{key}")
                return float(found) if isinstance(found, int | float) else 0.0

            sums.due += value("share/target")
            sums.graded += int(value("all/groups"))
            for unit in UNITS:
                sums.units[unit] += int(value(unit))
            known = metrics.get(f"source/{name}/all/reward/mean") is not None
            if known and (count := int(value("all/valid"))):
                sums.rewards.append((value("all/reward/mean"), count))

    def metrics(self) -> dict[str, float]:
        """Return the cumulative metrics of every source."""
        whole = {unit: sum(s.units[unit] for s in self._sums.values()) for unit in UNITS}
        found: dict[str, float] = {}
        for name, sums in self._sums.items():
            at = f"source/{name}/total"
            found.update((f"{at}/{unit}", sums.units[unit]) for unit in UNITS)
            if sums.graded:
                found[f"{at}/survival"] = sums.units["groups"] / sums.graded
            if self._steps:
                found[f"{at}/share/target"] = sums.due / self._steps
            for unit in UNITS:
                if whole[unit]:
                    found[f"{at}/share/{unit}"] = sums.units[unit] / whole[unit]
        return found

    def recent_reward(self, source: str) -> float | None:
        """Return the mean reward of the source's latest steps, over their valid rollouts."""
        recent = self._sums[source].rewards
        count = sum(n for _, n in recent)
        return sum(mean * n for mean, n in recent) / count if count else None
