"""One pass over a table: every row checked, and what is kept of it, some 50 bytes a row."""

import hashlib
import json
from array import array
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from configs.errors import ConfigError, Problem
from mixing.tables.rate_column import F64, RateColumn
from mixing.tables.row_filter import RowFilter, no_column
from mixing.tables.rows import Item, MissingColumnError, RowReader
from mixing.tables.table import Place, Row, Table, column_names

I64: TypeAlias = NDArray[np.int64]
U64: TypeAlias = NDArray[np.uint64]
Bool: TypeAlias = NDArray[np.bool_]

_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of a table, N of them, by place."""

    table: Table
    reader: RowReader
    places: I64
    """[N, 5], the fields of Place."""
    prompts: U64
    """[N], hash of each row's prompt."""
    aside: Bool
    """[N], whether `held_out_where` takes the row."""
    content: str
    """Hash of all rows' content and names."""
    rates: F64 | None
    """[N], pass rates measured beforehand, NaN where there is none; None without such a column."""

    def __len__(self) -> int:
        return len(self.prompts)

    def place(self, index: int) -> Place:
        """Return where row `index` lies."""
        return Place(*map(int, self.places[index]))

    def where(self, index: int) -> str:
        """Return row `index`'s name in messages."""
        return self.table.where(self.place(index))

    def read(self, index: int) -> Item:
        """Return row `index`; ConfigError if the file is no longer what it was."""
        place = self.place(index)
        try:
            return self.reader.read(self.table.read(place))
        except (OSError, ValueError) as error:
            problem = Problem(
                where=self.table.where(place),
                what=f"the file changed after the run had read it: {error}",
                fix="Put the file back and resume, or start a new run with the new one.",
            )
            raise ConfigError(problem) from error

    def take(self, chosen: I64) -> "Rows":
        """Return some of the rows, by index."""
        return Rows(
            table=self.table,
            reader=self.reader,
            places=self.places[chosen],
            prompts=self.prompts[chosen],
            aside=self.aside[chosen],
            content=self.content,
            rates=None if self.rates is None else self.rates[chosen],
        )


class Scan:
    """Reads a table through and checks each row.

    Args:
        table: the rows that a filter took.
        aside: which of them are held out.
        at: the recipe's field, `sources.NAME.data`, for messages.
        rates: takes a column of pass rates; None where there is none.
    """

    def __init__(
        self,
        table: Table,
        reader: RowReader,
        aside: RowFilter,
        at: str,
        rates: RateColumn | None = None,
    ):
        self._table, self._reader, self._filter, self._at = table, reader, aside, at
        self._rates = rates
        self._places, self._prompts, self._ids = array("q"), array("Q"), array("Q")
        self._aside = array("b")
        self._faults: list[Problem] = []
        self._more_faults = 0
        self._lacking: dict[tuple[str, str], int] = {}
        self._columns: dict[str, None] = {}
        self._rows = 0

    def run(self, limit: int | None = None) -> Rows:
        """Return the rows; ConfigError with every malformed row, the first ones by name.

        A file that cannot be read at all raises OSError, ValueError or NotImplementedError.

        Args:
            limit: rows to look at, for a first impression; None for all.
        """
        content = hashlib.sha256()
        for place, row in self._table.scan(limit):
            self._rows += 1
            try:
                item = self._read(row)
                aside = self._filter.takes(cast(Row, row))
            except ValueError as error:
                self._fault(place, error)
                continue
            self._places.extend(place)
            self._prompts.append(item.prompt_hash)
            self._aside.append(aside)
            if item.id is not None:
                self._ids.append(_hash_of(item.id))
            if self._rates is not None:
                self._rates.take(cast(Row, row), self._table.where(place))
            name = self._table.number(place)
            content.update(f"{name}:{json.dumps(row, sort_keys=True)}\n".encode())
        rates = self._rates
        unsound = [] if rates is None else rates.problems(whole=limit is None)
        if problems := [*self._problems(), *unsound]:
            raise ConfigError(problems)
        rows = Rows(
            table=self._table,
            reader=self._reader,
            places=np.array(self._places, dtype=np.int64).reshape(-1, len(Place._fields)),
            prompts=np.array(self._prompts, dtype=np.uint64),
            aside=np.array(self._aside, dtype=np.bool_),
            content=content.hexdigest(),
            rates=None if rates is None else rates.rates,
        )
        self._refuse_double_ids(rows)
        return rows

    def _read(self, row: Row | ValueError) -> Item:
        if isinstance(row, ValueError):
            raise row
        try:
            return self._reader.read(row)
        except MissingColumnError as error:
            key = (error.field, error.column)
            self._lacking[key] = self._lacking.get(key, 0) + 1
            self._columns.update(dict.fromkeys(column_names(row)))
            raise

    def _fault(self, place: Place, error: ValueError) -> None:
        if len(self._faults) < _SHOWN:
            self._faults.append(Problem(where=self._table.where(place), what=str(error)))
        else:
            self._more_faults += 1

    def _problems(self) -> list[Problem]:
        for (field, column), count in self._lacking.items():
            if count == self._rows > 1:
                at = f"{self._at}.columns.{field}"
                return [no_column(at, column, list(self._columns))]
        if not self._more_faults:
            return self._faults
        rest = f"{self._more_faults} more malformed rows"
        return [*self._faults, Problem(where=self._at, what=rest)]

    def _refuse_double_ids(self, rows: Rows) -> None:
        """Refuse two rows with one id; equal hashes are looked up, so chance cannot refuse."""
        ids = np.array(self._ids, dtype=np.uint64)
        order = np.argsort(ids, kind="stable")
        same = np.flatnonzero(ids[order][1:] == ids[order][:-1])
        pairs: list[str] = []
        for first, second in ((int(order[i]), int(order[i + 1])) for i in same[:_SHOWN]):
            name = rows.read(first).id
            if name == rows.read(second).id:
                pairs.append(f"{rows.where(first)} and {rows.where(second)} ({name})")
        if not pairs:
            return
        rest = f" and {len(same) - _SHOWN} more" if len(same) > _SHOWN else ""
        raise ConfigError(
            Problem(
                where=f"{self._at}.columns.id",
                what=f"ids are not unique: {'; '.join(pairs)}{rest}",
                fix="Make them unique, or map another column.",
            )
        )


def _hash_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
