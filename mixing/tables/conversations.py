"""Rows of conversations on disk: checked once, read when they are drawn, in a seeded order."""

import hashlib
import json
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from configs.data_files import find_files
from configs.errors import ConfigError, Problem
from configs.sft import LessonRecipe, PreferenceDataConfig, RowsConfig, SftConfig, SftDataConfig
from mixing.tables.jsonl import JsonlTable
from mixing.tables.parquet import ParquetTable
from mixing.tables.row_filter import RowFilter
from mixing.tables.rows import read_content
from mixing.tables.table import Place, Row, Table, value_at
from rollouts.conversations import Conversation, Lesson, Preference
from rollouts.types import Message

T = TypeVar("T")
Read = Callable[[Row, str], tuple[T, int]]
"""A row and its name -> what it means, and the hash that decides its side of the split."""
_ROLES = ("system", "user", "assistant", "tool")
_SHOWN = 20


class RowFile(Generic[T]):
    """Rows that mean T; what stays in memory is an index of some 50 bytes a row."""

    def __init__(self, table: Table, read: Read[T], places: NDArray[np.int64], content: str):
        self._table, self._read, self._places = table, read, places
        self.content = content

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> T:
        place = Place(*map(int, self._places[index]))
        try:
            return self._read(self._table.read(place), self._table.where(place))[0]
        except (OSError, ValueError) as error:
            raise ConfigError(
                Problem(
                    where=self._table.where(place),
                    what=f"the file changed after it had been read: {error}",
                    fix="Put the file back and resume, or start a new run with the new one.",
                )
            ) from error

    def take(self, chosen: NDArray[np.int64]) -> "RowFile[T]":
        """Return some of the rows, by index."""
        return RowFile(self._table, self._read, self._places[chosen], self.content)


def open_rows(data: RowsConfig, read: Read[T]) -> tuple[RowFile[T], RowFile[T]]:
    """Return the rows to train on and those held out, each row checked.

    Raises:
        ConfigError: every malformed row, the first ones by name, or too few rows.
    """
    field = "jsonl" if data.jsonl is not None else "parquet"
    rows, hashes = _scan(data, getattr(data, field), f"data.{field}", read)
    if data.held_out_file is not None:
        return rows, _scan(data, data.held_out_file, "data.held_out_file", read)[0]
    distinct, first = np.unique(hashes, return_index=True)
    if len(distinct) <= data.held_out:
        raise ConfigError(
            Problem(
                where="data.held_out",
                what=f"there are {len(distinct)} different prompts; {data.held_out} held out leave "
                "none to train on",
                fix="Lower it, or add rows.",
            )
        )
    if not data.held_out:
        return rows, rows.take(np.zeros(0, np.int64))
    training = np.flatnonzero(hashes > distinct[data.held_out - 1])
    return rows.take(training), rows.take(first[: data.held_out])


def _scan(
    data: RowsConfig, patterns: Sequence[str], at: str, read: Read[T]
) -> tuple[RowFile[T], NDArray[np.uint64]]:
    files, row_filter = find_files(patterns), RowFilter(data.where, "data.where")
    jsonl = data.jsonl is not None
    table: Table = JsonlTable(files, row_filter) if jsonl else ParquetTable(files, row_filter, None)
    places, hashes, content = array("q"), array("Q"), hashlib.sha256()
    faults: list[Problem] = []
    try:
        for place, row in table.scan():
            name = table.where(place)
            try:
                if isinstance(row, ValueError):
                    raise row
                hashes.append(read(row, name)[1])
            except ValueError as error:
                faults.append(Problem(where=name, what=str(error)))
                continue
            places.extend(place)
            content.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    except (OSError, NotImplementedError) as error:
        raise ConfigError(Problem(where=at, what=f"cannot be read: {error}")) from error
    if len(faults) > _SHOWN:
        rest = f"{len(faults) - _SHOWN} more malformed rows"
        faults = [*faults[:_SHOWN], Problem(where=at, what=rest)]
    if problems := [*faults, *row_filter.problems()]:
        raise ConfigError(problems)
    if not hashes:
        raise ConfigError(Problem(where=at, what="has no rows", fix="Add rows."))
    found = np.array(places, dtype=np.int64).reshape(-1, len(Place._fields))
    return RowFile(table, read, found, content.hexdigest()), np.array(hashes, dtype=np.uint64)


def open_lessons(cfg: LessonRecipe) -> tuple[RowFile[Lesson], RowFile[Lesson]]:
    """Return what a recipe trains on and holds out; errors are those of `open_rows`."""
    if isinstance(cfg, SftConfig):
        return open_rows(cfg.data, conversations(cfg.data))
    return open_rows(cfg.data, preferences(cfg.data))


