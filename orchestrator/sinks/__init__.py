"""Where a run's metrics go beside its own files: W&B, tensorboard, Prometheus."""
