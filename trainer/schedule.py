"""The learning rate over optimizer steps."""

import math
from collections.abc import Callable

from configs.training import OptimizerConfig


def lr_factor(cfg: OptimizerConfig, *, total_steps: int) -> Callable[[int], float]:
    """Return step (from 0) -> factor of `cfg.lr`.

    Rises linearly, never from a wasted 0: the first of W warm-up steps has 1/W. A decay reaches
    `min_lr_ratio` at step total_steps - 1 and stays there.
    """
    span = max(1, total_steps - 1 - cfg.warmup_steps)

    def factor(step: int) -> float:
        if step < cfg.warmup_steps:
            return (step + 1) / cfg.warmup_steps
        if cfg.decay == "constant":
            return 1.0
        done = min(1.0, (step - cfg.warmup_steps) / span)
        left = 1 - done if cfg.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * left

    return factor
