"""What a run writes beside metrics.jsonl."""

from typing import Literal

from configs.base import Config, NonNegativeInt


class LoggingConfig(Config):
    """What is written beside metrics.jsonl."""

    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases: off, into the run directory, or to its server."""
    wandb_project: str = "braid"
    """Project of the W&B run."""
    tensorboard: bool = False
    """Write tensorboard event files."""
    prometheus: bool = False
    """Export metrics through Ray's agents, for Prometheus to scrape."""
    rollout_groups: NonNegativeInt = 4
    """Groups a step, of each source in turn, whose text and tokens go to `rollouts/`."""
    trainer_logprobs: bool = False
    """Have the trainer score them before it trains, which costs a forward pass of them, so that
    `braid report` shows token by token where it and the sampler differ."""
    samples_every: NonNegativeInt = 10
    """Steps between tables of those rollouts in W&B; 0 for none."""
