"""Weights for tokens to which trainer and sampler give different probabilities.

Denominators are counted before anything is masked here, so that a masked token lowers the step's
gradient and never raises the learning rate of the others.
"""

import torch
from torch import Tensor

from configs.algorithm import CorrectionConfig
from trainer.loss import clamped_exp, sample_mean, sample_sum


def correction_weights(
    cfg: CorrectionConfig,
    *,
    policy: Tensor,
    proximal: Tensor,
    rollout: Tensor,
    advantages: Tensor,
    mask: Tensor,
    segment: Tensor,
) -> Tensor:
    """Return each token's weight [T], 0 where it is left out; without a gradient.

    With r = proximal / rollout of the token, the product of its sample's, or that product's
    geometric mean: min(r, high) for `truncate`, r * [low <= r <= high] for `mask`.

    Args:
        policy: logprobs of the network now; the others as in LossInputs, all [T].
    """
    gap = torch.where(mask, proximal - rollout, torch.zeros_like(proximal)).detach()
    if cfg.level == "sequence":
        gap = sample_sum(gap, mask, segment)
    elif cfg.level == "geometric":
        gap = sample_mean(gap, mask, segment)
    ratio = clamped_exp(gap)
    if cfg.weight == "truncate":
        weights = ratio.clamp(max=cfg.high)
    elif cfg.weight == "mask":
        weights = torch.where((ratio >= cfg.low) & (ratio <= cfg.high), ratio, 0.0)
    else:
        weights = torch.ones_like(ratio)
    if cfg.max_sequence_kl is not None:
        drift = sample_mean(rollout - policy.detach(), mask, segment)
        stale = (drift > cfg.max_sequence_kl) & (advantages < 0)
        weights = torch.where(stale, torch.zeros_like(weights), weights)
    return weights.detach()
