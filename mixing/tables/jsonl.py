"""Rows of JSONL files: an index of byte offsets, and one line parsed at a time."""

import itertools
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, cast

from mixing.tables.row_filter import RowFilter
from mixing.tables.table import Place, Row, short_names

_BOM = b"\xef\xbb\xbf"


class JsonlTable:
    """Rows that a filter takes, one object a line; blank lines are passed over."""

    def __init__(self, paths: tuple[Path, ...], row_filter: RowFilter):
        self._paths, self._filter = paths, row_filter
        self._names = short_names(paths)

    def scan(self, limit: int | None = None) -> Iterator[tuple[Place, Row | ValueError]]:
        """Yield the rows taken, and what is wrong with a line."""
        for part, path in enumerate(self._paths if limit is None else self._paths[:1]):
            offset = 0
            with path.open("rb") as file:
                for number, line in enumerate(itertools.islice(file, limit), start=1):
                    place = Place(part, number, offset, len(line), zlib.crc32(line))
                    offset += len(line)
                    if line.strip() in (b"", _BOM):
                        continue
                    if (row := self._filter.sift(_parse_or_error(line))) is not None:
                        yield place, row

    def read(self, place: Place) -> Row:
        """Read and parse one line; ValueError if it changed since the scan."""
        handle = os.open(self._paths[place.part], os.O_RDONLY | os.O_CLOEXEC)
        try:
            line = os.pread(handle, place.length, place.offset)
        finally:
            os.close(handle)
        if zlib.crc32(line) != place.checksum:
            raise ValueError("the line changed")
        return _parse(line)

    def where(self, place: Place) -> str:
        """Return `file:line`."""
        return f"{self._paths[place.part]}:{place.number}"

    def number(self, place: Place) -> str:
        """Return the line number, after the file's name if there are several."""
        if len(self._paths) == 1:
            return str(place.number)
        return f"{self._names[place.part]}:{place.number}"


def _parse_or_error(line: bytes) -> Row | ValueError:
    try:
        return _parse(line)
    except ValueError as error:
        return error


def _parse(line: bytes) -> Row:
    """Return the object on a line; ValueError says what is wrong."""
    try:
        row = _DECODER.decode(line.removeprefix(_BOM).decode().strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start} of the line)") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(row, dict):
        raise ValueError(f"is a {type(row).__name__}, must be an object")
    return cast(Row, row)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
