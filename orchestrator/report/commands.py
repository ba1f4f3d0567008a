"""`braid report`, `braid watch` and `braid diff`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="File to write.")]


def report(run: Run, out: Out = None) -> None:
    """Write a run's page: one HTML file that needs no network; default RUN/report.html."""
    from orchestrator.report.gather import RunReader
    from orchestrator.report.page import render
    from orchestrator.report.watch import page_data

    found = RunReader(run).read()
    _write(out or run / "report.html", render(page_data(found)), found["notes"])


def watch(
    run: Run,
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.", min=0)] = 0,
) -> None:
    """Serve a run's page on this machine while the run goes on; Ctrl-C ends it."""
    from orchestrator.report.watch import LivePage, listen, new_token, serve

    page, taken, token = LivePage(run), listen(port), new_token()
    host, number = taken.getsockname()
    Console().print(f"http://{host}:{number}/{token}/", soft_wrap=True, highlight=False)
    serve(page, taken, token)


def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Run directory.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Run directory.")],
    out: Out = None,
) -> None:
    """Tell what two runs differ in, and how they fared; with -o as a page with both curves."""
    from orchestrator.report.diff import compare, render_diff
    from orchestrator.report.gather import RunReader
    from orchestrator.report.page import render

    one, other = RunReader(a).read(), RunReader(b).read()
    found = compare(one, other)
    Console().print(render_diff(one, other, found))
    if out is not None:
        unread = ("samples", "config_text", "failed_groups")
        sides = [{k: v for k, v in run.items() if k not in unread} for run in (one, other)]
        title = f"{one['name']} and {other['name']} · Braid"
        data = {"kind": "diff", "title": title, "a": sides[0], "b": sides[1], "found": found}
        _write(out, render(data), [])


def _write(path: Path, page: bytes, notes: list[str]) -> None:
    from orchestrator.records.files import write_bytes_atomically

    write_bytes_atomically(path, page)
    console = Console()
    console.print(f"{path}: {len(page) / 1e6:.2f} MB", markup=False, soft_wrap=True)
    for note in notes:
        console.print(f"  {note}", markup=False, soft_wrap=True)
