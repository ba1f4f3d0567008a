"""Rows of Arrow data in files, mapped into memory and handed back as they are read.

pyarrow alone is used, and imported when a source needs it; `datasets` would cost 90 MB more.
"""

import bisect
import importlib
import json
import math
import mmap
import os
from collections.abc import Container, Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast

from pydantic import JsonValue

from mixing.tables.table import Row

_READS_KEPT = 256
"""Single rows read before the pages they touched are handed back."""


class ArrowFile:
    """Record batches of an Arrow stream file, mapped: what was read can be dropped at any time.

    Args:
        starts: bytes at which streams begin; there may be several in a file.
        columns: top-level columns to read; None for all.
    """

    def __init__(
        self,
        file: IO[bytes],
        *,
        starts: Sequence[int] = (0,),
        columns: Container[str] | None = None,
    ):
        arrow = pyarrow()
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = arrow.py_buffer(self._map)
        self._batches: list[Any] = []
        for start in starts:
            for batch in arrow.ipc.open_stream(data.slice(start)):
                self._batches.append(batch if columns is None else _select(batch, columns))
        self._ends: list[int] = []
        for batch in self._batches:
            self._ends.append(batch.num_rows + (self._ends[-1] if self._ends else 0))
        self._plain = all(is_plain(schema) for schema in {b.schema for b in self._batches})
        self._reads = 0

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def rows(self) -> Iterator[tuple[int, Row | ValueError]]:
        """Yield all rows with their indices."""
        index = 0
        for batch in self._batches:
            for row in rows_of(batch, plain=self._plain):
                yield index, row
                index += 1
            self._forget(batch.num_rows)
        release_memory()

    def row(self, index: int) -> Row:
        """Return one row; ValueError if it has a value that JSON cannot have."""
        at = bisect.bisect_right(self._ends, index)
        batch = self._batches[at]
        within = index - (self._ends[at] - batch.num_rows)
        (row,) = rows_of(batch.slice(within, 1), plain=self._plain)
        self._forget(1)
        if isinstance(row, ValueError):
            raise row
        return row

    def _forget(self, reads: int) -> None:
        """Hand back the pages now and then, so that they do not count as our memory."""
        self._reads += reads
        if self._reads >= _READS_KEPT:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._reads = 0


def release_memory() -> None:
    """Give back what decoding took; Arrow would keep it for the next time."""
    pyarrow().default_memory_pool().release_unused()


def is_plain(schema: Any) -> bool:
    """Whether all values of an Arrow schema are JSON as they come."""
    return all(_is_plain(field.type) for field in schema)


def rows_of(batch: Any, *, plain: bool) -> Iterator[Row | ValueError]:
    """Yield the rows of a record batch as JSON has them.

    Args:
        plain: what `is_plain` says of its schema.
    """
    for row in cast("list[dict[str, object]]", batch.to_pylist()):
        if plain:
            yield cast(Row, row)
        else:
            try:
                yield {key: _to_json(value, key) for key, value in row.items()}
            except ValueError as error:
                yield error


def map_files(paths: Sequence[Path], columns: Container[str] | None) -> Iterator[ArrowFile]:
    """Map whole files, of one stream each."""
    for path in paths:
        with path.open("rb") as file:
            yield ArrowFile(file, columns=columns)


def _select(batch: Any, columns: Container[str]) -> Any:
    return batch.select([name for name in batch.schema.names if name in columns])


def spool_folder() -> str | None:
    """Return where large temporary files go: not to /tmp, which may be memory."""
    return os.environ.get("TMPDIR") or ("/var/tmp" if os.path.isdir("/var/tmp") else None)


def pyarrow() -> Any:
    importlib.import_module("pyarrow.ipc")
    return importlib.import_module("pyarrow")


def _is_plain(kind: Any) -> bool:
    types: Any = importlib.import_module("pyarrow.types")
    if types.is_struct(kind):
        return all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_plain(kind.value_type)
    simple = (types.is_string, types.is_large_string, types.is_integer, types.is_boolean)
    return types.is_null(kind) or any(check(kind) for check in simple)


def _to_json(value: object, column: str) -> JsonValue:
    """Return an Arrow value as JSON: times as text, NaN, which stands for missing, as null."""
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError(f"`{column}` is {value}, which is not JSON")
        return None if math.isnan(value) else value
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {str(k): _to_json(v, f"{column}.{k}") for k, v in items}
    if isinstance(value, (list, tuple)):
        return [_to_json(v, column) for v in cast("list[object]", value)]
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, Decimal):
        return json.loads(str(value))
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise ValueError(
        f"`{column}` holds {type(value).__name__}, which is not JSON; list the columns that "
        "graders need in `columns.metadata`"
    )
