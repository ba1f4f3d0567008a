"""What is optimised: the loss, its corrections, and its regularisers."""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import Config, NonNegativeFloat, PositiveFloat, PositiveInt, Share
from configs.plug import PlugConfig


class KLConfig(Config):
    """Penalty for leaving the reference policy."""

    coef: NonNegativeFloat = 0.0
    """Coefficient; 0 everywhere starts no reference group at all."""
    estimator: Literal["k1", "k2", "k3", "straight_through"] = "k3"
    """Per-token estimator of KL(policy || reference), after Schulman (2020); `straight_through`
    has k3's value and k2's gradient, which is the KL's. In the reward take k1."""
    placement: Literal["loss", "reward"] = "loss"
    """`loss`: added to the loss; `reward`: taken from the per-token reward, before returns."""
    target: PositiveFloat | None = None
    """KL per token with a coefficient, in nats, that all coefficients are scaled to hold
    (arXiv:1909.08593); empty leaves them as they are."""
    gain: PositiveFloat = 0.1
    """Largest relative change of the scale per step is a fifth of this."""


class EntropyConfig(Config):
    """Bonus for an undecided policy."""

    coef: NonNegativeFloat = 0.0
    """Coefficient of the entropy per token; where there is a target, the one to start with."""
    target: PositiveFloat | None = None
    """Entropy per token, in nats, below which the bonus acts and grows (arXiv:2505.22312); empty
    keeps the coefficient."""
    step: PositiveFloat = 0.005
    """Change of the coefficient after each training step that is off the target."""


class CorrectionConfig(Config):
    """What is done about tokens to which trainer and sampler give different probabilities."""

    weight: Literal["truncate", "mask", "none"] = "truncate"
    """`truncate`: importance weights, at most `high` (TIS, arXiv:1802.01561); `mask`: weights,
    and no token whose weight is outside [low, high] (IcePop, arXiv:2510.18855); `none`."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """Ratio that is weighed: each token's own, the product over its sample, or that product's
    geometric mean (arXiv:2507.18071)."""
    low: Share = 0.5
    """Smallest ratio that `mask` keeps."""
    high: Annotated[float, Field(ge=1)] = 2.0
    """Largest weight, and largest ratio that `mask` keeps."""
    max_sequence_kl: PositiveFloat | None = None
    """Tokens of negative advantage are left out of samples whose mean log(sampler / policy) per
    token is above this (off-policy sequence mask, arXiv:2512.02556); empty keeps them."""


class AlgorithmConfig(Config):
    """The objective."""

    loss: PlugConfig = PlugConfig(use="ppo_clip")
    """`ppo_clip`, `gspo`, `cispo`, `policy_gradient`, `trust_region`, or `module:function` of
    LossInputs."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """What the sum over tokens is divided by: all loss tokens of the optimizer step; each sample's
    own, then the samples; or the samples times `constant_tokens` (Dr. GRPO, arXiv:2503.20783)."""
    constant_tokens: PositiveInt | None = None
    """Tokens that `constant` counts for each sample; empty takes the largest of the sources'
    sampling.max_tokens."""
    correction: CorrectionConfig = CorrectionConfig()
    """Sampler against trainer."""
    kl: KLConfig = KLConfig()
    """KL to the reference."""
    entropy: EntropyConfig = EntropyConfig()
    """Entropy bonus."""
