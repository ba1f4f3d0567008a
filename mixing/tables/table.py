"""Rows on disk, read one at a time: what JSONL, Parquet and hub data have in common."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias

from pydantic import JsonValue

Row: TypeAlias = dict[str, JsonValue]


class Place(NamedTuple):
    """Where one row lies: five whole numbers, so that a million of them are 40 MB of numpy."""

    part: int
    """Which of the table's files."""
    number: int
    """What people call it: line from 1 (JSONL), row from 0 (Parquet, hub)."""
    offset: int
    """Byte in the file (JSONL), row of the Arrow data (others)."""
    length: int = 0
    """Bytes (JSONL)."""
    checksum: int = 0
    """Of these bytes (JSONL), to notice a file that is no longer what it was."""


class Table(Protocol):
    """The rows that a filter takes, in a fixed order, read from disk one at a time."""

    def scan(self, limit: int | None = None) -> Iterator[tuple[Place, Row | ValueError]]:
        """Yield the rows taken, with their places; a malformed one as the error that says why.

        Args:
            limit: rows of the first file to look at, taken or not; None for all of all files.
        """
        ...

    def read(self, place: Place) -> Row:
        """Return the row at a place that a whole `scan` gave; OSError or ValueError if it is
        there no more."""
        ...

    def where(self, place: Place) -> str:
        """Return the row's name in messages: `file.jsonl:17`, `file.parquet row 16`."""
        ...

    def number(self, place: Place) -> str:
        """Return the row's name in item ids: its number, after its file's name if there are
        several."""
        ...


def short_names(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Return each file's path below the folder that all are in: the same on every machine."""
    if len(paths) == 1:
        return (paths[0].name,)
    parents = [path.absolute().parent.parts for path in paths]
    shared = 0
    for level in zip(*parents, strict=False):
        if len(set(level)) > 1:
            break
        shared += 1
    return tuple("/".join(path.absolute().parts[shared:]) for path in paths)


def value_at(row: Mapping[str, JsonValue], column: str) -> JsonValue:
    """Return the value of a column, `a.b` of a nested one; KeyError if the row has none."""
    if column in row:
        return row[column]
    first, *inner = column.split(".")
    value = row[first]
    for key in inner:
        if not isinstance(value, dict):
            raise KeyError(column)
        value = value[key]
    return value


def column_names(row: Mapping[str, JsonValue]) -> Iterator[str]:
    """Yield the row's columns and, dotted, those one level below."""
    for key, value in row.items():
        yield key
        if isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in value)
