"""Where a step's flat metrics go: metrics.jsonl always, W&B and tensorboard when asked.

A sink beside metrics.jsonl never stops training: its first failure is said, and it is left alone.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from pydantic import JsonValue

from configs.schema import RunConfig, dump
from orchestrator.run_dir import RunDir

log = logging.getLogger("braid.metrics")
_CLOSE_TIMEOUT_S = 60.0


class Sink(Protocol):
    """Something that takes flat metrics."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the metrics of one step."""
        ...

    def close(self) -> None:
        """Write out what is held."""
        ...


class MetricSinks:
    """All sinks of a run. Use `with MetricSinks(cfg, directory) as sinks`."""

    def __init__(self, cfg: RunConfig, directory: RunDir):
        self._directory = directory
        self._sinks: dict[str, Sink] = {}
        if cfg.logging.wandb != "off":
            self.add("wandb", lambda: WandbSink(cfg, directory.path, directory.run_id))
        if cfg.logging.tensorboard:
            self.add("tensorboard", lambda: TensorboardSink(directory.path / "tensorboard"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def log(self, metrics: Mapping[str, float]) -> None:
        """Record one step; `metrics` has its `step`."""
        self._directory.append_metrics(metrics)
        self._send(metrics, int(metrics["step"]))

    def log_eval(self, figures: Mapping[str, JsonValue]) -> None:
        """Record one source's held-out figures: `step`, `source` and numbers."""
        self._directory.append_eval(figures)
        numbers = {
            f"eval/{figures['source']}/{k}": float(v)
            for k, v in figures.items()
            if k != "step" and isinstance(v, int | float)
        }
        self._send(numbers, int(str(figures["step"])))

    def log_spikiness(self, report: Mapping[str, float]) -> None:
        """Record the report of one evaluation; it has its `step`."""
        self._directory.append_spikiness(report)
        self._send(report, int(report["step"]))

    def close(self) -> None:
        """Close every sink; one that hangs is given up after a minute."""
        for name in list(self._sinks):
            closing = threading.Thread(
                target=self._guard, args=(name, self._sinks[name].close), daemon=True
            )
            closing.start()
            closing.join(_CLOSE_TIMEOUT_S)
            if closing.is_alive():
                log.warning("%s did not close within %g s and is given up", name, _CLOSE_TIMEOUT_S)
        self._sinks.clear()

    def add(self, name: str, make: Callable[[], Sink]) -> None:
        """Start one more sink; without it, and a warning, where it does not start."""

        def attempt() -> None:
            self._sinks[name] = make()

        self._guard(name, attempt)

    def _send(self, metrics: Mapping[str, float], step: int) -> None:
        for name, sink in list(self._sinks.items()):
            self._guard(name, partial(sink.log, metrics, step))

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        """Run something of a third party's; after its first failure, go on without it."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a logger raises, training goes on
            self._sinks.pop(name, None)
            log.warning(
                "%s failed and is left out from here on (%s: %s); metrics.jsonl goes on",
                name,
                type(error).__name__,
                error,
            )


class WandbSink:
    """Weights & Biases; `step` is the axis, so that a resumed run may log a step again."""

    def __init__(self, cfg: RunConfig, folder: Path, run_id: str):
        import wandb

        self._run = wandb.init(
            project=cfg.logging.wandb_project,
            name=cfg.name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            mode="offline" if cfg.logging.wandb == "offline" else "online",
            config=dump(cfg),
            settings=wandb.Settings(init_timeout=30, silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one step."""
        self._run.log({**metrics, "step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class TensorboardSink:
    """Event files by the tensorboard package itself, without torch or TensorFlow."""

    def __init__(self, folder: Path):
        from tensorboard.summary import Writer

        self._writer = Writer(str(folder))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log one step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
