"""How far held-out gain may be trusted: what it cost in distance from the start.

With d = sqrt(KL(policy || start)), what an optimised reward is really worth first rises with d and
then falls, R(d) = d (alpha - beta log d) under RL (arXiv:2210.10760). So each evaluation says what
the way so far gained a unit of d, what its latest stretch did, and whether the peak is behind.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

_LEAST_WAY = 0.05
"""A stretch shorter than this in d tells nothing."""


@dataclass(frozen=True, slots=True)
class _Point:
    step: int
    rate: float
    stderr: float
    kl: float

    @property
    def d(self) -> float:
        return math.sqrt(max(0.0, self.kl))


def trust_lines(
    evaluations: Sequence[Mapping[str, JsonValue]], sources: Sequence[str]
) -> list[str]:
    """Return a line for each of the sources that has two evaluations with a distance."""
    found = ((name, _points(evaluations, name)) for name in sources)
    return [_line(name, points) for name, points in found if len(points) > 1]


def _line(name: str, points: Sequence[_Point]) -> str:
    first, before, now = points[0], points[-2], points[-1]
    best = max(points, key=lambda p: p.rate)
    text = (
        f"{name}: {now.kl:.2f} nats a completion from the start (d = {now.d:.2f}), held-out "
        f"{now.rate - first.rate:+.1%}"
    )
    if now.d - first.d > _LEAST_WAY:
        text += f", {(now.rate - first.rate) / (now.d - first.d):+.1%} a unit of d"
    if before is not first and now.d - before.d > _LEAST_WAY:
        latest = (now.rate - before.rate) / (now.d - before.d)
        text += f"; since step {before.step} {latest:+.1%} a unit"
    fall = best.rate - now.rate
    if now.d > best.d and fall > math.hypot(best.stderr, now.stderr):
        text += (
            f". More distance no longer pays: trust the policy of step {best.step} (d = "
            f"{best.d:.2f}), {fall:.1%} better"
        )
    return text


def _points(evaluations: Sequence[Mapping[str, JsonValue]], source: str) -> list[_Point]:
    rows = [e for e in evaluations if e["source"] == source]
    values = [
        [row.get(k) for k in ("step", "pass_rate", "pass_rate_stderr", "kl_start")] for row in rows
    ]
    numbers = [[float(v) for v in row if isinstance(v, int | float)] for row in values]
    return [
        _Point(int(row[0]), row[1], row[2], row[3])
        for row in numbers
        if len(row) == 4 and all(map(math.isfinite, row))
    ]
