"""A training step's numbers, from those of its minibatches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.metrics import Reduced


@dataclass(frozen=True, slots=True, kw_only=True)
class MinibatchMetrics:
    """One optimizer step, the same on every rank."""

    loss: float
    """Global sum / denominator."""
    denominator: int
    grad_norm: float
    """Global norm before clipping."""
    lr: float
    """Rate that this step used."""
    ratio_max_deviation: float
    """Largest |policy / proximal - 1| over all ranks, before the update."""
    num_loss_tokens: int
    stats: Mapping[str, Reduced]
    applied: bool = True
    """Whether the weights were updated."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient norm are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def summary(done: Sequence[MinibatchMetrics], *, epochs: int = 1) -> dict[str, float]:
    """Merge minibatches into a step's numbers; the loss is that of one minibatch of them all, and
    means stay weighted by tokens.

    Args:
        epochs: passes over the step that `done` holds; its tokens are counted once.
    """
    tokens = sum(m.num_loss_tokens for m in done) // epochs
    denominator = sum(m.denominator for m in done)
    metrics = {
        "loss": sum(m.loss * m.denominator for m in done) / denominator,
        "loss_max": _largest([m.loss for m in done]),
        "grad_norm": sum(m.grad_norm for m in done) / len(done),
        "grad_norm_max": _largest([m.grad_norm for m in done]),
        "skipped": float(sum(not m.applied for m in done)),
        "non_finite": float(sum(not m.finite for m in done)),
        "lr": done[-1].lr,
        "ratio/first_minibatch_max_deviation": done[0].ratio_max_deviation,
        "minibatches": float(len(done)),
        "loss_tokens": float(tokens),
    }
    merged: dict[str, Reduced] = {}
    for minibatch in done:
        for name, stat in minibatch.stats.items():
            merged[name] = merged[name].merge(stat) if name in merged else stat
    metrics.update({n: s.result for n, s in merged.items() if s.result is not None})
    metrics.update(_derived(metrics))
    return metrics


def _largest(values: Sequence[float]) -> float:
    """Return the largest number; NaN where none is one."""
    return max((v for v in values if math.isfinite(v)), default=math.nan)


def _derived(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return what is no mean of its own: effective sample size of the sampler's tokens as a share
    of them, E[w]^2 / E[w^2], and the sampler's perplexity over the trainer's."""
    if not {"mismatch/weight", "mismatch/chi2", "mismatch/log_gap"} <= metrics.keys():
        return {}
    return {
        "mismatch/ess": metrics["mismatch/weight"] ** 2 / (1 + metrics["mismatch/chi2"]),
        "mismatch/ppl_ratio": math.exp(metrics["mismatch/log_gap"]),
    }
