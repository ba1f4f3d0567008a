"""`braid judge`: judges by themselves."""

from pathlib import Path
from typing import Annotated

import typer

judge_app = typer.Typer(
    help="Judges: how well they agree with people.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@judge_app.callback()
def _group() -> None:
    """Keep `calibrate` a command of its own: typer would make a single one the group itself."""


@judge_app.command("calibrate")
def calibrate(
    grader: Annotated[
        Path, typer.Argument(help="YAML or JSON file of a grader that asks a judge.")
    ],
    anchors: Annotated[
        Path, typer.Option("--anchors", help="JSONL of answers labelled by people.")
    ],
    judges: Annotated[
        Path | None, typer.Option("--judges", help="File of declared judges.")
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Times that each anchor is judged.")
    ] = 1,
    min_kappa: Annotated[
        float | None, typer.Option("--min-kappa", help="Exit 3 below this weighted kappa.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Where calibrations are kept, for drift.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare a judge with people: agreement, kappa, bias, drift since its last version."""
    from orchestrator.calibration import command

    code = command(
        grader,
        anchors,
        judges,
        repeats=repeats,
        min_kappa=min_kappa,
        store=store,
        as_json=as_json,
    )
    raise typer.Exit(code)
