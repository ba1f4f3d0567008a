"""What a loss function gets and what it returns, and how a recipe names one.

A loss returns a SUM over its tokens. The engine divides by a denominator that is known before
anything is sharded, so the result does not depend on how tokens were split into micro-batches or
over ranks. The built-in ones are in `trainer.objectives`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import torch
from torch import Tensor

from trainer.kl import KLEstimator, kl_estimate
from trainer.metrics import Metric

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this size before exp; beyond it the gradient is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """One micro-batch for the loss. Tensors are [T]; where `loss_mask` is false, `filled` makes
    them 0 whatever they held."""

    policy_logprobs: Tensor
    """Of the network now; the only input with a gradient, besides `entropy`."""
    proximal_logprobs: Tensor
    """Of the network before this step's first update (arXiv 2110.00641)."""
    rollout_logprobs: Tensor
    """Of the sampler."""
    ref_logprobs: Tensor | None
    """Of the frozen reference, where there is one."""
    advantages: Tensor
    loss_mask: Tensor
    """Bool."""
    segment: Tensor
    """Int64: the place, in the micro-batch, of the sample that a token belongs to. A sample is
    never split over micro-batches."""
    loss_weight: Tensor
    """The source's factor and, but for `token_mean`, the aggregation's (see `trainer.engine`)."""
    correction: Tensor
    """Weight of the sampler-to-trainer gap (`trainer.corrections`), without a gradient."""
    kl_coef: Tensor
    clip_low: Tensor
    """Of the token's source; NaN where it leaves it to the loss (`clip_range` fills it in)."""
    clip_high: Tensor
    """As `clip_low`."""
    entropy: Tensor
    entropy_coef: float
    kl_estimator: KLEstimator
    kl_in_loss: bool
    """Whether the KL to the reference is a term of the loss (else it is in the advantages)."""

    def filled(self) -> "LossInputs":
        """Return a copy with 0 at every masked place, so that a NaN there poisons nothing."""
        zeroed = {
            f.name: torch.where(self.loss_mask, value, torch.zeros_like(value))
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
            and f.name not in ("loss_mask", "segment")
        }
        return replace(self, **zeroed)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """What a loss gives back."""

    total: Tensor
    """Scalar SUM over the masked tokens."""
    metrics: Mapping[str, Metric]


LossFunction: TypeAlias = Callable[[LossInputs], LossOutput]


def clamped_exp(log_ratio: Tensor) -> Tensor:
    """exp of a log-ratio clamped to +-MAX_LOG_RATIO."""
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sample_sum(values: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    """Sum `values` [T] over the masked tokens of each token's own sample: [T]."""
    kept = torch.where(mask, values, torch.zeros_like(values))
    size = int(segment.max()) + 1 if len(segment) else 0
    sums = torch.zeros(size, dtype=values.dtype, device=values.device)
    return sums.index_add(0, segment, kept)[segment]


def sample_mean(values: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    """Average `values` [T] over the masked tokens of each token's own sample: [T]; 0 where the
    sample has none."""
    count = sample_sum(mask.to(values.dtype), mask, segment)
    return sample_sum(values, mask, segment) / count.clamp(min=1)


def finish(x: LossInputs, surrogate: Tensor, metrics: Mapping[str, Metric]) -> LossOutput:
    """Make a loss of a surrogate objective [T], which is maximised, with what all losses share:
    KL to the reference, entropy bonus, weights, mask, and the metrics of the update.

    Per token: loss_weight * (kl_coef * kl - surrogate - entropy_coef * entropy).
    """
    per_token = -surrogate
    if x.kl_in_loss and x.ref_logprobs is not None:
        kl = kl_estimate(x.policy_logprobs, x.ref_logprobs, x.kl_estimator)
        per_token = per_token + x.kl_coef * kl
    if x.entropy_coef > 0:
        per_token = per_token - x.entropy_coef * x.entropy
    per_token = torch.where(x.loss_mask, x.loss_weight * per_token, 0.0)
    return LossOutput(total=per_token.sum(), metrics=metrics)
