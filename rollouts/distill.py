"""On-policy distillation: what a teacher's logprobs of the sampled tokens come to as advantages.

With actions a_t drawn from the policy p, the gradient of KL(p || q) at each token, its prefix held
fixed, is E[(log p(a_t) - log q(a_t)) grad log p(a_t)]: the policy gradient of the advantage
log q(a_t) - log p(a_t), a constant (MiniLLM, arXiv:2306.08543, its single-step part). What a token
does to later ones is left out, a discount of 0; prefixes are the policy's own (GKD,
arXiv:2306.13649, lambda = 1). Both logprobs are at the temperature of the sampling, at which the
trainer takes the policy's too, so that policy and teacher agree where their logits do.
"""

from dataclasses import replace

import numpy as np

from configs.teachers import DistillConfig
from rollouts.types import F32, TrainingSample


def teach(sample: TrainingSample, teacher_logprobs: F32, cfg: DistillConfig) -> TrainingSample:
    """Return the sample with what the teacher adds to its advantages: coef * log(q / p).

    Args:
        teacher_logprobs: [L], read where `loss_mask` is true.

    Raises:
        ValueError: it does not fit the sample, or is not finite there.
    """
    mask = sample.loss_mask
    if teacher_logprobs.shape != mask.shape or not np.isfinite(teacher_logprobs[mask]).all():
        raise ValueError(
            f"{sample.group_id}, rollout {sample.index}: the teacher's logprobs are not one finite "
            "number a token"
        )
    gap = np.where(mask, teacher_logprobs - sample.rollout_logprobs, 0.0)
    if cfg.max_gap is not None:
        gap = gap.clip(-cfg.max_gap, cfg.max_gap)
    return replace(sample, taught=(cfg.coef * gap).astype(np.float32))


def teacher_gap(sample: TrainingSample, teacher_logprobs: F32) -> float:
    """Return the sum over the sampled tokens of log(p / q): in expectation, their reverse KL."""
    mask = sample.loss_mask
    gap = sample.rollout_logprobs[mask].astype(np.float64) - teacher_logprobs[mask]
    return float(gap.sum())
