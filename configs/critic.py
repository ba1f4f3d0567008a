"""The critic of sources whose advantages are `gae`: what it is, and how it is trained."""

from typing import Literal

from configs.base import Config, NonNegativeInt, PositiveFloat
from configs.engines import ActorsConfig
from configs.training import OptimizerConfig


class CriticConfig(Config):
    """The critic (PPO's); started only where some source's `advantage` is `gae`."""

    actors: ActorsConfig = ActorsConfig()
    """Ranks; `count` is its own data-parallel size."""
    path: str | None = None
    """What it starts from: a causal LM, or a sequence classifier of one output, whose head is
    taken; empty takes `model.path`."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What is partitioned: 0 nothing, 1 optimizer, 2 and gradients, 3 and parameters."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What ZeRO keeps in CPU memory: the optimizer (stage 1 on), and parameters (stage 3)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule; usually with a higher rate than the policy's."""
    value_clip: PositiveFloat | None = 0.2
    """How far a value counts as moved from what it was before the step; empty clips nothing."""
    warmup_steps: NonNegativeInt = 0
    """Training steps in which the critic learns alone, before the policy moves."""
