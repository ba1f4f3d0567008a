"""How often a source's rollouts were invalid of late, and when that is too often."""

from collections import deque
from collections.abc import Container, Mapping
from dataclasses import dataclass

from pydantic import JsonValue, TypeAdapter

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


@dataclass(frozen=True, slots=True)
class _Seen:
    """One rollout."""

    group_id: str
    reason: str | None
    """Why it is invalid; None if it is not."""


_STATE = TypeAdapter(Mapping[str, tuple[_Seen, ...]])


class ErrorRates:
    """Rolling rate of invalid rollouts by source, over the last WINDOW rollouts of each."""

    def __init__(self, bound: float):
        self._bound = bound
        self._seen: dict[str, deque[_Seen]] = {}

    def observe(self, summary: GroupSummary) -> None:
        """Count a group's rollouts.

        Raises:
            GraderErrorRateExceeded: the source's rate is now over the bound.
        """
        source = summary.source
        seen = self._seen.setdefault(source, deque(maxlen=WINDOW))
        seen.extend(_Seen(summary.group_id, _reason(rollout)) for rollout in summary.rollouts)
        rate = self.rate(source)
        if len(seen) >= MIN_SEEN and rate > self._bound:
            distinct = dict.fromkeys(s.reason for s in reversed(seen) if s.reason is not None)
            raise GraderErrorRateExceeded(source, rate, self._bound, tuple(distinct)[:_EXAMPLES])

    def rate(self, source: str) -> float:
        """Return the share of invalid rollouts among the last of `source`; 0 before any."""
        seen = self._seen.get(source)
        return sum(s.reason is not None for s in seen) / len(seen) if seen else 0.0

    def state_dict(self, again: Container[str]) -> JsonValue:
        """Return for the checkpoint what was counted.

        Args:
            again: ids of the groups that a resumed run samples again, and counts then.
        """
        kept = {
            name: tuple(s for s in seen if s.group_id not in again)
            for name, seen in self._seen.items()
        }
        return _STATE.dump_python(kept, mode="json")

    def load_state_dict(self, state: JsonValue) -> None:
        """Go on from what `state_dict` returned."""
        found = _STATE.validate_python(state)
        self._seen = {name: deque(seen, maxlen=WINDOW) for name, seen in found.items()}


def _reason(rollout: RolloutStats) -> str | None:
    if rollout.status is not RolloutStatus.INVALID:
        return None
    error = rollout.error
    return "no reason" if error is None else f"{error.boundary}: {error.kind}: {error.message:.200}"
