"""A baseline as text for people."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.baseline_stats import Bar, SourceBaseline

_WIDTH = 32
"""Characters of the longest bar."""


def render_baseline(sources: Sequence[SourceBaseline], *, bars: str) -> RenderableType:
    """Return histograms, the table of figures, and the verdicts.

    Args:
        bars: the character that bars are drawn with.
    """
    return Group(
        *(part for s in sources for part in _histogram(s, bars)),
        _figures(sources),
        _suggestions(sources),
        *(line for s in sources for line in _verdict(s)),
    )


def _histogram(found: SourceBaseline, bars: str) -> Iterator[Text]:
    yield Text(f"{found.source}: pass rate of {found.items} items", style="bold")
    most = max(1, *(bar.items for bar in found.histogram))
    for bar in found.histogram:
        filled = -(-bar.items * _WIDTH // most)  # at least one mark for one item
        yield (
            Text(f"  {_range(bar):>10} ")
            .append(bars * filled, style="cyan")
            .append(f" {bar.items}")
        )
    yield Text("")


def _range(bar: Bar) -> str:
    return f"{bar.low:.0%}" if bar.low == bar.high else f"{bar.low:.0%}-{bar.high:.0%}"


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1)
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _figures(sources: Sequence[SourceBaseline]) -> Table:
    table = _table(
        "starting policy",
        "source",
        "samples",
        "pass rate",
        "reward",
        "solved none",
        "solved all",
        "truncated",
        "invalid",
        "majority answer",
        "tokens mean",
        "p95",
    )
    for s in sources:
        table.add_row(
            s.source,
            str(s.samples),
            _share(s.pass_rate),
            "-" if s.reward_mean is None else f"{s.reward_mean:.3f}",
            _share(s.solved_none),
            _share(s.solved_all),
            _share(s.truncated),
            _share(s.invalid),
            _share(s.majority_share),
            f"{s.tokens_mean:.1f}",
            f"{s.tokens_p95:g}",
        )
    return table


def _suggestions(sources: Sequence[SourceBaseline]) -> Table:
    table = _table(
        "suggested",
        "source",
        "group size",
        "recipe has",
        "its equal-reward groups",
        "difficulty window",
        "items inside",
    )
    for s in sources:
        low, high = s.suggested_window
        table.add_row(
            s.source,
            "-" if s.suggested_group_size is None else str(s.suggested_group_size),
            str(s.group_size),
            _share(s.zero_variance),
            f"{low:g} to {high:g}",
            _share(s.in_window),
        )
    return table


def _verdict(found: SourceBaseline) -> Iterator[Text]:
    for warning in found.warnings:
        yield Text(f"warning: {found.source}: {warning}", style="yellow")
    word, style = ("go", "green") if found.go else ("no-go", "red")
    yield Text(f"{word}: {found.source}: {found.reason}", style=style)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
