"""All monitors of a run, and the alarms that stand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from configs.guards import FallGuardConfig, RiseGuardConfig, UpdateGuardConfig, UpdateRemedy
from configs.monitors import MonitorConfig
from configs.schema import RunConfig, SourceConfig
from rewards.monitors.alarms import Alarm, Figures, Latch, Looked, Monitor
from rewards.monitors.gaps import GapMonitor, HeldOutMonitor
from rewards.monitors.levels import CountMonitor, KLMonitor
from rewards.monitors.sudden import (
    GRAD_NORM,
    LOSS,
    FallGuard,
    LengthGuard,
    NonFiniteGuard,
    RiseGuard,
)
from rewards.monitors.texts import AnswersMonitor, FormatMonitor, LengthMonitor, RepetitionMonitor

Row = Mapping[str, JsonValue] | Mapping[str, float]
_RISES = (
    ("loss", LOSS, "loss"),
    ("grad_norm", GRAD_NORM, "gradient norm"),
    ("kl", "train/kl_ref", "KL to the reference"),
    ("mismatch", "train/mismatch/kl", "KL between sampler and trainer"),
    ("ratio", "train/ratio/max_deviation", "largest |policy / proximal - 1|"),
)
"""Guards of the run against a rise: field, metric, and what an alarm calls it."""


@dataclass(slots=True, kw_only=True)
class _Watcher:
    """One monitor of one source; of the run where `source` is empty."""

    source: str
    name: str
    action: UpdateRemedy
    monitor: Monitor
    latch: Latch

    def hear(self, step: int, looked: Looked | None) -> Iterator[Alarm]:
        """Pass on what the monitor saw; yield an alarm if that raises or clears one."""
        if looked is None:
            return
        event = self.latch.observe(looked.finding)
        if event is not None:
            yield self.alarm(step)

    def alarm(self, step: int) -> Alarm:
        """Return how things stand as an alarm."""
        standing = self.latch.standing
        return Alarm(
            step=step,
            source=self.source,
            monitor=self.name,
            event="cleared" if standing is None else "raised",
            action=self.action,
            text="no longer seen" if standing is None else standing.text,
            figures={} if standing is None else standing.figures,
        )


class MonitorBoard:
    """Shows every row to the monitors that it concerns.

    Nothing but rows comes in: a resumed run shows it those of metrics.jsonl and eval.jsonl up to
    its checkpoint, and has the same board.
    """

    def __init__(self, cfg: RunConfig):
        self._cfg = cfg
        self.start()

    def start(self) -> None:
        """Forget all that was shown."""
        cfg = self._cfg
        self._watchers = [w for s in cfg.sources for w in _watchers(cfg, s)]
        if cfg.monitors.kl.enabled:
            kl = KLMonitor(cfg.monitors, cfg.monitors.kl)
            self._watchers.append(_watcher(cfg, "", "kl", cfg.monitors.kl, kl))
        self._watchers += _guards(cfg)
        self._step = 0

    def trained(self, row: Row) -> tuple[Alarm, ...]:
        """Take a row of metrics.jsonl; return what it raised and cleared."""
        self._step = int(str(row["step"]))
        return tuple(
            alarm
            for w in self._watchers
            for alarm in w.hear(
                self._step,
                w.monitor.observe(Figures(row, f"source/{w.source}/" if w.source else "")),
            )
        )

    def evaluated(self, row: Row) -> tuple[Alarm, ...]:
        """Take a row of eval.jsonl; return what it raised and cleared."""
        step, source = int(str(row["step"])), row["source"]
        return tuple(
            alarm
            for w in self._watchers
            if w.source == source
            for alarm in w.hear(step, w.monitor.evaluated(step, Figures(row, "")))
        )

    def limits(self) -> dict[str, float]:
        """Return what the next step's figures must not exceed, of each guard against a rise."""
        return {
            w.name.removeprefix("guards/"): w.monitor.limit
            for w in self._watchers
            if isinstance(w.monitor, RiseGuard)
        }

    @property
    def standing(self) -> tuple[Alarm, ...]:
        """The alarms that are raised now, with their latest figures."""
        raised = (w for w in self._watchers if w.latch.standing is not None)
        return tuple(w.alarm(self._step) for w in raised)

    def metrics(self) -> dict[str, float]:
        """Return 1 for each alarm that stands and 0 for the others, by metric name."""
        return {
            f"source/{w.source}/alarm/{w.name}" if w.source else f"alarm/{w.name}": float(
                w.latch.standing is not None
            )
            for w in self._watchers
        }


