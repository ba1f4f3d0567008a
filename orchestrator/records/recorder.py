"""What a run writes down and shows: metrics, evaluations, alarms, the view, the table at the end.

Sums, bests, patience and monitors are functions of metrics.jsonl and eval.jsonl: entering the
recorder takes up what an earlier attempt left there, after the run directory was cut back to the
checkpoint.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import JsonValue
from rich.console import Console

from configs.schema import RunConfig
from configs.validate_mix import FIGURES
from orchestrator.evaluator import EvalResult
from orchestrator.guards import Guards
from orchestrator.records.display import (
    Display,
    EvalView,
    StepView,
    render_changes,
    render_eval_line,
)
from orchestrator.records.metrics import MetricSinks
from orchestrator.records.run_dir import RunDir
from orchestrator.records.run_totals import RunTotals
from orchestrator.records.spikiness import Standing, out_of_patience, reports, spikiness, standings
from orchestrator.records.step_metrics import StepBooks, TrainedStep, book_metrics, step_metrics
from orchestrator.records.trust import trust_lines
from rewards.monitors.alarms import Alarm
from rewards.monitors.replay import ROLLED_BACK_TO

log = logging.getLogger("braid.recorder")


class Recorder:
    """Takes what happened and gives it to files, sinks and the terminal."""

    def __init__(self, cfg: RunConfig, directory: RunDir, console: Console | None = None):
        self._cfg, self._directory = cfg, directory
        self._sinks = MetricSinks(cfg, directory)
        self._display = Display(console or Console())
        self._stack = ExitStack()
        self._totals = RunTotals([s.name for s in cfg.sources])
        self._evaluations: list[dict[str, JsonValue]] = []
        self.guards = Guards(cfg)
        self._trained: dict[str, float] = {}
        """Figures of the step that was trained last, which are not written down yet."""

    def __enter__(self) -> Self:
        self._evaluations = list(self._directory.read_eval())
        steps = list(self._directory.read_metrics())
        for metrics in steps:
            self._totals.add(metrics)
        self._take_up(self.guards.take_up(steps, self._evaluations))
        bound = self._cfg.eval.max_regression
        self._directory.rewrite_spikiness(reports(self._evaluations, bound))
        self._stack.enter_context(self._sinks)
        self._stack.enter_context(self._display)
        for alarm in self.guards.standing:
            self.say(f"standing since before: {alarm}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def state(self, text: str) -> None:
        """Show what goes on now."""
        self._display.state(text)

    def say(self, text: str) -> None:
        """Print a line, and log it."""
        log.info("%s", text)
        self._display.say(text)

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._directory.path

    def rollouts_path(self, step: int) -> Path:
        """Return the file for the step's rollouts."""
        return self._directory.rollouts_path(step)

    def has_evaluated(self, step: int, source: str) -> bool:
        """Return whether eval.jsonl has the source's figures of `step`."""
        return any(e["step"] == step and e["source"] == source for e in self._evaluations)

    def ends_early(self) -> str | None:
        """Say why the run should stop early, when it should."""
        return self.guards.ends() or out_of_patience(self._cfg, self._evaluations)

    def eval_metrics(self, step: int) -> dict[str, float]:
        """Return the figures of the evaluation after `step`, by `eval/<source>/<figure>`; those
        that nothing valid was measured for are left out."""
        return {
            f"eval/{record['source']}/{figure}": float(value)
            for record in self._directory.read_eval()
            if record["step"] == step
            for figure, value in record.items()
            if figure in FIGURES and isinstance(value, (int, float))
        }

    def evaluated(self, results: Sequence[EvalResult]) -> None:
        """Record an evaluation of some sources after one step, and how all of them fare since."""
        for result in results:
            row = self._with_gap(result)
            self._evaluations.append(row)
            self._sinks.log_eval(row)
        now, bound = standings(self._evaluations), self._cfg.eval.max_regression
        report = spikiness(results[0].step, now, bound)
        self._sinks.log_spikiness(report)
        evaluated = {r.source for r in results}
        mine = [s for s in now if s.source in evaluated]
        self.say(render_eval_line([_view(r) for r in results]))
        for line in render_changes(mine, report):
            self.say(line)
        for line in trust_lines(self._evaluations, [r.source for r in results]):
            self.say(line)
        for standing in mine:
            if standing.has_regressed(bound):
                self._warn(standing)
        for row in self._evaluations[-len(results) :]:
            self._tell(self.guards.evaluated(row))

    def trained(self, done: TrainedStep) -> None:
        """Show a trained step to the monitors, before anyone else gets its weights."""
        self._trained = step_metrics(self._cfg, done)
        if skipped := done.result.metrics.get("skipped"):
            self.say(f"step {done.step}: {skipped:.0f} updates were not applied")
        self._tell(self.guards.trained(self._trained))

    def rolled_back(self, to: int) -> None:
        """Record that the weights are those of step `to` again."""
        step = int(self._trained["step"])
        self._trained[ROLLED_BACK_TO] = float(to)
        rows = [row for row in self._directory.read_metrics() if float(str(row["step"])) <= to]
        self._tell(self.guards.rolled_back(to, rows, self._evaluations))
        text = f"rolled back after step {step}: weights and optimizer are those of step {to} again"
        log.warning("%s", text)
        self._display.say(text)

    def booked(self, done: StepBooks) -> None:
        """Write down the step that was trained last."""
        metrics = self._trained
        tokens = metrics["completion_tokens"]
        metrics.update(book_metrics(done, completion_tokens=tokens))
        self._totals.add(metrics)
        metrics.update(self._totals.metrics())
        metrics.update(self.guards.metrics())
        self._sinks.log(metrics)
        names = [s.name for s in self._cfg.sources]
        self._display.step(
            StepView(
                step=int(metrics["step"]),
                num_steps=self._cfg.num_steps,
                rewards={n: metrics.get(f"source/{n}/all/reward/mean") for n in names},
                seconds={n: s for n, s in done.split.items() if s > 0},
                wall_s=done.wall_s,
                tokens_per_s=metrics["completion_tokens_per_s"],
            )
        )

    def finished(self) -> None:
        """Show held-out pass rates at the start, at the end and at their best, and alarms."""
        found = {s.source: s for s in standings(self._evaluations)}
        names = [s.name for s in self._cfg.sources]
        evaluated = {str(e["source"]) for e in self._evaluations}
        self._display.finish({n: found.get(n) for n in names if n in evaluated})
        for alarm in self.guards.standing:
            self._display.say(f"still standing: {alarm}")

    def _take_up(self, alarms: Iterable[Alarm]) -> None:
        """Write down what the rows so far raised and cleared, where a crash came in between."""
        there = {
            (a["step"], a["source"], a["monitor"], a["event"])
            for a in self._directory.read_alarms()
        }
        for alarm in alarms:
            if (alarm.step, alarm.source, alarm.monitor, alarm.event) not in there:
                self._directory.append_alarm(alarm.record())

    def _tell(self, alarms: Iterable[Alarm]) -> None:
        for alarm in alarms:
            self._sinks.log_alarm(alarm)
            log.warning("%s", alarm)
            self._display.say(str(alarm))

    def _with_gap(self, result: EvalResult) -> dict[str, JsonValue]:
        """Return the row of eval.jsonl: the figures, and how far training's reward is above."""
        row, recent = result.record(), self._totals.recent_reward(result.source)
        row["train_reward"] = recent
        row["gap"] = None if recent is None else recent - result.reward_mean
        return row

    def _warn(self, standing: Standing) -> None:
        best, now = standing.best, standing.now
        text = (
            f"held-out pass rate of {standing.source} is {now.rate:.1%} after step {now.step}, "
            f"{standing.fall:.3f} below its best ({best.rate:.1%} at step {best.step}): more than "
            f"eval.max_regression={self._cfg.eval.max_regression:g} and the standard error "
            f"{standing.stderr:.3f}"
        )
        log.warning("%s", text)
        self._display.say(f"warning: {text}")


def _view(result: EvalResult) -> EvalView:
    return EvalView(
        step=result.step, source=result.source, pass_rate=result.pass_rate, invalid=result.invalid
    )
