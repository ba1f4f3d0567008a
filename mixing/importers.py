"""Recipes from what users of other frameworks have: open-instruct's mixer list, verl's files.

Both frameworks concatenate: a source's share of the prompts is its share of the rows. So the
weights written here are rows.
"""

import importlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.yaml_text import write_document
from mixing.tables.parquet import open_parquet
from mixing.tables.row_filter import no_column

_Fields = dict[str, JsonValue]

_FIXED_WORDS = (
    "`exact` stands in for the reward: it compares the whole reply with the answer. {how}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedRecipe:
    """A recipe's text, and what its reader should know."""

    text: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerEntry:
    """One dataset of open-instruct's mixer list."""

    name: str
    split: str
    fraction: float | None
    """Share of the rows taken, above 1 for rows taken several times; None for a count."""
    count: int | None
    """Rows taken."""


def parse_mixer_list(words: Sequence[str], splits: Sequence[str]) -> tuple[MixerEntry, ...]:
    """Read `name amount name amount ...`; an amount with a dot is a fraction, else a count.

    Args:
        splits: one for all, or one each; empty for `train`.
    """
    words = [word for given in words for word in given.split()]
    names, amounts = words[::2], words[1::2]
    problems: list[Problem] = []
    if not words or len(names) != len(amounts):
        what = f"has {len(words)} words; they come in pairs of a name and an amount"
        raise ConfigError(Problem(where="mixer list", what=what, fix="Write `name 0.5 name2 2000`"))
    if len(splits) not in (0, 1, len(names)):
        what = f"there are {len(splits)} for {len(names)} datasets"
        problems.append(Problem(where="--split", what=what, fix="Give one for all, or one each."))
    if problems:
        raise ConfigError(problems)
    each = splits if len(splits) == len(names) else [*splits, "train"][:1] * len(names)
    entries: list[MixerEntry] = []
    for name, amount, split in zip(names, amounts, each, strict=True):
        try:
            fraction = float(amount) if "." in amount else None
            count = int(amount) if fraction is None else None
        except ValueError:
            fraction, count = None, None
        if not 0 < (fraction or count or 0) < math.inf:
            what = f"the amount {amount!r} is no fraction such as 0.5 and no count such as 2000"
            problems.append(Problem(where=f"mixer list: {name}", what=what))
        entries.append(MixerEntry(name=name, split=split, fraction=fraction, count=count))
    if problems:
        raise ConfigError(problems)
    return tuple(entries)


def import_open_instruct(
    entries: Sequence[MixerEntry], sizes: Mapping[str, int], *, name: str, model: str
) -> ImportedRecipe:
    """Return the recipe of a mixer list.

    Args:
        sizes: rows of each dataset, where known; local files are counted.
    """
    known = {
        e.name: n for e in entries if (n := sizes.get(e.name, _count_rows(e.name))) is not None
    }
    unknown = sorted({e.name for e in entries if e.fraction is not None and e.name not in known})
    notes = [_FIXED_WORDS.format(how="open-instruct chooses a verifier by the row's `dataset`.")]
    if unknown:
        notes.append(
            f"All weights are 1, for the size of {', '.join(unknown)} is not known here. In "
            "open-instruct a share is rows taken over all rows taken; give `--rows NAME=N` for it."
        )
    sources: list[_Fields] = []
    names = _names([Path(e.name).stem if _file_kind(e.name) else e.name for e in entries])
    for entry, source_name in zip(entries, names, strict=True):
        size = known.get(entry.name)
        notes += _trap(entry, size)
        data: _Fields = {"columns": {"messages": "messages", "answer": "ground_truth"}}
        if kind := _file_kind(entry.name):
            data = {kind: entry.name, **data}
        else:
            data = {"hub": entry.name, "split": entry.split, **data}
        if entry.fraction is not None and entry.fraction < 1:
            data["fraction"] = entry.fraction
        if entry.count is not None and (size is None or entry.count < size):
            data["max_prompts"] = entry.count
        if size is not None:
            data["held_out"] = _held_out(size)
        rows = entry.count if entry.fraction is None else entry.fraction * (size or 1)
        sources.append(_source(source_name, data, 1.0 if unknown else float(rows or 1)))
    return _recipe(sources, notes, name=name, model=model, of="an open-instruct mixer list")


def _trap(entry: MixerEntry, size: int | None) -> list[str]:
    """Say what an amount means where people often mean another thing."""
    if entry.count == 1:
        return [
            f"{entry.name} 1 is one row, as in open-instruct; 1.0 would be all of them. Remove "
            "`max_prompts: 1` if that was meant."
        ]
    if entry.fraction is not None and entry.fraction > 1:
        return [
            f"{entry.name} {entry.fraction:g} takes its rows {entry.fraction:g} times: that is its "
            "weight here; items repeat only in later epochs."
        ]
    if entry.count is not None and size is not None and entry.count > size:
        return [
            f"{entry.name} has {size} rows, fewer than {entry.count}; the weight says the rest."
        ]
    return []


def import_verl(
    files: Sequence[str], held_out: Sequence[str], *, name: str, model: str
) -> ImportedRecipe:
    """Return the recipe of verl's Parquet files: one source for each `data_source`.

    Args:
        held_out: validation files; without them, some prompts of each source are held out.
    """
    counts, column = _count_data_sources(files)
    kept, _ = _count_data_sources(held_out) if held_out else (Counter[str | None](), "")
    notes = [_FIXED_WORDS.format(how="verl scores each `data_source` by rules of its own.")]
    sources: list[_Fields] = []
    for value, source_name in zip(counts, _names([str(v) for v in counts]), strict=True):
        data: _Fields = {
            "parquet": list[JsonValue](files),
            "columns": {column: "prompt", "answer": "reward_model.ground_truth"},
            "where": {"data_source": value},
        }
        if kept[value]:
            data["held_out_file"] = list[JsonValue](held_out)
        else:
            data["held_out"] = _held_out(counts[value])
            if held_out:
                notes.append(f"{value} has no validation rows; some of its prompts are held out.")
        if counts[value] == 1 and not kept[value]:
            notes.append(f"{value} has a single row, which cannot be split: remove the source.")
        sources.append(_source(source_name, data, float(counts[value])))
    for value in kept:
        if value not in counts:
            notes.append(f"{value} has validation rows alone; it is left out.")
    return _recipe(sources, notes, name=name, model=model, of="verl's Parquet files")


def _count_data_sources(files: Sequence[str]) -> tuple[Counter[str | None], str]:
    """Return the rows of each `data_source`, and what the prompt column holds: prompt (text) or
    messages."""
    counts: Counter[str | None] = Counter()
    kinds: set[str] = set()
    problems: list[Problem] = []
    for path in files:
        try:
            with open_parquet(Path(path)) as file:
                schema = file.schema_arrow
                if lacking := _lacking(path, schema):
                    problems += lacking
                    continue
                kinds.add("prompt" if str(schema.field("prompt").type) == "string" else "messages")
                for batch in file.iter_batches(batch_size=65536, columns=["data_source"]):
                    for found in batch.column(0).value_counts().to_pylist():
                        counts[found["values"]] += found["counts"]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            problems.append(Problem(where=path, what=f"is no Parquet file to read: {reason}"))
    if not problems and not counts:
        problems.append(Problem(where=", ".join(files), what="has no rows"))
    if len(kinds) > 1:
        what = "`prompt` is text in some and a list of messages in others"
        problems.append(Problem(where=", ".join(files), what=what, fix="Import them separately."))
    if problems:
        raise ConfigError(problems)
    return counts, kinds.pop()


def _lacking(path: str, schema: Any) -> list[Problem]:
    """Return the columns of verl's that a file lacks."""
    problems = [
        no_column(path, column, list(schema.names))
        for column in ("data_source", "prompt", "reward_model")
        if column not in schema.names
    ]
    if not problems:
        types: Any = importlib.import_module("pyarrow.types")
        kind = schema.field("reward_model").type
        inner = (
            [kind.field(i).name for i in range(kind.num_fields)] if types.is_struct(kind) else []
        )
        if "ground_truth" not in inner:
            problems.append(no_column(path, "reward_model.ground_truth", inner))
    return problems


def _file_kind(name: str) -> str | None:
    """Return the kind of data of a local file, as open-instruct tells it; None for the hub."""
    return {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}.get(Path(name).suffix)


def _count_rows(name: str) -> int | None:
    """Return the rows of a local file; None for anything else."""
    kind, path = _file_kind(name), Path(name)
    if kind is None or not path.is_file():
        return None
    if kind == "parquet":
        with open_parquet(path) as file:
            return int(file.metadata.num_rows)
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _held_out(rows: int) -> int:
    return max(1, min(100, rows // 10))


def _names(given: Sequence[str]) -> list[str]:
    """Return names that sources may have, each once."""
    made: list[str] = []
    for name in given:
        base = re.sub(r"[^A-Za-z0-9_.-]+", "_", name.rpartition("/")[2]).lstrip("_.-") or "source"
        unique, k = base, 2
        while unique in made:
            unique, k = f"{base}_{k}", k + 1
        made.append(unique)
    return made


def _source(name: str, data: _Fields, weight: float) -> _Fields:
    reward: _Fields = {"name": "right", "use": "exact"}
    return {"name": name, "weight": weight, "data": data, "rewards": [reward]}


def _recipe(
    sources: Sequence[_Fields], notes: Sequence[str], *, name: str, model: str, of: str
) -> ImportedRecipe:
    recipe: _Fields = {
        "name": name,
        "num_steps": 100,
        "model": {"path": model},
        "sources": list[JsonValue](sources),
        "batch": {"groups_per_step": max(64, 2 * len(sources))},
    }
    head = [f"Made by `braid import` from {of}. Look it over: `braid plan` says what it would do."]
    comments = "".join(f"# {line}\n" for line in [*head, *notes])
    return ImportedRecipe(text=f"{comments}\n{write_document(recipe)}", notes=tuple(notes))
