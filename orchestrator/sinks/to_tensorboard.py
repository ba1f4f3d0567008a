"""Tensorboard's event files, by its own package: without torch or TensorFlow."""

from collections.abc import Mapping
from pathlib import Path

from orchestrator.sinks.sink import Sink, by_section


class TensorboardSink(Sink):
    """Event files in one folder."""

    def __init__(self, folder: Path):
        from tensorboard.summary import Writer

        self._writer = Writer(str(folder))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one step."""
        for name, value in metrics.items():
            self._writer.add_scalar(by_section(name), value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
