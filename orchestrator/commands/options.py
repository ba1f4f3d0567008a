"""Options that several commands have."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Resume(StrEnum):
    """What to do with a run directory that already holds a run."""

    AUTO = "auto"
    NEVER = "never"


Recipe = Annotated[Path, typer.Argument(help="Recipe file, e.g. configs/recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override one field; repeatable."),
]
RunDirectory = Annotated[
    Path | None, typer.Option("--run-dir", help="Run directory; default runs/NAME.")
]
ResumeChoice = Annotated[
    Resume, typer.Option("--resume", help="auto: go on from the newest checkpoint.")
]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Resume although data, code or model changed.")
]
OnlyPlan = Annotated[
    bool, typer.Option("--plan", help="Show what it would run, and start nothing.")
]
