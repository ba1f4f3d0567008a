"""A run's account, and the life of an item, as tables for people."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mixing.ledger.account import name_some
from orchestrator.commands.ledger import LedgerReport, Moment


def render_report(report: LedgerReport) -> RenderableType:
    """Return the account as tables, with its verdict."""
    after = f"after step {report.step}, attempt {report.attempts}"
    return Group(
        Text(f"{report.run}: {after}", style="bold"),
        _groups(report),
        _shares(report),
        *_reasons(report),
        *(Text(fault, style="red") for fault in report.faults),
        _verdict(report),
    )


def render_life(item: str, life: Sequence[Moment]) -> RenderableType:
    """Return the life of an item: each stretch of a group, and what happened in it."""
    if not life:
        return Text(f"{item}: never dispatched in this run")
    lines: list[Text] = []
    for (group, run_attempt, undone), moments in groupby(
        life, key=lambda m: (m.group, m.run_attempt, m.undone)
    ):
        end = ": undone, the run went on from a checkpoint before it" if undone else ""
        style = "dim" if undone else "bold"
        lines.append(Text(f"{group}, attempt {run_attempt} of the run{end}", style=style))
        for m in moments:
            lines.append(Text(f"  {m.time[:19].replace('T', ' ')}  {m.event} {_details(m)}"))
    return Group(*lines)


def _details(moment: Moment) -> str:
    parts: list[str] = []
    if moment.event == "dispatched":
        parts.append(f"for step {moment.step} under version {moment.version}")
    if moment.event == "moved":
        parts.append(f"as {moment.reason} from step {moment.before} to step {moment.step}")
    elif moment.reason is not None:
        parts.append(f"as {moment.reason}, {moment.why}")
    if moment.score is not None:
        score = moment.score
        reward = "no reward" if score.reward is None else f"reward {score.reward:g}"
        parts.append(f"with {score.valid} valid and {score.invalid} invalid rollouts, {reward}")
    if moment.event == "trained":
        parts.append(
            f"in step {moment.step} on {moment.samples} samples with {moment.loss_tokens} loss "
            f"tokens, giving version {moment.version}"
        )
    return ", ".join(parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(("source", *columns)):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    return table


def _groups(report: LedgerReport) -> Table:
    table = _table(
        "groups", "dispatched", "trained", "rejected", "in flight", "accepted", "survival"
    )
    for name, s in report.sources.items():
        rejected = sum(s.rejected.values())
        counts = (s.dispatched.groups, s.trained.groups, rejected, s.in_flight, s.accepted.groups)
        survival = "-" if s.survival is None else f"{s.survival:.1%}"
        table.add_row(Text(name), *(f"{count:,}" for count in counts), survival)
    return table


def _shares(report: LedgerReport) -> Table:
    units = ("of groups", "of samples", "of loss tokens", "samples", "loss tokens")
    table = _table("trained on", f"target ({report.unit.replace('_', ' ')})", *units)
    for name, s in report.sources.items():
        parts = (s.target_share, *s.trained.share.values())
        numbers = (f"{s.trained.samples:,}", f"{s.trained.tokens:,}")
        table.add_row(Text(name), *(f"{part:.1%}" for part in parts), *numbers)
    return table


def _reasons(report: LedgerReport) -> Iterator[Text]:
    for name, source in report.sources.items():
        if source.rejected:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in source.rejected.items())
            yield Text(f"{name} rejected: {reasons}")
        if source.moved:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in source.moved.items())
            yield Text(f"{name} moved to a later step: {reasons}")
        if source.rolled_back:
            yield Text(f"{name} trained on, and rolled back: {source.rolled_back:,}")


def _verdict(report: LedgerReport) -> Text:
    if report.balanced:
        return Text("balanced: dispatched = trained + rejected + in flight", style="green")
    lost = f"; lost: {name_some(report.lost)}" if report.lost else ""
    return Text(f"NOT balanced{lost}", style="bold red")
