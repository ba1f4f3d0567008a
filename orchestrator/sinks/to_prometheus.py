"""Prometheus, through Ray: the driver's node exports what is set here, beside Ray's own metrics.

Every number of a step and an evaluation is a gauge (`families`); what only grows is a counter
too, from the start of the attempt; the time of a step is a histogram. A gauge keeps its last
value through steps that have none.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from orchestrator.sinks.families import PREFIX, sample
from orchestrator.sinks.sink import Sink
from rewards.monitors.alarms import Alarm

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge, Histogram

COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    f"{PREFIX}_steps_total": ("Steps trained.", ("run",)),
    f"{PREFIX}_completion_tokens_total": ("Tokens sampled and trained on.", ("run",)),
    f"{PREFIX}_source_groups_total": ("Groups trained on.", ("run", "source")),
    f"{PREFIX}_source_loss_tokens_total": ("Loss tokens trained on.", ("run", "source")),
    f"{PREFIX}_alarms_total": ("Alarms raised.", ("run", "source", "monitor")),
}
"""Name -> description and labels."""
STEP_SECONDS = f"{PREFIX}_step_seconds"
_BOUNDS = [0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800]


class PrometheusSink(Sink):
    """Metrics of one run; made before Ray starts, used after."""

    def __init__(self, run: str):
        self._run = run
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._histogram: Histogram | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Set every gauge, and where it is a trained step, count it."""
        finite = {k: float(v) for k, v in metrics.items() if math.isfinite(v)}
        for name, value in finite.items():
            self._set(name, value)
        if "time/step" in finite:
            self._count_step(finite)

    def alarm(self, alarm: Alarm) -> None:
        """Count an alarm that is raised."""
        if alarm.event == "raised":
            self._add("alarms_total", 1, source=alarm.source, monitor=alarm.monitor)

    def _count_step(self, metrics: Mapping[str, float]) -> None:
        self._observe(metrics["time/step"])
        self._add("steps_total", 1)
        self._add("completion_tokens_total", metrics.get("completion_tokens", 0))
        for name, value in metrics.items():
            kind, source, *rest = (*name.split("/"), "", "")[:4]
            unit = rest[0] if rest else ""
            if kind == "source" and name.count("/") == 2 and unit in ("groups", "loss_tokens"):
                self._add(f"source_{unit}_total", value, source=source)

    def _set(self, name: str, value: float) -> None:
        from ray.util.metrics import Gauge

        wanted = sample(name, self._run)
        gauge = self._gauges.get(wanted.family)
        if gauge is None:
            about = f"Metric {name} of metrics.jsonl or eval.jsonl."
            gauge = Gauge(wanted.family, description=about, tag_keys=tuple(wanted.labels))
            self._gauges[wanted.family] = gauge
        gauge.set(value, tags=dict(wanted.labels))

    def _add(self, name: str, value: float, **labels: str) -> None:
        from ray.util.metrics import Counter

        family = f"{PREFIX}_{name}"
        about, keys = COUNTERS[family]
        if family not in self._counters:
            self._counters[family] = Counter(family, description=about, tag_keys=keys)
        if value > 0:
            self._counters[family].inc(value, tags={"run": self._run, **labels})

    def _observe(self, seconds: float) -> None:
        from ray.util.metrics import Histogram

        if self._histogram is None:
            about = "Wall time of a step."
            self._histogram = Histogram(
                STEP_SECONDS, description=about, boundaries=_BOUNDS, tag_keys=("run",)
            )
        self._histogram.observe(seconds, tags={"run": self._run})
