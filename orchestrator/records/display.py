"""What the user sees: a live view in a terminal, a line a step elsewhere, a table at the end.

`render_*` are pure functions of what they show; `Display` puts them on a console.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from configs.redact import redact
from orchestrator.records.spikiness import Standing

_BARS = "▁▂▃▄▅▆▇█"
_HISTORY = 24
"""Steps of a sparkline."""
_ETA_STEPS = 10
"""Steps whose mean time the estimate of the remaining time is made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """What is shown of one training step."""

    step: int
    num_steps: int
    rewards: Mapping[str, float | None]
    """Mean reward by source; None where a step had none of it."""
    seconds: Mapping[str, float]
    """Wall time by phase."""
    wall_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalView:
    """One source's held-out figures of one evaluation."""

    step: int
    source: str
    pass_rate: float
    invalid: int
    """Rollouts that failed and are left out."""


def sparkline(values: Sequence[float | None]) -> str:
    """Draw values as bars from their least to their greatest; a gap for None or NaN."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    marks: list[str] = []
    for value in values:
        if value is None or not math.isfinite(value):
            marks.append(" ")
        else:
            at = (value - low) / span if span > 0 else 0.5
            marks.append(_BARS[round(at * (len(_BARS) - 1))])
    return "".join(marks)


def duration(seconds: float) -> str:
    """Write seconds as `42s`, `3m05s` or `2h10m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def eta_s(history: Sequence[StepView]) -> float:
    """Estimate the seconds that remain from the latest steps' mean; 0 without any step."""
    if not history:
        return 0.0
    last = history[-_ETA_STEPS:]
    mean = sum(v.wall_s for v in last) / len(last)
    return mean * (history[-1].num_steps - history[-1].step)


def render_step_line(history: Sequence[StepView]) -> str:
    """Return the last step as one plain line."""
    view = history[-1]
    rewards = "  ".join(f"{name} {_number(r)}" for name, r in view.rewards.items())
    split = " ".join(f"{name} {s:.1f}" for name, s in _largest(view.seconds, 4))
    return (
        f"step {view.step}/{view.num_steps}  reward: {rewards}  "
        f"{view.wall_s:.1f}s ({split})  {view.tokens_per_s:,.0f} tok/s  "
        f"eta {duration(eta_s(history))}"
    )


def render_live(history: Sequence[StepView], state: str) -> RenderableType:
    """Return the live view: progress, a row a source, the time split.

    Args:
        history: the latest steps, oldest first; may be empty.
        state: what goes on now, e.g. `evaluating`.
    """
    if not history:
        return Text(state)
    view = history[-1]
    head = Text.assemble(
        (f"step {view.step}/{view.num_steps}", "bold"),
        f"  {view.wall_s:.1f} s/step  {view.tokens_per_s:,.0f} tokens/s  "
        f"eta {duration(eta_s(history))}",
        (f"  {state}" if state else "", "dim"),
    )
    rewards = Table(box=SIMPLE_HEAD, padding=(0, 1))
    rewards.add_column("source")
    rewards.add_column("reward", justify="right")
    rewards.add_column(f"last {_HISTORY} steps", no_wrap=True)
    for name in view.rewards:
        past = [v.rewards.get(name) for v in history[-_HISTORY:]]
        rewards.add_row(name, _number(view.rewards[name]), sparkline(past))
    return Group(head, rewards, _time_bar(view))


def render_eval_line(results: Sequence[EvalView]) -> str:
    """Return one evaluation's pass rates as a line."""
    shown = [f"{r.source} {_percent(r.pass_rate)}{_invalid(r)}" for r in results]
    if len(results) > 1:
        shown.append(f"mean {_percent(_mean([r.pass_rate for r in results]))}")
    return f"held-out pass rate at step {results[0].step}: {'  '.join(shown)}"


def render_changes(standings: Sequence[Standing], report: Mapping[str, float]) -> Sequence[str]:
    """Return how sources fare since their start, the worst regression first, and how far training's
    reward is above the held-out one; nothing for sources that were never evaluated before.

    Args:
        report: the evaluation's line of spikiness.jsonl, which is about all sources.
    """
    moved = [s for s in standings if s.now.step > s.start.step]
    if not moved:
        return ()
    changes = [
        f"{s.source} {s.since_start:+.3f}"
        + (f" ({s.fall:.3f} below its best, step {s.best.step})" if s.fall > 0 else "")
        for s in moved
    ]
    spiky = f"spikiness {report['eval/spikiness']:.3f}, spread {report['eval/spread']:.3f}"
    gaps = [f"{s.source} {s.now.gap:+.3f}" for s in moved if s.now.gap is not None]
    return (
        f"  since the start, worst first: {'  '.join(changes)}; {spiky}",
        *([f"  training minus held-out reward: {'  '.join(gaps)}"] if gaps else ()),
    )


def render_eval_table(standings: Mapping[str, Standing | None]) -> Table:
    """Return the table of held-out pass rates per source: before, after, best, and their mean.

    Args:
        standings: by source, in the order shown; None where no evaluation gave a pass rate.
    """
    known = [s for s in standings.values() if s is not None]
    ends = {(s.start.step, s.now.step) for s in known}
    before, after = next(iter(ends)) if len(ends) == 1 else (None, None)
    table = Table(title="Held-out pass rate", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("source", overflow="fold")
    shown = [
        "before" if before is None else f"before\n(step {before})",
        "after" if after is None or after == before else f"after\n(step {after})",
    ]
    for column in ("items", *shown, "95%", "change", "best"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, standing in standings.items():
        table.add_row(name, *_standing_cells(standing, show_steps=before is None))
    if len(known) > 1:
        means = [_mean([s.start.rate for s in known]), _mean([s.now.rate for s in known])]
        table.add_section()
        change = f"{means[1] - means[0]:+.3f}" if before != after or before is None else "-"
        cells = (_percent(means[0]), _percent(means[1]), "", change, "")
        table.add_row("mean", "", *cells, style="bold")
    return table


def _standing_cells(standing: Standing | None, *, show_steps: bool) -> tuple[str, ...]:
    """Return items, before, after, the interval of after, change and best."""
    if standing is None:
        return ("", "-", "-", "-", "-", "-")
    start, now, best = standing.start, standing.now, standing.best
    before, after = (
        f"{_percent(m.rate)} @{m.step}" if show_steps else _percent(m.rate) for m in (start, now)
    )
    interval = f"{now.low:.0%} to {now.high:.0%}"
    moved = now.step > start.step
    change = f"{standing.since_start:+.3f}" if moved else "-"
    return (
        str(now.items),
        before,
        after if moved else "-",
        interval,
        change,
        f"{_percent(best.rate)} @{best.step}",
    )


class Display:
    """Shows a run on a console. Use `with Display(console) as display`."""

    def __init__(self, console: Console):
        self._console = console
        self._history: list[StepView] = []
        self._state = "starting"
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                render_live(self._history, self._state),
                console=self._console,
                refresh_per_second=4,
                transient=False,
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def step(self, view: StepView) -> None:
        """Show a finished step."""
        self._history = [*self._history, view][-max(_HISTORY, _ETA_STEPS) :]
        if self._live is None:
            self.say(render_step_line(self._history))
        self.state("")

    def state(self, text: str) -> None:
        """Show what goes on now; in a terminal alone."""
        self._state = text
        if self._live is not None:
            self._live.update(render_live(self._history, text))

    def say(self, text: str) -> None:
        """Print a line, above the live view where there is one."""
        self._console.print(redact(text), markup=False, highlight=False, soft_wrap=True)

    def finish(self, standings: Mapping[str, Standing | None]) -> None:
        """End the live view and print the final table of the sources that were evaluated."""
        self.state("")
        self.stop()
        if standings:
            self._console.print(render_eval_table(standings))

    def stop(self) -> None:
        """End the live view."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _time_bar(view: StepView) -> Text:
    total = sum(view.seconds.values()) or 1.0
    parts = [f"{name} {s:.1f}s {s / total:.0%}" for name, s in _largest(view.seconds, 6)]
    return Text("time: " + "  ".join(parts))


def _largest(seconds: Mapping[str, float], count: int) -> list[tuple[str, float]]:
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return [(name, s) for name, s in ordered[:count] if s > 0]


def _mean(rates: Sequence[float]) -> float:
    return sum(rates) / len(rates)


def _invalid(result: EvalView) -> str:
    return f" ({result.invalid} invalid)" if result.invalid else ""


def _percent(rate: float | None) -> str:
    return "-" if rate is None or not math.isfinite(rate) else f"{rate:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"
