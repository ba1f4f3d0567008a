"""The section `replay`: what a run keeps so that it can be trained again without engines."""

from configs.base import Config, PositiveInt


class ReplayConfig(Config):
    """Training batches kept for `braid train --replay`."""

    save: bool = False
    """Write what each step trains on into the run directory."""
    keep: PositiveInt | None = None
    """Newest steps kept; empty keeps all. A replay that does not start at step 1 starts from a
    checkpoint."""
