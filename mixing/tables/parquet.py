"""Rows of Parquet files.

Parquet has no cheap access to one row: a row group, often the whole file, is decoded for it. So
the rows that a source takes are copied once into a temporary Arrow file, which has no name and
goes with the process.
"""

import importlib
import itertools
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import IO, Any

from mixing.tables.arrow import ArrowFile, is_plain, pyarrow, release_memory, rows_of, spool_folder
from mixing.tables.row_filter import RowFilter
from mixing.tables.table import Place, Row, short_names

_BATCH = 1024


class ParquetTable:
    """Rows of Parquet files that a filter takes.

    Args:
        columns: top-level columns to read; None for all.
    """

    def __init__(
        self, paths: tuple[Path, ...], row_filter: RowFilter, columns: Container[str] | None
    ):
        self._paths, self._filter, self._columns = paths, row_filter, columns
        self._names = short_names(paths)
        self._spool: ArrowFile | None = None

    def scan(self, limit: int | None = None) -> Iterator[tuple[Place, Row | ValueError]]:
        """Yield the rows taken, copying them to the temporary file."""
        starts, taken = list[int](), 0
        with tempfile.TemporaryFile(dir=spool_folder()) as spool:
            for part, path in enumerate(self._paths if limit is None else self._paths[:1]):
                starts.append(spool.tell())
                for number, row in self._copy(path, spool, limit):
                    yield Place(part, number, taken), row
                    taken += 1
            spool.flush()
            self._spool = ArrowFile(spool, starts=starts)
        release_memory()

    def _copy(
        self, path: Path, spool: IO[bytes], limit: int | None
    ) -> Iterator[tuple[int, Row | ValueError]]:
        """Write the rows taken of one file as a stream; yield each one's number and content."""
        arrow = pyarrow()
        with open_parquet(path) as file:
            schema, number = file.schema_arrow, 0
            if self._columns is not None:
                schema = arrow.schema([field for field in schema if field.name in self._columns])
            with arrow.ipc.new_stream(spool, schema) as writer:
                plain = is_plain(schema)
                batches = file.iter_batches(
                    batch_size=limit or _BATCH, columns=schema.names, use_threads=False
                )
                for batch in itertools.islice(batches, 1 if limit else None):
                    kept: list[int] = []
                    for i, row in enumerate(rows_of(batch, plain=plain)):
                        if (sifted := self._filter.sift(row)) is not None:
                            kept.append(i)
                            yield number + i, sifted
                    writer.write_batch(batch if len(kept) == batch.num_rows else batch.take(kept))
                    number += batch.num_rows

    def read(self, place: Place) -> Row:
        """Return one row."""
        assert self._spool is not None, "scan comes first"
        return self._spool.row(place.offset)

    def where(self, place: Place) -> str:
        """Return `file row n`."""
        return f"{self._paths[place.part]} row {place.number}"

    def number(self, place: Place) -> str:
        """Return the row number, after the file's name if there are several."""
        if len(self._paths) == 1:
            return str(place.number)
        return f"{self._names[place.part]}:{place.number}"


def open_parquet(path: Path) -> Any:
    """Open a Parquet file for reading in small batches; OSError or ValueError if it is none."""
    parquet: Any = importlib.import_module("pyarrow.parquet")
    return parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
