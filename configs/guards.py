"""What ends, or mends, a training that goes wrong: the section `guards`."""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import (
    Config,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

Remedy = Literal["warn", "shrink", "rollback", "stop"]
"""What an alarm leads to: a line; a smaller learning rate for a while; weights and optimizer of the
last good checkpoint; the end of the run, with a checkpoint."""
UpdateRemedy = Literal["warn", "skip", "shrink", "rollback", "stop"]
"""The same where it is known before the optimizer's step: with `skip`, `rollback` and `stop` the
update is not applied."""
Above = Annotated[float, Field(gt=1)]
Persist = Annotated[int, Field(ge=1, le=5)]


class GuardConfig(Config):
    """What every guard has."""

    enabled: bool = True
    """Whether it watches."""
    sigmas: PositiveFloat = 10.0
    """Robust standard deviations (1.4826 MAD) from the median of `guards.window` that it takes."""
    persist: Persist = 1
    """Steps in a row that must show it."""


class RiseConfig(GuardConfig):
    """Alarm when a figure is far above its median."""

    factor: Above = 4.0
    """Least ratio to the median."""
    margin: NonNegativeFloat = 0.0
    """Least distance from the median."""


class RiseGuardConfig(RiseConfig):
    """Alarm when a figure is far above its median."""

    action: Remedy = "warn"
    """`warn`; `shrink` the learning rate for `guards.shrink_steps`; `rollback` to the last good
    checkpoint; or `stop` the run, with a checkpoint."""


class UpdateGuardConfig(RiseConfig):
    """Alarm at an optimizer step that is far above the median, before it is applied."""

    action: UpdateRemedy = "warn"
    """`warn`; `skip` that optimizer step; `shrink`, `rollback` or `stop` as with the others."""


class FallGuardConfig(GuardConfig):
    """Alarm when a figure is far below its median."""

    action: Remedy = "warn"
    """`warn`; `shrink` the learning rate for `guards.shrink_steps`; `rollback` to the last good
    checkpoint; or `stop` the run, with a checkpoint."""
    sigmas: PositiveFloat = 4.0
    """Robust standard deviations (1.4826 MAD) from the median of `guards.window` that it takes."""
    share: Fraction = 0.4
    """Largest share of the median that is left."""
    margin: NonNegativeFloat = 0.0
    """Least distance from the median."""
    persist: Persist = 3
    """Steps in a row that must show it."""


class EntropyGuardConfig(FallGuardConfig):
    """Alarm when the policy's entropy falls at once, or is next to nothing."""

    least: NonNegativeFloat = 0.005
    """Nats a token below which it is collapsed, however slowly it came there."""


class LengthGuardConfig(RiseGuardConfig):
    """Alarm when a source's mean length jumps up or down."""

    sigmas: PositiveFloat = 5.0
    """Robust standard deviations (1.4826 MAD) from the median of `guards.window` that it takes."""
    factor: Above = 2.5
    """Least ratio to the median, or of the median to it."""
    persist: Persist = 2
    """Steps in a row that must show it."""


class NonFiniteGuardConfig(Config):
    """A loss or gradient that is NaN or infinite; such an update is never applied."""

    action: Literal["stop", "skip", "rollback"] = "stop"
    """`stop` ends the run on all ranks at once; `skip` goes on with the next update; `rollback`
    to the last good checkpoint."""


class GuardsConfig(Config):
    """Stability guards."""

    window: Annotated[int, Field(ge=10)] = 20
    """Latest steps whose median and MAD say what is usual."""
    warmup: Annotated[int, Field(ge=5)] = 10
    """Steps with the figure before a guard may see anything."""
    shrink_factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor on the learning rate after an alarm whose action is `shrink`."""
    shrink_steps: PositiveInt = 10
    """Steps that it holds."""
    good_after: PositiveInt = 5
    """Steps without an alarm after which a checkpoint counts as good."""
    max_rollbacks: NonNegativeInt = 2
    """Rollbacks in the whole run, beyond which it stops instead."""
    max_skips: PositiveInt = 5
    """Steps in a row with a skipped update, beyond which the run stops."""
    non_finite: NonFiniteGuardConfig = NonFiniteGuardConfig()
    """Loss or gradient that is no number."""
    loss: UpdateGuardConfig = UpdateGuardConfig(margin=0.05)
    """Loss of an optimizer step."""
    grad_norm: UpdateGuardConfig = UpdateGuardConfig(factor=6.0)
    """Global gradient norm of an optimizer step, before clipping."""
    kl: RiseGuardConfig = RiseGuardConfig(margin=1.0, persist=3)
    """KL to the reference, in nats a token; silent where no reference runs."""
    mismatch: RiseGuardConfig = RiseGuardConfig(margin=0.1, persist=2)
    """KL between sampler and trainer, in nats a token."""
    ratio: RiseGuardConfig = RiseGuardConfig(margin=5.0, factor=10.0)
    """Largest |policy / proximal - 1| of a step."""
    entropy: EntropyGuardConfig = EntropyGuardConfig()
    """Entropy of the policy, in nats a token."""
    reward: FallGuardConfig = FallGuardConfig(margin=0.2, share=0.6)
    """Mean reward of a source."""
    length: LengthGuardConfig = LengthGuardConfig(margin=4.0)
    """Mean tokens of a source's completions."""
