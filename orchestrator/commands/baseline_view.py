"""A baseline as text for people."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.commands.baseline_stats import Bar, SourceBaseline

_WIDTH = 40
"""Characters of the longest bar."""


def render_baseline(sources: Sequence[SourceBaseline], *, bars: str) -> RenderableType:
    """Return a block a source, and all verdicts.

    Args:
        bars: the character that bars are drawn with.
    """
    blocks = (line for s in sources for line in (*_histogram(s, bars), *_figures(s), Text("")))
    return Group(*blocks, *(line for s in sources for line in _verdict(s)))


def _histogram(found: SourceBaseline, bars: str) -> Iterator[Text]:
    yield Text(f"{found.source}: {found.items} items, {found.samples} samples", style="bold")
    most = max(1, *(bar.items for bar in found.histogram))
    for bar in found.histogram:
        filled = -(-bar.items * _WIDTH // most)  # at least one mark for one item
        line = Text(f"  {_range(bar):>8} ").append(bars * filled, style="cyan")
        yield line.append(f" {bar.items}")


def _range(bar: Bar) -> str:
    return f"{bar.low:.0%}" if bar.low == bar.high else f"{bar.low:.0%}-{bar.high:.0%}"


def _figures(s: SourceBaseline) -> Iterator[Text]:
    reward = "-" if s.reward_mean is None else f"{s.reward_mean:.3f}"
    low, high = s.suggested_window
    size = s.suggested_group_size or "none that is large enough"
    yield Text(
        f"  pass rate {_share(s.pass_rate)}, reward {reward}, solved none "
        f"{_share(s.solved_none)}, solved all {_share(s.solved_all)}"
    )
    yield Text(
        f"  truncated {_share(s.truncated)}, invalid {_share(s.invalid)}, tokens mean "
        f"{s.tokens_mean:.1f} p95 {s.tokens_p95:g}, majority answer {_share(s.majority_share)}"
    )
    yield Text(
        f"  no difference in {_share(s.zero_variance)} of groups of {s.group_size}; suggested "
        f"group size: {size}"
    )
    yield Text(
        f"  suggested difficulty window: {low:g} to {high:g}, with {_share(s.in_window)} of items"
    )


def _verdict(found: SourceBaseline) -> Iterator[Text]:
    for warning in found.warnings:
        yield Text(f"warning: {found.source}: {warning}", style="yellow")
    word, style = ("go", "green") if found.go else ("no-go", "red")
    yield Text(f"{word}: {found.source}: {found.reason}", style=style)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
