"""How the reference policy follows the one that is trained."""

from typing import Literal

from configs.base import Config, Fraction, PositiveInt


class RefreshConfig(Config):
    """The reference follows the policy instead of staying where the run began."""

    every: PositiveInt
    """Training steps between refreshes."""
    mode: Literal["copy", "ema"] = "copy"
    """`copy`: it becomes the policy of that step; `ema`: reference = decay * reference +
    (1 - decay) * policy, in fp32."""
    decay: Fraction = 0.9
    """Share of the reference that an `ema` keeps at each refresh."""
