"""The built-in policy losses: surrogate objectives of ratio and advantage, per token.

Each states its surrogate, which is maximised; KL, entropy, weights and masks are `finish`'s.
r = policy / proximal, w the sampler-to-trainer weight, A the advantage, sg a stopped gradient.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor

from configs.errors import ConfigError, Problem
from configs.plug import PlugConfig
from configs.plugs import resolve
from trainer.kl import kl_estimate
from trainer.loss import (
    MAX_LOG_RATIO,
    LossFunction,
    LossInputs,
    LossOutput,
    clamped_exp,
    finish,
    sample_mean,
)
from trainer.metrics import Max, Mean, Metric


def ppo_clip(
    x: LossInputs,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> LossOutput:
    """Clipped surrogate (arXiv:1707.06347; clip_high apart: arXiv:2503.14476).

    w * min(r A, clip(r, 1 - low, 1 + high) A); with `dual_clip` c > 1, at least w c A where A < 0
    (arXiv:1912.09729). `clip_low` and `clip_high` are for the tokens of sources that have no
    range of their own.
    """
    x = x.filled()
    low, high = clip_range(x, clip_low, clip_high)
    ratio = clamped_exp(x.policy_logprobs - x.proximal_logprobs)
    surrogate = torch.minimum(ratio * x.advantages, _clip(ratio, low, high) * x.advantages)
    metrics = _clip_metrics(x, ratio, low, high)
    if dual_clip is not None:
        floor = dual_clip * x.advantages
        metrics["clip/dual"] = Mean((surrogate < floor) & (x.advantages < 0), x.loss_mask)
        surrogate = torch.where(x.advantages < 0, torch.maximum(surrogate, floor), surrogate)
    return finish(x, x.correction * surrogate, {**metrics, **update_metrics(x)})


def gspo(x: LossInputs, *, clip_low: float = 3e-4, clip_high: float = 4e-4) -> LossOutput:
    """Sequence-level ratio (GSPO, arXiv:2507.18071, in its token form, equation 14).

    w * min(s A, clip(s, 1 - low, 1 + high) A) with s = sg[S] * policy / sg[policy] and S the
    geometric mean of r over the sample. The paper's weighting of samples is aggregation
    `sequence_mean`.
    """
    x = x.filled()
    low, high = clip_range(x, clip_low, clip_high)
    gap = sample_mean(x.policy_logprobs - x.proximal_logprobs, x.loss_mask, x.segment).detach()
    own = x.policy_logprobs - x.policy_logprobs.detach()
    ratio = clamped_exp(gap) * own.exp()
    surrogate = torch.minimum(ratio * x.advantages, _clip(ratio, low, high) * x.advantages)
    metrics = _clip_metrics(x, ratio, low, high)
    return finish(x, x.correction * surrogate, {**metrics, **update_metrics(x)})


def cispo(x: LossInputs, *, clip_low: float = 1.0, clip_high: float = 4.0) -> LossOutput:
    """Clipped weights, no clipped gradients (CISPO, arXiv:2506.13585).

    w * sg[clip(r, 1 - low, 1 + high)] A log policy: every token keeps a gradient.
    """
    x = x.filled()
    low, high = clip_range(x, clip_low, clip_high)
    ratio = clamped_exp(x.policy_logprobs - x.proximal_logprobs).detach()
    surrogate = _clip(ratio, low, high) * x.advantages * x.policy_logprobs
    metrics = _clip_metrics(x, ratio, low, high)
    return finish(x, x.correction * surrogate, {**metrics, **update_metrics(x)})


def policy_gradient(x: LossInputs) -> LossOutput:
    """REINFORCE with importance weights: w r A, clipped nowhere (Williams, 1992).

    With one mini-batch a step r is 1, and this is the plain policy gradient.
    """
    x = x.filled()
    ratio = clamped_exp(x.policy_logprobs - x.proximal_logprobs)
    return finish(x, x.correction * ratio * x.advantages, update_metrics(x))


def trust_region(
    x: LossInputs, *, divergence: Literal["tv", "kl"] = "tv", bound: float = 0.15
) -> LossOutput:
    """Mask tokens by divergence from the sampler, not by ratio (DPPO, arXiv:2602.04879).

    m r A with r = policy / rollout, m = 0 where the update would lead further away (r > 1 and
    A > 0, or r < 1 and A < 0) and the divergence of the two Bernoulli distributions "this token or
    another" is above `bound`: |policy - rollout| for `tv`, KL(rollout || policy) for `kl`. The
    sampler is the anchor, so `algorithm.correction` plays no part.
    """
    x = x.filled()
    log_ratio = x.policy_logprobs - x.rollout_logprobs
    ratio = clamped_exp(log_ratio)
    ahead = ((log_ratio > 0) & (x.advantages > 0)) | ((log_ratio < 0) & (x.advantages < 0))
    outside = binary_divergence(x.policy_logprobs.detach(), x.rollout_logprobs, divergence) > bound
    masked = ahead & outside
    surrogate = torch.where(masked, torch.zeros_like(ratio), ratio) * x.advantages
    metrics: dict[str, Metric] = {
        "clip/low": Mean(masked & (x.advantages < 0), x.loss_mask),
        "clip/high": Mean(masked & (x.advantages > 0), x.loss_mask),
    }
    unweighed = replace(x, correction=torch.ones_like(ratio))
    return finish(x, surrogate, {**metrics, **update_metrics(unweighed)})


def binary_divergence(policy: Tensor, rollout: Tensor, divergence: Literal["tv", "kl"]) -> Tensor:
    """Divergence of "this token or another" under the two policies, from logprobs [T]."""
    p, q = policy.exp(), rollout.exp()
    if divergence == "tv":
        return (p - q).abs()
    tiny = torch.finfo(p.dtype).tiny
    others = (1 - q) * ((1 - q).clamp(min=tiny).log() - (1 - p).clamp(min=tiny).log())
    return q * (rollout - policy) + others


def clip_range(x: LossInputs, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return how far each token's ratio may lie below and above 1 [T]: as its source says, else
    `low` and `high`."""
    return (
        torch.where(x.clip_low.isnan(), low, x.clip_low),
        torch.where(x.clip_high.isnan(), high, x.clip_high),
    )


