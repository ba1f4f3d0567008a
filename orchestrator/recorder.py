"""What a run writes down and shows: metrics, evaluations, the view, the table at the end."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console

from configs.schema import RunConfig
from orchestrator.display import Display, EvalView, StepView
from orchestrator.evaluator import EvalResult
from orchestrator.metrics import MetricSinks
from orchestrator.publisher import SyncReport
from orchestrator.run_dir import RunDir
from orchestrator.step_metrics import step_metrics
from rollouts.types import GroupSummary, StepResult

log = logging.getLogger("braid.recorder")


class Recorder:
    """Takes what happened and gives it to files, sinks and the terminal."""

    def __init__(self, cfg: RunConfig, directory: RunDir, console: Console | None = None):
        self._cfg, self._directory = cfg, directory
        self._sinks = MetricSinks(cfg, directory)
        self._display = Display(console or Console())
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._sinks)
        self._stack.enter_context(self._display)
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

    def rollouts_path(self, step: int) -> Path:
        """Return the file for the step's rollouts."""
        return self._directory.rollouts_path(step)

    def has_evaluated(self, step: int) -> bool:
        """Return whether eval.jsonl has every source's figures of `step`."""
        found = {e["source"] for e in self._directory.read_eval() if e["step"] == step}
        return {s.name for s in self._cfg.sources} <= found

    def evaluated(self, results: Sequence[EvalResult]) -> None:
        """Record an evaluation."""
        for result in results:
            self._sinks.log_eval(asdict(result))
        self._display.evaluated([_view(asdict(r)) for r in results])

    def trained(
        self,
        *,
        step: int,
        groups: Sequence[GroupSummary],
        result: StepResult,
        sync: SyncReport,
        wall_s: float,
        split: Mapping[str, float],
        failed_groups: int,
        difficulty: Mapping[str, float],
    ) -> None:
        """Record a trained step.

        Args:
            difficulty: where windows and curricula stand, as metrics.
        """
        metrics = step_metrics(
            step=step,
            groups=groups,
            result=result,
            sync=sync,
            wall_s=wall_s,
            split=split,
            failed_groups=failed_groups,
        )
        self._sinks.log({**metrics, **difficulty})
        names = [s.name for s in self._cfg.sources]
        self._display.step(
            StepView(
                step=step,
                num_steps=self._cfg.num_steps,
                rewards={n: metrics.get(f"source/{n}/reward/mean") for n in names},
                seconds={n: s for n, s in split.items() if s > 0},
                wall_s=wall_s,
                tokens_per_s=metrics["completion_tokens_per_s"],
            )
        )

    def finished(self) -> None:
        """Show held-out pass rates of the first and the last evaluation."""
        found = self._directory.read_eval()
        steps = [int(str(e["step"])) for e in found]
        if not found:
            return
        first, last = min(steps), max(steps)
        before = [_view(e) for e, s in zip(found, steps, strict=True) if s == first]
        after = [_view(e) for e, s in zip(found, steps, strict=True) if s == last]
        self._display.finish(before, after if last > first else ())


def _view(figures: Mapping[str, object]) -> EvalView:
    rate = figures["pass_rate"]
    return EvalView(
        step=int(str(figures["step"])),
        source=str(figures["source"]),
        n=int(str(figures["n"])),
        pass_rate=float("nan") if rate is None else float(str(rate)),
    )
