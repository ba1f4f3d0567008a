"""How far a policy is from another one, by completions that it wrote.

For a completion y of the policy p, sum over its tokens of k3 = r - 1 - log r with r = q / p
(Schulman, 2020): each term has the mean KL(p || q) at that place given what was before, so the sum
has the mean KL of whole completions, and no term is negative.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rollouts.types import F32, MicroBatch

_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """Sums over completions, which add up."""

    completions: int = 0
    tokens: int = 0
    kl: float = 0.0
    """Nats, over all completions."""
    kl_squares: float = 0.0
    """Of each completion's nats."""

    def __add__(self, other: "Distance") -> "Distance":
        return Distance(
            completions=self.completions + other.completions,
            tokens=self.tokens + other.tokens,
            kl=self.kl + other.kl,
            kl_squares=self.kl_squares + other.kl_squares,
        )

    @property
    def mean(self) -> float:
        """Nats a completion; NaN where there is none."""
        return self.kl / self.completions if self.completions else float("nan")

    @property
    def stderr(self) -> float:
        """Standard error of `mean`; NaN for fewer than two completions."""
        n = self.completions
        if n < 2:
            return float("nan")
        variance = max(0.0, self.kl_squares / n - self.mean**2) * n / (n - 1)
        return float(np.sqrt(variance / n))

    @property
    def per_token(self) -> float:
        """Nats a token; NaN where there is none."""
        return self.kl / self.tokens if self.tokens else float("nan")


def distance(batch: MicroBatch, other: F32) -> Distance:
    """Return how far the sampler of a micro-batch is from who gave `other`.

    Args:
        other: logprobs [T] of the same tokens at the same temperature.
    """
    log_ratio = np.where(batch.loss_mask, other - batch.rollout_logprobs, 0).astype(np.float64)
    clipped = np.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    kl = np.expm1(clipped) - clipped
    bounds: Sequence[tuple[int, int]] = list(pairwise(batch.cu_seqlens.tolist()))
    each = [float(kl[a:b].sum()) for a, b in bounds if batch.loss_mask[a:b].any()]
    return Distance(
        completions=len(each),
        tokens=int(batch.loss_mask.sum()),
        kl=float(np.sum(each)),
        kl_squares=float(np.square(each).sum()),
    )
