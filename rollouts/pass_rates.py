"""Pass rates: the unbiased estimate of pass@k, and how sure a measured rate is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959963984540054
"""Normal quantile of a two-sided 95% interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate:
    """A pass rate measured on items with some rollouts each."""

    rate: float
    """Passed rollouts over all of them; NaN without any."""
    stderr: float
    """Of the rate over such items, rollouts of one item taken as a cluster; NaN below two items."""
    low: float
    """Lower end of the 95% interval."""
    high: float
    """Upper end of the 95% interval."""


def pass_at_k(n: int, passed: int, k: int) -> float:
    """Return 1 - C(n - passed, k) / C(n, k): how probably k of an item's n rollouts, drawn without
    putting back, hold one that passed (arXiv:2107.03374, equation 1)."""
    if not (0 <= passed <= n and 1 <= k <= n):
        raise ValueError(f"no pass@{k} from {passed} passed of {n} rollouts")
    return 1 - math.comb(n - passed, k) / math.comb(n, k)


def pass_rate(items: Sequence[tuple[int, int]]) -> PassRate:
    """Measure the rate over items of (passed, n) rollouts; items with n = 0 do not count.

    The standard error is that of a ratio over clusters: sqrt(m / (m - 1) * sum (c - p n)^2) / N.
    The interval is Wilson's for as many independent rollouts as would spread like these: all of
    them where an item has one, and as many as there are items where all or none passed.
    """
    counted = [(c, n) for c, n in items if n > 0]
    total, m = sum(n for _, n in counted), len(counted)
    if total == 0:
        return PassRate(rate=math.nan, stderr=math.nan, low=math.nan, high=math.nan)
    rate = sum(c for c, _ in counted) / total
    variance = sum((c - rate * n) ** 2 for c, n in counted) / total**2
    stderr = math.sqrt(m / (m - 1) * variance) if m > 1 else math.nan
    independent = float(m)
    if 0 < rate < 1 and m > 1:
        independent = min(total, rate * (1 - rate) / variance) if variance > 0 else total
    low, high = _wilson(rate, independent)
    return PassRate(rate=rate, stderr=stderr, low=low, high=high)


def _wilson(rate: float, n: float) -> tuple[float, float]:
    """Return Wilson's 95% interval of a proportion of n independent trials."""
    middle = (rate + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)
