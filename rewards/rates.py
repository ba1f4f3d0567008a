"""How often grading fails, by source, and when that ends a run."""

from collections import deque
from collections.abc import Iterable

from configs.schema import RewardGroupConfig
from rollouts.types import RolloutError

WINDOW = 256
"""Rollouts over which the rate is taken."""
ENOUGH = 64
"""Rollouts before which no rate is judged."""
EXAMPLES = 3


class GraderErrorRateExceeded(RuntimeError):
    """Too many rollouts of one source have no reward."""


class InvalidRates:
    """Rolling share of invalid rollouts of each source."""

    def __init__(self, cfg: RewardGroupConfig):
        self._bound = cfg.max_error_rate
        self._seen: dict[str, deque[RolloutError | None]] = {}

    def add(self, source: str, errors: Iterable[RolloutError | None]) -> None:
        """Count rollouts of `source`: their error, or None.

        Raises:
            GraderErrorRateExceeded: the rate is over `reward.max_error_rate`; names the source,
                both numbers and the latest examples.
        """
        seen = self._seen.setdefault(source, deque(maxlen=WINDOW))
        seen.extend(errors)
        failed = [e for e in seen if e is not None]
        rate = len(failed) / len(seen) if seen else 0.0
        if len(seen) >= ENOUGH and rate > self._bound:
            shown = "".join(
                f"\\n    {e.boundary}: {e.kind}: {e.message}" for e in failed[-EXAMPLES:]
            )
            raise GraderErrorRateExceeded(
                f"source {source!r}: {len(failed)} of the last {len(seen)} rollouts are invalid "
                f"({rate:.0%}, reward.max_error_rate is {self._bound:.0%}). The latest:{shown}"
            )
