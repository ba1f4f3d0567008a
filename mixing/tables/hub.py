"""Rows of Hugging Face datasets: by name, or of a local folder.

A folder of `save_to_disk` is read as it lies. For all else `datasets` runs in a process of its
own (`hub_fetch.py`), which downloads if it must and says which Arrow files hold the rows. So the
driver never imports it, nor what it imports, and a server that does not answer cannot hold the
driver up.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.schema import SourceConfig
from mixing.tables.arrow import ArrowFile, map_files, spool_folder
from mixing.tables.row_filter import RowFilter
from mixing.tables.rows import columns_read
from mixing.tables.saved_folder import is_saved_folder, saved_files
from mixing.tables.table import Place, Row

_FETCH = Path(__file__).with_name("hub_fetch.py")
_FETCH_S = 4 * 3600.0
"""Seconds that downloading may take. That a server is not there shows within some ten."""

_FIXES = {
    "unreachable": "Check the network, HF_ENDPOINT and proxies; or fetch it where there is a "
    "network, copy its cache (HF_HOME) here and set HF_HUB_OFFLINE=1; or give a local folder.",
    "not_found": "Check the name; a private or gated dataset needs HF_TOKEN in the environment.",
    "split": "Set `split` to one of them.",
    "config": "Set `config` to one of them.",
    "too_few": "Lower `size`, or remove `streaming` to take all rows.",
}


class HubTable:
    """Rows of one split that a filter takes. Fetches them when made, which may take minutes."""

    def __init__(self, cfg: SourceConfig, split: str, row_filter: RowFilter):
        data = cfg.data
        self._name, self._split, self._filter = str(data.hub), split, row_filter
        self._rows = data.size if data.streaming else None
        self._files = (
            _saved(cfg, split) if is_saved_folder(Path(self._name)) else _fetch(cfg, split)
        )
        there = sum(map(len, self._files))
        if self._rows is not None and there < self._rows:
            what = f"is {self._rows}, but {self._name}/{split} has {there} rows"
            raise ConfigError(_problem(cfg, "too_few", what))

    def scan(self, limit: int | None = None) -> Iterator[tuple[Place, Row | ValueError]]:
        """Yield the rows taken."""
        limits = [n for n in (limit, self._rows) if n is not None]
        all_rows = ((part, at, row) for part, f in enumerate(self._files) for at, row in f.rows())
        some = itertools.islice(all_rows, min(limits, default=None))
        for number, (part, at, row) in enumerate(some):
            if (sifted := self._filter.sift(row)) is not None:
                yield Place(part, number, at), sifted

    def read(self, place: Place) -> Row:
        """Return one row."""
        return self._files[place.part].row(place.offset)

    def where(self, place: Place) -> str:
        """Return `dataset/split row n`."""
        return f"{self._name}/{self._split} row {place.number}"

    def number(self, place: Place) -> str:
        """Return the row's number in the split."""
        return str(place.number)


def _saved(cfg: SourceConfig, split: str) -> tuple[ArrowFile, ...]:
    """Map the Arrow files of a folder of `save_to_disk`."""
    paths = saved_files(Path(str(cfg.data.hub)), split, f"sources.{cfg.name}.data")
    return tuple(map_files(paths, columns_read(cfg)))


def _fetch(cfg: SourceConfig, split: str) -> tuple[ArrowFile, ...]:
    """Return the split's Arrow files, mapped; ConfigError if they cannot be had."""
    data = cfg.data
    with tempfile.TemporaryDirectory(dir=spool_folder()) as folder:
        asked: dict[str, JsonValue] = {
            "name": data.hub,
            "config": data.config,
            "split": split,
            "revision": data.revision,
            "rows": data.size if data.streaming else None,
            "spool": str(Path(folder) / "rows.arrow"),
        }
        command = [sys.executable, "-P", str(_FETCH), json.dumps(asked)]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, timeout=_FETCH_S)
        except subprocess.TimeoutExpired:
            what = f"fetching took more than {_FETCH_S / 3600:g} hours"
            raise ConfigError(_problem(cfg, "", what)) from None
        said = done.stdout.decode().strip().rpartition("\n")[2]
        if done.returncode != 0 or not said:
            what = f"fetching ended with exit code {done.returncode}; its words are above"
            raise ConfigError(_problem(cfg, "", what))
        answer = cast("dict[str, JsonValue]", json.loads(said))
        if "error" in answer:
            raise ConfigError(_problem(cfg, str(answer["kind"]), str(answer["error"])))
        paths = [Path(path) for path in cast("list[str]", answer["files"])]
        return tuple(map_files(paths, columns_read(cfg)))


def _problem(cfg: SourceConfig, kind: str, what: str) -> Problem:
    field = {"split": "split", "config": "config", "too_few": "size"}.get(kind, "hub")
    where = f"sources.{cfg.name}.data.{field}"
    return Problem(where=where, what=what, fix=_FIXES.get(kind, ""))
