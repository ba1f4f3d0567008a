"""Low-rank adapters: what is trained where the policy's own weights stay as they are."""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import Config, PositiveFloat, PositiveInt


class LoraConfig(Config):
    """LoRA (arXiv:2106.09685): W + alpha / rank * B A, of which A and B alone are trained."""

    rank: PositiveInt = 16
    """Inner dimension of A and B."""
    alpha: PositiveFloat = 32.0
    """Scale of the product, over `rank`."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = (
        "all-linear"
    )
    """Linear layers that get an adapter, by the end of their names (`q_proj`); `all-linear` takes
    every one but the output head."""
