"""A source whose items are rows: of JSONL or Parquet files, or of a hub dataset."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from configs.data_files import find_files
from configs.errors import ConfigError, Problem
from configs.schema import SourceConfig
from configs.validate_data import data_kind
from mixing.sources.source import digest, with_instruction
from mixing.tables.hub import HubTable
from mixing.tables.jsonl import JsonlTable
from mixing.tables.parquet import ParquetTable
from mixing.tables.rate_column import F64, RateColumn
from mixing.tables.row_filter import RowFilter
from mixing.tables.rows import RowReader, columns_read
from mixing.tables.saved_folder import is_saved_folder
from mixing.tables.scan import Rows, Scan
from mixing.tables.split import split_as_given, split_by_hash, take_part
from mixing.tables.table import Table
from rollouts.types import Task

_CACHED = 1024
_SMALL = 2 << 20
"""Bytes up to which `probe` reads files whole."""
_PROBED = 256
"""Rows that it reads of larger ones."""


class TableSource:
    """Rows read when they are drawn; what stays in memory is an index of some 50 bytes a row.

    Raises:
        ConfigError: every malformed row, or what is wrong with filter, ids or split.
    """

    def __init__(self, cfg: SourceConfig):
        self._cfg, data, at = cfg, cfg.data, f"sources.{cfg.name}.data"
        rows, apart = _read_both(cfg)
        if apart is not None:
            field = "held_out_file" if data.held_out_file else "held_out_split"
            training, held_out = split_as_given(rows, apart, data, f"{at}.{field}")
        elif data.held_out_where:
            apart = rows.take(np.flatnonzero(rows.aside))
            rest = rows.take(np.flatnonzero(~rows.aside))
            training, held_out = split_as_given(rest, apart, data, f"{at}.held_out_where")
        else:
            training, held_out = split_by_hash(rows, data, at)
        self._training = take_part(training, data)
        self._held_out = tuple(self._task(held_out, i, "held_out") for i in range(len(held_out)))
        content = [rows.content] if apart is None else [rows.content, apart.content]
        self._fingerprint = digest("/".join([*content, _meaning(cfg)]))
        self.task = lru_cache(maxsize=_CACHED)(self._make)

    @property
    def size(self) -> int:
        """Training items of an epoch."""
        return len(self._training)

    @property
    def fingerprint(self) -> str:
        """Hash of the rows' content, and of how they are read and split; of no path."""
        return self._fingerprint

    def held_out(self) -> tuple[Task, ...]:
        """Return the evaluation items."""
        return self._held_out

    def offline_rates(self) -> F64 | None:
        """Return the training items' pass rates by `difficulty.pass_rate_column`."""
        return self._training.rates

    def _make(self, item: int) -> Task:
        """Return training item `item`."""
        if not 0 <= item < self.size:
            raise IndexError(f"{self._cfg.name} has no item {item}; its size is {self.size}")
        return self._task(self._training, item, "train")

    def _task(self, rows: Rows, index: int, side: str) -> Task:
        item = rows.read(index)
        name = rows.table.number(rows.place(index)) if item.id is None else item.id
        return Task(
            task_id=f"{self._cfg.name}/{side}/{name}",
            source=self._cfg.name,
            prompt=with_instruction(self._cfg.instruction, item.prompt),
            answer=item.answer,
            metadata=item.metadata,
        )


def probe(cfg: SourceConfig) -> int | None:
    """Check a source in little time: whole if its files are small, else their first rows. Return
    its training items, None where that is not known.

    Raises:
        ConfigError: what was found.
    """
    data = cfg.data
    files = find_files([*(data.jsonl or ()), *(data.parquet or ()), *(data.held_out_file or ())])
    if data.hub is not None:
        if not is_saved_folder(Path(data.hub)):
            return None
        files = tuple(Path(data.hub).rglob("*.arrow"))
    if sum(path.stat().st_size for path in files) <= _SMALL:
        return TableSource(cfg).size
    _read_both(cfg, limit=_PROBED)
    return None


def _read_both(cfg: SourceConfig, limit: int | None = None) -> tuple[Rows, Rows | None]:
    """Read the rows, and the held-out ones if they lie apart; tell the problems of both."""
    problems: list[Problem] = []
    made: list[Rows | None] = []
    for apart in (False, True):
        try:
            made.append(_read(cfg, apart=apart, limit=limit))
        except ConfigError as error:
            problems.extend(error.problems)
    rows, held_out = made if not problems else (None, None)
    if rows is None:
        raise ConfigError(problems)
    return rows, held_out


def _read(cfg: SourceConfig, *, apart: bool, limit: int | None) -> Rows | None:
    """Read the training side's rows, or those held out apart; None if none are held out so."""
    data, at = cfg.data, f"sources.{cfg.name}.data"
    field = data_kind(data)
    if apart:
        fields = ("held_out_file", "held_out_split")
        field = next((f for f in fields if getattr(data, f)), None)
    if field is None:
        return None
    where = RowFilter(data.where, f"{at}.where")
    aside = RowFilter({} if apart else data.held_out_where, f"{at}.held_out_where")
    column = None if apart else cfg.difficulty.pass_rate_column
    rates = None if column is None else RateColumn(column, f"sources.{cfg.name}.difficulty")
    reader = RowReader(data, instructed=bool(cfg.instruction))
    try:
        rows = Scan(_table(cfg, field, where), reader, aside, at, rates).run(limit)
    except (OSError, ValueError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ConfigError(
            Problem(where=f"{at}.{field}", what=f"cannot be read: {reason}")
        ) from error
    if limit is None:
        _refuse_empty(rows, [*where.problems(), *aside.problems()], f"{at}.{field}")
    return rows


def _refuse_empty(rows: Rows, filters: list[Problem], at: str) -> None:
    if not filters and not len(rows):
        filters = [Problem(where=at, what="has no rows", fix="Add rows.")]
    if filters:
        raise ConfigError(filters)


def _table(cfg: SourceConfig, field: str, where: RowFilter) -> Table:
    data = cfg.data
    if data.hub is not None:
        split = data.held_out_split if field == "held_out_split" else data.split
        return HubTable(cfg, split or data.split, where)
    files = find_files(getattr(data, field))
    if data.jsonl is not None:
        return JsonlTable(files, where)
    return ParquetTable(files, where, columns_read(cfg))


def _meaning(cfg: SourceConfig) -> str:
    """Return what decides, besides the rows' content, which item has which number."""
    data = cfg.data
    decisive = {
        "format",
        "columns",
        "where",
        "fraction",
        "max_prompts",
        "held_out",
        "held_out_where",
    }
    kept = data.model_dump(mode="json", include=decisive)
    kept["instruction"] = cfg.instruction
    if data.hub is not None and not Path(data.hub).is_dir():
        named = {"hub", "config", "split", "revision", "held_out_split"}
        kept["hub"] = data.model_dump(mode="json", include=named)
    return json.dumps(kept, sort_keys=True)
