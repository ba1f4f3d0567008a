"""Where a step's flat metrics go: metrics.jsonl always, and to each sink that is asked for.

A sink beside metrics.jsonl never stops training: its first failure is said, and it is left alone.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Self

from pydantic import JsonValue

from configs.redact import redact
from configs.schema import RunConfig
from orchestrator.records.run_dir import RunDir
from orchestrator.sinks.sink import Sink
from orchestrator.sinks.to_prometheus import PrometheusSink
from orchestrator.sinks.to_tensorboard import TensorboardSink
from orchestrator.sinks.to_wandb import WandbSink
from rewards.monitors.alarms import Alarm

log = logging.getLogger("braid.metrics")
_CLOSE_TIMEOUT_S = 60.0
_MOST_SAMPLES = 64
"""Rollouts of a step that sinks are shown."""


class MetricSinks:
    """All sinks of a run. Use `with MetricSinks(cfg, directory) as sinks`."""

    def __init__(self, cfg: RunConfig, directory: RunDir):
        self._cfg, self._directory = cfg, directory
        self._sinks: dict[str, Sink] = {}
        if cfg.logging.wandb != "off":
            self.add("wandb", lambda: WandbSink(cfg, directory.path, directory.run_id))
        if cfg.logging.tensorboard:
            self.add("tensorboard", lambda: TensorboardSink(directory.path / "tensorboard"))
        if cfg.logging.prometheus:
            self.add("prometheus", lambda: PrometheusSink(directory.run_id))

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
        step = int(metrics["step"])
        self._send(metrics, step)
        every = self._cfg.logging.samples_every
        if self._sinks and every and step % every == 0:
            rows = self._directory.read_rollouts(step, most=_MOST_SAMPLES)
            if rows:
                self._each(lambda sink: sink.samples(rows, step))

    def log_alarm(self, alarm: Alarm) -> None:
        """Record what a monitor raised or cleared."""
        self._directory.append_alarm(alarm.record())
        self._each(lambda sink: sink.alarm(alarm))

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
        self._each(lambda sink: sink.log(metrics, step))

    def _each(self, action: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            self._guard(name, partial(action, sink))

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
                redact(str(error)),
            )
