"""The sections that say which items of a source are worth training on."""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import Config, Fraction, NonNegativeInt, PositiveInt


class EasyConfig(Config):
    """What becomes of an item that the policy has mastered."""

    retire_after: NonNegativeInt = 3
    """Visits in a row above the window after which an item is retired; 0 never."""
    retry_every: NonNegativeInt = 0
    """Steps after which a retired item is tried again, in case it was forgotten; 0 never."""


class HardConfig(Config):
    """What becomes of an item that is hopeless for now."""

    park_after: NonNegativeInt = 3
    """Visits in a row below the window after which an item is parked; 0 never."""
    retry_every: PositiveInt = 100
    """Steps after which a parked item is tried again."""


class DifficultyConfig(Config):
    """Which items are worth training on, by the policy's own pass rate on each."""

    window: tuple[Fraction, Fraction] | None = None
    """Lowest and highest pass rate, both within, at which an item teaches; empty trains on all."""
    estimate: Literal["ema", "mean"] = "ema"
    """An item's pass rate: `ema` lets later visits count more, `mean` is over all its rollouts."""
    decay: Fraction = 0.5
    """Weight that `ema` gives to the past at each visit; 0 takes the last visit alone."""
    min_obs: PositiveInt = 2
    """Visits of an item before it may be retired or parked."""
    easy: EasyConfig = EasyConfig()
    """The mastered."""
    hard: HardConfig = HardConfig()
    """The hopeless."""
    retry_share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Most of the source's draws that retries may take while other items are live."""
    min_live: PositiveInt | None = None
    """Live items below which the window widens to the nearest others; empty takes 8, or all."""
    min_live_share: Fraction = 0.0
    """The same as a share of the source's items; the larger of the two holds."""
    pass_rate_column: str | None = None
    """Column with a pass rate measured beforehand, 0 to 1; it counts as an item's first visit."""
    drop_zero_variance: bool = False
    """Replace a group whose valid rewards are all equal by a fresh task of the source."""
    max_resamples: NonNegativeInt = 2
    """Replacements of one group of a step; the last is kept and trained with zero advantage."""


class CurriculumConfig(Config):
    """Levels of a reasoning-gym dataset, moved by the source's `difficulty.window`."""

    start: NonNegativeInt | None = None
    """Level at the start of the run; empty for no curriculum."""
    max_level: NonNegativeInt | None = None
    """Highest level; empty for the highest that any attribute has."""
    attributes: dict[str, NonNegativeInt] = {}
    """Attributes that move, each with its highest level; empty for all, to their last level."""
    ranges: Literal["upper_bound", "inclusive"] = "upper_bound"
    """A range at level n: what level n adds, or `inclusive` of all the levels below."""
    patience: PositiveInt = 16
    """Groups at a level whose mean pass rate decides whether the next is harder or easier."""
