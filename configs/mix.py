"""The sections that say who gets how much of the batch, and when."""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import Config, NonNegativeFloat, PositiveFloat, PositiveInt


class LimitsConfig(Config):
    """Bounds on one source: repetition, count and share each have a key of their own."""

    max_epochs: PositiveInt | None = None
    """Times each item may be drawn; then the source is used up."""
    max_items: PositiveInt | None = None
    """Draws in the whole run, repeats and replacements counted; then the source is used up."""
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Most of a step, in `mix.unit`; what its weight asks above that goes to the others."""


class MixConfig(Config):
    """How weights become groups."""

    strategy: Literal["quota", "sampled"] = "quota"
    """`quota`: exact, with remainders carried over; `sampled`: drawn at random, from the seed."""
    unit: Literal["groups", "samples", "loss_tokens"] = "groups"
    """What weights are shares of; `loss_tokens` follows the lengths that were trained on."""
    temperature: PositiveFloat = 1.0
    """Shares are those of weight ** (1 / temperature): above 1 evens them out, below sharpens."""
    on_exhausted: Literal["renormalise", "stop", "repeat"] = "renormalise"
    """A used-up source: the others take its share; the run ends; or, all used up, start again."""
    over_dispatch: Annotated[float, Field(ge=1)] = 2.0
    """Most groups sampled at once per group needed, where some of a source's fail or teach nothing;
    1 samples the others only when that is known."""
    max_wait_s: PositiveFloat | None = None
    """Seconds that a step waits for late groups once the trainer is ready; empty, as long as it
    takes."""


class UntilConfig(Config):
    """What ends a stage: a step, or a metric."""

    step: PositiveInt | None = None
    """Last step of the stage."""
    metric: str | None = None
    """`eval/<source>/pass_rate` or `eval/<source>/reward_mean`."""
    gte: float | None = None
    """The metric must be at least this."""
    lte: float | None = None
    """The metric must be at most this."""
    patience: PositiveInt = 1
    """Evaluations in a row at which the metric must be there."""


class StageConfig(Config):
    """A part of the run with shares of its own."""

    until: UntilConfig | None = None
    """What ends the stage; empty, in the last one, for the rest of the run."""
    weights: dict[str, NonNegativeFloat] = {}
    """Weights by source, in place of the sources' own; who is not named keeps its own."""
    ramp: Literal["none", "linear"] = "none"
    """`linear`: weights go in equal parts from the stage before to these, reached at its end."""
    group_size: dict[str, PositiveInt] = {}
    """Group sizes by source, in place of the sources' own."""