def preferences(data: PreferenceDataConfig) -> Read[Lesson]:
    """Return how a row of `data` is read as a preference."""

    def read(row: Row, name: str) -> tuple[Lesson, int]:
        asked = row.get(data.prompt)
        sides: list[tuple[Message, ...]] = []
        for column in (data.chosen, data.rejected):
            if isinstance(row.get(column), str):
                sides.append(_answered(row, column, asked, data.prompt))
            else:
                sides.append(read_messages(row, column)[0])
            if sides[-1][-1].role != "assistant":
                raise ValueError(f"`{column}` must end with an assistant's message")
        chosen, rejected = sides
        if chosen == rejected:
            raise ValueError(f"`{data.chosen}` and `{data.rejected}` are the same")
        if chosen[:-1] != rejected[:-1] and chosen[0] != rejected[0]:
            raise ValueError(f"`{data.chosen}` and `{data.rejected}` answer different prompts")
        return Preference(name=name, chosen=chosen, rejected=rejected), hash_of(chosen[:1])

    return read


def _answered(row: Row, column: str, asked: JsonValue, prompt: str) -> tuple[Message, ...]:
    """Return the conversation of an answer that is text."""
    answer = Message(role="assistant", content=str(row[column]))
    if isinstance(asked, str) and asked:
        return (Message(role="user", content=asked), answer)
    if not isinstance(asked, list):
        raise ValueError(f"`{column}` is text, so `{prompt}` must hold what it replies to")
    return (*read_messages(row, prompt)[0], answer)


def conversations(data: SftDataConfig) -> Read[Lesson]:
    """Return how a row of `data` is read as a conversation."""

    def read(row: Row, name: str) -> tuple[Lesson, int]:
        messages, weights = read_messages(row, data.messages)
        answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
        if not answers:
            raise ValueError(f"`{data.messages}` has no assistant's message to train on")
        wanted = answers if data.train_on == "all" else answers[-1:]
        trained = tuple(i in wanted and weights[i] for i in range(len(messages)))
        if not any(trained):
            raise ValueError(f"every answer of `{data.messages}` has weight 0")
        found = Conversation(name=name, messages=messages, trained=trained)
        return found, hash_of(messages[: answers[0]])

    return read


def read_messages(row: Row, column: str) -> tuple[tuple[Message, ...], tuple[bool, ...]]:
    """Return a conversation and, of each message, whether its weight is 1; ValueError where it is
    none that an assistant takes part in."""
    try:
        value = value_at(row, column)
    except KeyError:
        raise ValueError(f"has no `{column}`") from None
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{column}` must be a list of messages that is not empty")
    read = [_read_message(m, column) for m in value]
    messages = tuple(message for message, _ in read)
    if messages[0].role == "assistant":
        raise ValueError(f"`{column}` begins with an answer: nothing was asked")
    return messages, tuple(weight for _, weight in read)


def _read_message(value: JsonValue, column: str) -> tuple[Message, bool]:
    given = {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {}
    odd = sorted(set(given) - {"role", "content", "weight"})
    if not {"role", "content"} <= set(given) or odd:
        more = f"; it has {', '.join(odd)}, which is not supported" if odd else ""
        raise ValueError(f"each of `{column}` must have `role` and `content`{more}")
    role = "system" if given["role"] == "developer" else given["role"]
    if role not in _ROLES:
        raise ValueError(f"role {given['role']!r:.60} is not one of {', '.join(_ROLES)}")
    weight = given.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ValueError(f"`weight` of a message must be 0 or 1, is {weight!r:.60}")
    return Message(role=cast(str, role), content=read_content(given["content"])), weight == 1


def hash_of(messages: Sequence[Message]) -> int:
    """Return 64 bits of a prompt's hash."""
    text = json.dumps([[m.role, m.content] for m in messages])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def num_steps(size: int, *, epochs: int, rows_per_step: int) -> int:
    """Return the steps in which every row is drawn `epochs` times; the last may be smaller."""
    return -(-size * epochs // rows_per_step)


def rows_of_step(
    step: int, *, size: int, rows_per_step: int, seed: int, end: int | None = None
) -> list[int]:
    """Return the rows of a step, counted from 1: a new permutation of all each epoch, cut into
    steps without regard to where epochs end. A function of its arguments alone.

    Args:
        end: draws after which nothing is drawn; None for no end.
    """
    first = (step - 1) * rows_per_step
    last = first + rows_per_step if end is None else min(end, first + rows_per_step)
    return [int(_permutation(size, seed, draw // size)[draw % size]) for draw in range(first, last)]


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed % 2**63, epoch]).permutation(size)
