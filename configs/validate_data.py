"""Checks of a source's `data` that need no look into its files."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from configs.data import ColumnsConfig, DataConfig
from configs.data_files import missing, strays
from configs.errors import Problem
from configs.schema import SourceConfig

KINDS = ("procedural", "jsonl", "parquet", "hub")
_ROWS = ("jsonl", "parquet", "hub")
_MEANT_FOR: Mapping[str, tuple[str, ...]] = {
    "config": ("hub",),
    "split": ("hub",),
    "revision": ("hub",),
    "streaming": ("hub",),
    "held_out_split": ("hub",),
    "held_out_file": ("jsonl", "parquet"),
    "held_out_where": _ROWS,
    "format": _ROWS,
    "columns": _ROWS,
    "where": _ROWS,
    "fraction": _ROWS,
    "max_prompts": _ROWS,
    "size": ("procedural", "hub"),
    "seed": ("procedural",),
    "args": ("procedural",),
}
"""Field -> the kinds of data that read it."""
HUB_NAME = re.compile(r"^\w[\w.-]*(/\w[\w.-]*)?$")
_SPLITS = ("held_out_where", "held_out_file", "held_out_split")
_BOUNDS = ("min", "max")


def data_kind(data: DataConfig) -> str | None:
    """Return which of KINDS is given; None unless exactly one is."""
    given = [kind for kind in KINDS if getattr(data, kind) is not None]
    return given[0] if len(given) == 1 else None


def check_data(source: SourceConfig) -> Iterator[Problem]:
    """Yield what is wrong with `data` by itself; missing files are looked for."""
    at, data = f"sources.{source.name}.data", source.data
    kind = data_kind(data)
    if kind is None:
        given = [k for k in KINDS if getattr(data, k) is not None]
        yield Problem(
            where=at,
            what=f"has {' and '.join(f'`{k}`' for k in given)}" if given else "has no data",
            fix="Give exactly one of `procedural: reasoning_gym/<dataset>`, `jsonl: <path>`, "
            "`parquet: <path>` and `hub: <name>`.",
        )
    else:
        yield from _check_kind(at, data, kind)
    for field in ("jsonl", "parquet", "held_out_file"):
        yield from _check_files(f"{at}.{field}", getattr(data, field))
        yield from _check_inside(f"{at}.{field}", getattr(data, field) or ())
    yield from _check_inside(f"{at}.hub", (data.hub,) if data.hub else ())
    for field in ("where", "held_out_where"):
        yield from _check_where(f"{at}.{field}", getattr(data, field))
    yield from _check_columns(f"{at}.columns", data)
    splits = [field for field in _SPLITS if getattr(data, field)]
    if len(splits) > 1:
        yield Problem(
            where=f"{at}.{splits[1]}",
            what=f"stands beside {splits[0]}: there can be one held-out split",
            fix="Keep one of the two.",
        )


def _check_kind(at: str, data: DataConfig, kind: str) -> Iterator[Problem]:
    for field, kinds in _MEANT_FOR.items():
        if kind not in kinds and getattr(data, field) != DataConfig.model_fields[field].default:
            yield Problem(
                where=f"{at}.{field}",
                what=f"is set, but `{kind}` data do not use it",
                fix=f"Remove it; it is for {' and '.join(kinds)}.",
            )
    size = DataConfig.model_fields["size"].default
    if kind == "hub" and data.size != size and not data.streaming:
        yield Problem(
            where=f"{at}.size",
            what="is set, but a dataset that is not streamed is read whole",
            fix="Set `streaming: true` to read the first rows, or `max_prompts` to take fewer.",
        )
    if data.hub is not None and not Path(data.hub).is_dir() and not HUB_NAME.match(data.hub):
        yield Problem(
            where=f"{at}.hub",
            what=f"there is no folder {data.hub!r}, and it is not a hub name (`owner/dataset`)",
            fix="Give a path from the current directory or from the recipe's folder.",
        )
    if data.hub is not None and Path(data.hub).is_dir() and data.revision is not None:
        yield Problem(
            where=f"{at}.revision",
            what=f"is set, but {data.hub} is a local folder, which has no revisions",
            fix="Remove it.",
        )


def _check_inside(where: str, patterns: Sequence[str]) -> Iterator[Problem]:
    for pattern in patterns:
        for path, end in strays(pattern)[:3]:
            yield Problem(
                where=where,
                what=f"{path} leads out of the folder, to {end}",
                fix="Name that file itself if it is meant, or remove the link.",
            )


def _check_files(at: str, patterns: tuple[str, ...] | None) -> Iterator[Problem]:
    if patterns is not None and not patterns:
        yield Problem(where=at, what="is an empty list", fix="Give at least one path.")
    for pattern in missing(patterns or ()):
        yield Problem(
            where=at,
            what=f"there is no file {pattern}",
            fix="Give a path from the current directory or from the recipe's folder.",
        )


def _check_columns(at: str, data: DataConfig) -> Iterator[Problem]:
    columns = data.columns
    if columns.prompt is not None and columns.messages is not None:
        yield Problem(
            where=at,
            what="maps both `prompt` and `messages`; a row has one prompt",
            fix="Keep `prompt` for text, or `messages` for a list of messages.",
        )
    if data.format == "rft":
        for field in ("prompt", "messages"):
            if getattr(columns, field) is not None:
                yield Problem(
                    where=f"{at}.{field}",
                    what="is set, but rows of `format: rft` have their prompt in `messages`",
                    fix="Remove it, or use `format: rows`.",
                )
    named = {f: getattr(columns, f) for f in ColumnsConfig.model_fields if f != "metadata"}
    for field, column in named.items():
        if column is not None and not all(column.split(".")):
            yield Problem(
                where=f"{at}.{field}",
                what=f"{column!r} is no column name",
                fix="Write a name, or names joined by dots for a nested value.",
            )


def _check_where(at: str, where: Mapping[str, JsonValue]) -> Iterator[Problem]:
    for column, wanted in where.items():
        here = f"{at}.{column}"
        if isinstance(wanted, dict):
            yield from _check_range(here, wanted)
        elif isinstance(wanted, list):
            if not wanted:
                yield Problem(where=here, what="is an empty list, which no row is in")
            elif any(isinstance(w, (dict, list)) for w in wanted):
                yield Problem(where=here, what="lists must hold text, numbers, true, false or null")


def _check_range(at: str, wanted: Mapping[str, JsonValue]) -> Iterator[Problem]:
    for key in (k for k in wanted if k not in _BOUNDS):
        near = difflib.get_close_matches(key, _BOUNDS, n=1)
        yield Problem(
            where=f"{at}.{key}",
            what="unknown key",
            fix=f"Did you mean `{near[0]}`?" if near else "A range has `min`, `max` or both.",
        )
    if not wanted:
        yield Problem(where=at, what="is empty", fix="A range has `min`, `max` or both.")
    bounds = {k: wanted[k] for k in _BOUNDS if k in wanted}
    numbers = [v for v in bounds.values() if isinstance(v, (int, float)) and v is not True]
    for key, bound in bounds.items():
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            yield Problem(where=f"{at}.{key}", what=f"must be a number, is {bound!r:.60}")
    if len(numbers) == 2 and numbers[0] > numbers[1]:
        low, high = cast("list[float]", numbers)
        yield Problem(
            where=at,
            what=f"min {low:g} is more than max {high:g}: no row is within",
            fix="Swap the two.",
        )
