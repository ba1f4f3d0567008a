"""How often a source's rollouts were invalid of late, and when that is too often."""

from collections import deque
from collections.abc import Iterable

from rollouts.types import GroupSummary, RolloutStats, RolloutStatus

WINDOW = 256
"""Rollouts of a source that its rate is taken over."""
MIN_SEEN = 32
"""Rollouts of a source before its rate means anything."""
_EXAMPLES = 3


class GraderErrorRateExceeded(Exception):
    """Too many of a source's rollouts were invalid; the run stops rather than train on the rest."""

    def __init__(self, source: str, rate: float, bound: float, examples: tuple[str, ...]):
        self.source, self.rate, self.bound, self.examples = source, rate, bound, examples
        shown = "".join(f"\n    {example}" for example in examples)
        super().__init__(
            f"source {source!r}: {rate:.0%} of its last rollouts are invalid, "
            f"reward.max_error_rate allows {bound:.0%}. The newest reasons:{shown}"
        )

    def __reduce__(
        self,
    ) -> tuple[type["GraderErrorRateExceeded"], tuple[str, float, float, tuple[str, ...]]]:
        return type(self), (self.source, self.rate, self.bound, self.examples)


class ErrorRates:
    """Rolling rate of invalid rollouts by source, over the last WINDOW rollouts of each."""

    def __init__(self, bound: float):
        self._bound = bound
        self._seen: dict[str, deque[str | None]] = {}

    def observe(self, summary: GroupSummary) -> None:
        """Count a group's rollouts.

        Raises:
            GraderErrorRateExceeded: the source's rate is now over the bound.
        """
        self.count(summary.source, summary.rollouts)

    def count(self, source: str, rollouts: Iterable[RolloutStats]) -> None:
        """Count rollouts of `source`; raises as `observe` does."""
        seen = self._seen.setdefault(source, deque(maxlen=WINDOW))
        for rollout in rollouts:
            seen.append(_reason(rollout) if rollout.status is RolloutStatus.INVALID else None)
        rate = self.rate(source)
        if len(seen) >= MIN_SEEN and rate > self._bound:
            distinct = dict.fromkeys(reason for reason in reversed(seen) if reason is not None)
            raise GraderErrorRateExceeded(source, rate, self._bound, tuple(distinct)[:_EXAMPLES])

    def rate(self, source: str) -> float:
        """Return the share of invalid rollouts among the last of `source`; 0 before any."""
        seen = self._seen.get(source)
        return sum(e is not None for e in seen) / len(seen) if seen else 0.0


def _reason(rollout: RolloutStats) -> str:
    error = rollout.error
    return "no reason" if error is None else f"{error.boundary}: {error.kind}: {error.message:.200}"