def _clip(ratio: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return ratio.clamp(1 - low, 1 + high)


def _clip_metrics(x: LossInputs, ratio: Tensor, low: Tensor, high: Tensor) -> dict[str, Metric]:
    return {
        "clip/low": Mean((ratio < 1 - low) & (x.advantages < 0), x.loss_mask),
        "clip/high": Mean((ratio > 1 + high) & (x.advantages > 0), x.loss_mask),
    }


def update_metrics(x: LossInputs) -> dict[str, Metric]:
    """Return what every loss shows: the update, and the gap between sampler and trainer."""
    return {**policy_metrics(x), **mismatch_metrics(x)}


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
        estimator = "k3" if x.kl_estimator == "straight_through" else x.kl_estimator
        kl = kl_estimate(x.policy_logprobs, x.ref_logprobs, estimator)
        found["kl_ref"] = Mean(kl, x.loss_mask)
    return found


def mismatch_metrics(x: LossInputs) -> dict[str, Metric]:
    """Gap between sampler and trainer on the sampled tokens: k3 of KL(rollout || proximal),
    chi-squared, probabilities, and how many tokens were left out or weighed down."""
    gap = x.proximal_logprobs - x.rollout_logprobs
    weight = clamped_exp(gap)
    prob_diff = (x.proximal_logprobs.exp() - x.rollout_logprobs.exp()).abs()
    return {
        "mismatch/kl": Mean(
            kl_estimate(x.rollout_logprobs, x.proximal_logprobs, "k3"), x.loss_mask
        ),
        "mismatch/chi2": Mean(weight.square() - 1, x.loss_mask),
        "mismatch/weight": Mean(weight, x.loss_mask),
        "mismatch/log_gap": Mean(gap, x.loss_mask),
        "mismatch/prob_diff": Mean(prob_diff, x.loss_mask),
        "mismatch/correction": Mean(x.correction, x.loss_mask),
        "mismatch/masked": Mean(x.correction == 0, x.loss_mask),
        "mismatch/max_gap": Max(gap.abs(), x.loss_mask),
    }


BUILT_IN: Mapping[str, Callable[..., LossOutput]] = {
    "ppo_clip": ppo_clip,
    "gspo": gspo,
    "cispo": cispo,
    "policy_gradient": policy_gradient,
    "trust_region": trust_region,
}


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
    checked: LossFunction = functools.partial(cast(Callable[..., LossOutput], found), **plug.args)
    return checked
