"""A bench as text for people, 80 columns wide."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rewards.bench.report import BenchReport, Example

_STYLES = {
    "ok": "",
    "fails": "red",
    "exploitable": "red",
    "lenient": "yellow",
    "not judged": "yellow",
}


def render_report(found: BenchReport) -> RenderableType:
    """Return the table of probes, what was paid wrongly, the figures and the verdict."""
    return Group(
        Text(f"{found.grader}: {found.rows} rows", style="bold"),
        _table(found),
        *_wrong(found),
        *_figures(found),
        *_verdict(found),
    )


def _table(found: BenchReport) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("probe", no_wrap=True)
    for column in ("tried", "mean", "max", "paid", "invalid", "p95 ms"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for p in found.probes:
        cells = (str(p.answers), _score(p.mean), _score(p.highest), str(p.paid), str(p.invalid))
        verdict = Text(p.verdict, style=_STYLES[p.verdict])
        table.add_row(p.probe, *cells, f"{p.p95_ms:.1f}", verdict)
    return table


def _wrong(found: BenchReport) -> Iterator[Text]:
    for p in found.probes:
        if p.verdict in ("ok", "not judged"):
            continue
        yield Text(f"{p.probe}: {p.says}", style=_STYLES[p.verdict])
        yield from (_example(e) for e in p.examples)


def _example(example: Example) -> Text:
    earned = f"scored {_score(example.score)}" if example.score is not None else "not judged"
    why = f" ({example.failure})" if example.failure else ""
    return Text(f"  row {example.row} {earned}{why}: {_cut(repr(example.text), 120)}")


def _figures(found: BenchReport) -> Iterator[Text]:
    yield Text("")
    yield Text(
        f"right answers earn {_score(found.reference_mean)} (standard deviation "
        f"{_score(found.reference_std)}); {found.distinct_answers} distinct answers"
    )
    yield Text(
        f"guess baseline {_score(found.guess_baseline)}: the most frequent answer, "
        f"{_cut(repr(found.majority_answer))}, is right in {found.majority_share:.1%} of rows"
    )
    if found.repeatable is not None:
        yield Text(
            f"graded again: {found.repeatable:.1%} get the same score, standard deviation "
            f"{_score(found.repeat_std)}"
        )
    yield Text(f"latency p50 {found.p50_ms:.1f} ms, p95 {found.p95_ms:.1f} ms")
    if found.failures:
        kinds = ", ".join(f"{kind} {count}" for kind, count in found.failures.items())
        yield Text(f"not judged, by kind: {kinds}")


def _verdict(found: BenchReport) -> Iterator[Text]:
    for warning in found.warnings:
        yield Text(f"warning: {warning}", style="yellow")
    for reason in found.reasons:
        yield Text(f"no-go: {reason}", style="red")
    if found.go:
        yield Text("go: right answers are paid, and nothing else that was tried", style="green")


def _cut(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
