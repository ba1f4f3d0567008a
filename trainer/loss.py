"""The policy loss: what a loss function gets, what it returns, and the built-in one.

A loss returns a SUM over its tokens. The engine divides by the one global token count, so the
result does not depend on how tokens were split into micro-batches or over ranks.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from configs.errors import ConfigError, Problem
from configs.plugs import resolve
from configs.schema import PlugConfig
from trainer.metrics import Max, Mean, Metric

KLEstimator: TypeAlias = Literal["k1", "k2", "k3"]

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
    loss_weight: Tensor
    kl_coef: Tensor
    clip_low: Tensor
    """Of the token's source; NaN where it leaves it to the loss (`clip_range` fills it in)."""
    clip_high: Tensor
    """As `clip_low`."""
    entropy: Tensor
    importance_cap: float | None
    """Truncation of the sampler-to-trainer weight; None turns the weight off."""
    kl_estimator: KLEstimator
    kl_in_loss: bool
    """Whether the KL to the reference is a term of the loss (else it is in the advantages)."""

    def filled(self) -> "LossInputs":
        """Return a copy with 0 at every masked place, so that a NaN there poisons nothing."""
        zeroed = {
            f.name: torch.where(self.loss_mask, value, torch.zeros_like(value))
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor) and f.name != "loss_mask"
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


def kl_estimate(log_p: Tensor, log_q: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(p || q) per token drawn from p (Schulman 2020, joschu.net/blog/kl-approx.html).

    As a loss term: k1 has a zero expected gradient, k2's is that of the KL, k3's is a biased one
    (of KL(q || p), near p = q).
    """
    log_ratio = log_p - log_q
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio.square()
    clamped = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(-clamped) + clamped


def importance_weights(x: LossInputs) -> Tensor:
    """Truncated weights min(proximal / rollout, cap) of the sampler-trainer gap, detached.

    Truncated importance sampling: arXiv 2402.14740 (appendix), fengyao.notion.site/off-policy-rl.
    """
    if x.importance_cap is None:
        return torch.ones_like(x.rollout_logprobs)
    return (
        clamped_exp(x.proximal_logprobs - x.rollout_logprobs).clamp(max=x.importance_cap).detach()
    )


def clip_range(x: LossInputs, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return how far each token's ratio may lie below and above 1 [T]: as its source says, else
    `low` and `high`."""
    return (
        torch.where(x.clip_low.isnan(), low, x.clip_low),
        torch.where(x.clip_high.isnan(), high, x.clip_high),
    )


def ppo_clip(x: LossInputs, *, clip_low: float = 0.2, clip_high: float = 0.2) -> LossOutput:
    """Clipped surrogate, token-level (arXiv 1707.06347; clip_high apart: arXiv 2503.14476).

    `clip_low` and `clip_high` are for the tokens of sources that have no range of their own.
    Per token: loss_weight * (kl_coef * kl - w * min(r A, clip(r, 1 - low, 1 + high) A)) with
    r = policy / proximal and w the truncated sampler-trainer weight.
    """
    x = x.filled()
    low, high = clip_range(x, clip_low, clip_high)
    ratio = clamped_exp(x.policy_logprobs - x.proximal_logprobs)
    clipped = ratio.clamp(1 - low, 1 + high)
    objective = torch.minimum(ratio * x.advantages, clipped * x.advantages)
    per_token = -importance_weights(x) * objective
    if x.kl_in_loss and x.ref_logprobs is not None:
        kl = kl_estimate(x.policy_logprobs, x.ref_logprobs, x.kl_estimator)
        per_token = per_token + x.kl_coef * kl
    per_token = torch.where(x.loss_mask, x.loss_weight * per_token, 0.0)
    metrics: dict[str, Metric] = {
        "clip/low": Mean((ratio < 1 - low) & (x.advantages < 0), x.loss_mask),
        "clip/high": Mean((ratio > 1 + high) & (x.advantages > 0), x.loss_mask),
        **policy_metrics(x),
        **mismatch_metrics(x),
    }
    return LossOutput(total=per_token.sum(), metrics=metrics)


def policy_metrics(x: LossInputs) -> dict[str, Metric]:
    """Statistics of the update: ratio to the proximal policy, entropy, distance to reference."""
    log_ratio = x.policy_logprobs - x.proximal_logprobs
    ratio = clamped_exp(log_ratio)
    found: dict[str, Metric] = {
        "ratio/mean": Mean(ratio, x.loss_mask),
        "ratio/max_deviation": Max((ratio - 1).abs(), x.loss_mask),
        "ratio/clamped": Mean(log_ratio.abs() > MAX_LOG_RATIO, x.loss_mask),
        "entropy": Mean(x.entropy, x.loss_mask),
    }
    if x.ref_logprobs is not None:
        kl = kl_estimate(x.policy_logprobs, x.ref_logprobs, x.kl_estimator)
        found["kl_ref"] = Mean(kl, x.loss_mask)
    return found


def mismatch_metrics(x: LossInputs) -> dict[str, Metric]:
    """Gap between sampler and trainer on the sampled tokens: k3 of KL(rollout || proximal),
    chi-squared, probabilities, and how often the importance weight was truncated."""
    gap = x.proximal_logprobs - x.rollout_logprobs
    weight = clamped_exp(gap)
    cap = float("inf") if x.importance_cap is None else x.importance_cap
    prob_diff = (x.proximal_logprobs.exp() - x.rollout_logprobs.exp()).abs()
    return {
        "mismatch/kl": Mean(
            kl_estimate(x.rollout_logprobs, x.proximal_logprobs, "k3"), x.loss_mask
        ),
        "mismatch/chi2": Mean(weight.square() - 1, x.loss_mask),
        "mismatch/prob_diff": Mean(prob_diff, x.loss_mask),
        "mismatch/truncated": Mean(weight > cap, x.loss_mask),
        "mismatch/max_gap": Max(gap.abs(), x.loss_mask),
    }


BUILT_IN: Mapping[str, Callable[..., LossOutput]] = {"ppo_clip": ppo_clip}


def resolve_loss(plug: PlugConfig) -> LossFunction:
    """Return the loss named by `plug` with its arguments bound; ConfigError if it is not one."""
    found: object = BUILT_IN[plug.use] if plug.use in BUILT_IN else resolve(plug.use)
    where = "algorithm.loss"
    if not callable(found):
        raise ConfigError(Problem(where=where, what=f"{plug.use!r} is not a function"))
    try:
        inspect.signature(found).bind(object(), **plug.args)
    except TypeError as error:
        raise ConfigError(
            Problem(
                where=f"{where}.args",
                what=f"{plug.use!r} cannot be called with LossInputs and {plug.args}: {error}",
                fix=f"its signature is {inspect.signature(found)}.",
            )
        ) from error
    return functools.partial(found, **plug.args)