def _watchers(cfg: RunConfig, source: SourceConfig) -> Iterator[_Watcher]:
    run = cfg.monitors
    for name, monitor in _monitors(cfg, source):
        own: MonitorConfig = getattr(run, name)
        if own.enabled:
            yield _watcher(cfg, source.name, name, own, monitor)


def _watcher(
    cfg: RunConfig, source: str, name: str, own: MonitorConfig, monitor: Monitor
) -> _Watcher:
    persist = cfg.monitors.held_out.evaluations if name == "held_out" else cfg.monitors.persist
    return _Watcher(
        source=source, name=name, action=own.action, monitor=monitor, latch=Latch(persist)
    )


def _guards(cfg: RunConfig) -> Iterator[_Watcher]:
    """Yield the stability guards of the run and of its sources."""
    run = cfg.guards

    def watcher(source: str, name: str, monitor: Monitor) -> Iterator[_Watcher]:
        own: RiseGuardConfig | UpdateGuardConfig | FallGuardConfig = getattr(run, name)
        if own.enabled:
            latch = Latch(own.persist)
            yield _Watcher(
                source=source,
                name=f"guards/{name}",
                action=own.action,
                monitor=monitor,
                latch=latch,
            )

    yield _Watcher(
        source="",
        name="guards/non_finite",
        action=run.non_finite.action,
        monitor=NonFiniteGuard(),
        latch=Latch(1),
    )
    for name, key, called in _RISES:
        yield from watcher("", name, RiseGuard(run, getattr(run, name), key=key, name=called))
    entropy = FallGuard(run, run.entropy, key="train/entropy", name="entropy")
    yield from watcher("", "entropy", entropy)
    for source in cfg.sources:
        reward = FallGuard(run, run.reward, key="all/reward/mean", name="mean reward")
        yield from watcher(source.name, "reward", reward)
        yield from watcher(source.name, "length", LengthGuard(run, run.length))


def _monitors(cfg: RunConfig, source: SourceConfig) -> Iterator[tuple[str, Monitor]]:
    """Yield a source's monitors by their field of `monitors`; those that cannot see are left
    out."""
    run, watch = cfg.monitors, source.watch
    if source.gold is not None:
        yield (
            "gold",
            GapMonitor(
                run,
                run.gold,
                proxy="all/gold/reward",
                trusted="all/gold/mean",
                names=("reward", "gold"),
            ),
        )
    if watch.compare is not None:
        judge, verifier = watch.compare
        yield (
            "disagreement",
            GapMonitor(
                run,
                run.disagreement,
                proxy=f"all/reward_part/{judge}",
                trusted=f"all/reward_part/{verifier}",
                names=watch.compare,
            ),
        )
    yield "held_out", HeldOutMonitor(run, run.held_out)
    yield "length", LengthMonitor(run, run.length)
    yield "answers", AnswersMonitor(run, run.answers)
    yield "repetition", RepetitionMonitor(run, run.repetition)
    yield "format", FormatMonitor(run, run.format, watch.format)
    attempts = "the sandbox saw {count} attempts to tamper with the grading in {steps} steps"
    yield "tampering", CountMonitor(run, "all/tampering", run.tampering.attempts, attempts)
    passed = "{count} known-wrong solutions passed all tests in {steps} steps"
    yield "canary", CountMonitor(run, "all/canaries_passed", 1, passed)
