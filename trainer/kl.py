"""Per-token estimators of a KL divergence from samples."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

KLEstimator: TypeAlias = Literal["k1", "k2", "k3", "straight_through"]

_MAX_LOG_RATIO = 20.0


def kl_estimate(log_p: Tensor, log_q: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(p || q) per token drawn from p (Schulman 2020, joschu.net/blog/kl-approx.html).

    As a loss term: k1 has a zero expected gradient, k2's is that of the KL, k3's is a biased one
    (of KL(q || p), near p = q). `straight_through` has k3's value and k2's gradient.
    """
    log_ratio = log_p - log_q
    if estimator == "k1":
        return log_ratio
    half_square = 0.5 * log_ratio.square()
    if estimator == "k2":
        return half_square
    clamped = log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    k3 = torch.expm1(-clamped) + clamped
    if estimator == "k3":
        return k3
    return k3.detach() + half_square - half_square.detach()
