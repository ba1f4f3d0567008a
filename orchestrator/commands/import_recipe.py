"""`braid import`: recipes from what users of other frameworks have."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ConfigError, Problem

import_app = typer.Typer(
    help="Write a recipe from another framework's data.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Out = Annotated[
    Path | None, typer.Option("--out", help="File to write, which must not exist; else stdout.")
]
RunName = Annotated[str, typer.Option("--name", help="Name of the run.")]
Model = Annotated[str, typer.Option("--model", help="The policy: folder or hub name.")]
_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"


@import_app.command("open-instruct")
def open_instruct(
    mixer_list: Annotated[
        list[str], typer.Argument(help='Mixer list: "name 0.5 name2 2000 ..."; 1.0 is all rows.')
    ],
    splits: Annotated[
        list[str] | None, typer.Option("--split", help="Split of all, or of each in turn.")
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--rows", metavar="NAME=N", help="Rows of a hub dataset, for its share."),
    ] = None,
    out: Out = None,
    name: RunName = "imported",
    model: Model = _MODEL,
) -> None:
    """Turn a dataset_mixer_list into a recipe."""
    from mixing.importers import import_open_instruct, parse_mixer_list

    entries = parse_mixer_list(mixer_list, splits or ())
    sizes = dict(_read_size(given) for given in rows or ())
    made = import_open_instruct(entries, sizes, name=name, model=model)
    _write(made.text, made.notes, out)


@import_app.command("verl")
def verl(
    files: Annotated[list[str], typer.Argument(help="Training files (Parquet).")],
    held_out: Annotated[
        list[str] | None, typer.Option("--val", help="Validation file; repeatable.")
    ] = None,
    out: Out = None,
    name: RunName = "imported",
    model: Model = _MODEL,
) -> None:
    """Turn Parquet files with a `data_source` column into a recipe, one source each."""
    from mixing.importers import import_verl

    made = import_verl(files, held_out or (), name=name, model=model)
    _write(made.text, made.notes, out)


def _read_size(given: str) -> tuple[str, int]:
    name, _, count = given.rpartition("=")
    if not name or not count.isdecimal() or int(count) == 0:
        what = "is not a dataset's name and its number of rows"
        raise ConfigError(
            Problem(where=f"--rows {given}", what=what, fix="Write it as NAME=25000.")
        )
    return name, int(count)


def _write(text: str, notes: tuple[str, ...], out: Path | None) -> None:
    """Print the recipe or write it to a new file; the notes go to stderr."""
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    if out is None:
        sys.stdout.write(text)
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise ConfigError(Problem(where=str(out), what=what, fix="Give another path.")) from error
    typer.echo(f"wrote {out}; look at it with: braid plan {out}", err=True)
