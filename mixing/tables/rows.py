"""From a row to the parts of a task, by the source's column map."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue

from configs.data import ColumnsConfig, DataConfig
from configs.schema import SourceConfig
from mixing.tables.table import Row, value_at
from rollouts.types import Message

_ROLES = ("system", "user", "assistant", "tool")
_MAX_ID = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A row, understood."""

    prompt: tuple[Message, ...]
    answer: str | None
    id: str | None
    """From the id column, if the source maps one."""
    metadata: Mapping[str, JsonValue]

    @property
    def prompt_hash(self) -> int:
        """64 bits of the prompt's hash, which decide its side of the split."""
        text = json.dumps([{"role": m.role, "content": m.content} for m in self.prompt])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


class MissingColumnError(ValueError):
    """A row lacks a column that the map names."""

    def __init__(self, field: str, column: str, text: str = ""):
        super().__init__(text or f"has no `{column}`")
        self.field, self.column = field, column


class RowReader:
    """Reads rows as `data.format` and `data.columns` say.

    Args:
        instructed: the source puts a system message of its own before each prompt.
    """

    def __init__(self, data: DataConfig, *, instructed: bool):
        self._columns = data.columns
        self._rft = data.format == "rft"
        self._instructed = instructed
        self._consumed = {"messages"} if self._rft else _consumed(data.columns)

    def read(self, row: Row) -> Item:
        """Return the item; ValueError says what is wrong with the row."""
        return Item(
            prompt=self._prompt(row),
            answer=self._answer(row),
            id=self._id(row),
            metadata=self._metadata(row),
        )

    def _prompt(self, row: Row) -> tuple[Message, ...]:
        field, column = self._prompt_column(row)
        value = _get(row, field, column)
        if field == "messages":
            prompt = _read_messages(value, column)
        elif isinstance(value, str) and value:
            prompt = (Message(role="user", content=value),)
        elif isinstance(value, list):
            raise ValueError(
                f"`{column}` is a list; a list of messages is mapped with `columns: {{messages: "
                f"{column}}}`"
            )
        else:
            raise ValueError(f"`{column}` must be text that is not empty")
        if self._instructed and any(m.role == "system" for m in prompt):
            raise ValueError(
                "has a system message of its own, and the source sets `instruction`; keep one"
            )
        return prompt

    def _prompt_column(self, row: Row) -> tuple[str, str]:
        columns = self._columns
        if self._rft:
            return "messages", "messages"
        if columns.prompt is not None:
            return "prompt", columns.prompt
        if columns.messages is not None:
            return "messages", columns.messages
        there = [c for c in ("prompt", "messages") if row.get(c) is not None]
        if len(there) == 2:
            raise ValueError("has both of `prompt` and `messages`, must have one")
        if not there:
            what = "has neither of `prompt` and `messages`, must have one"
            raise MissingColumnError("prompt", "prompt", what)
        return there[0], there[0]

    def _answer(self, row: Row) -> str | None:
        column = self._columns.answer
        if column is None:
            if self._rft:
                return None
            column = "answer"
        value = _get(row, "answer", column, f"has no `{column}`; write null if there is none")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return json.dumps(value)
        if value is not None and not isinstance(value, str):
            raise ValueError(f"`{column}` must be text, a number or null, is {value!r:.60}")
        return value

    def _id(self, row: Row) -> str | None:
        column = self._columns.id
        if column is None:
            return None
        value = _get(row, "id", column)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(f"`{column}` must be text or a whole number, is {value!r:.60}")
        name = str(value)
        if not name or len(name) > _MAX_ID or not name.isprintable():
            raise ValueError(
                f"`{column}` must be 1 to {_MAX_ID} printable characters, is {name!r:.60}"
            )
        return name

    def _metadata(self, row: Row) -> dict[str, JsonValue]:
        wanted = self._columns.metadata
        if self._rft:
            _check_tools(row)
        if wanted is None:
            return {k: v for k, v in row.items() if k not in self._consumed}
        return {column: _get(row, "metadata", column) for column in wanted}


def columns_read(cfg: SourceConfig) -> set[str] | None:
    """Return the top-level columns that a source reads; None for all."""
    data, columns, rates = cfg.data, cfg.data.columns, cfg.difficulty.pass_rate_column
    if columns.metadata is None:
        return None
    prompt = [c for c in (columns.prompt, columns.messages) if c is not None]
    named = [*(prompt or ("prompt", "messages")), columns.answer or "answer", *columns.metadata]
    named += [column for column in (columns.id, rates) if column is not None]
    named += [*data.where, *data.held_out_where, *(("tools",) if data.format == "rft" else ())]
    return {*named, *(name.split(".")[0] for name in named)}


def _consumed(columns: ColumnsConfig) -> set[str]:
    """Return the columns that prompt and answer are read from; the others are metadata."""
    prompt = {c for c in (columns.prompt, columns.messages) if c is not None}
    return {*(prompt or ("prompt", "messages")), columns.answer or "answer"}


def _get(row: Row, field: str, column: str, text: str = "") -> JsonValue:
    try:
        return value_at(row, column)
    except KeyError:
        raise MissingColumnError(field, column, text) from None


def _read_messages(value: JsonValue, column: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{column}` must be a list that is not empty")
    messages = tuple(_read_message(m, column) for m in value)
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(
            f"`{column}` ends with {messages[-1].role}'s message; the last one must be user's or "
            "tool's, which the policy answers"
        )
    return messages


def _read_message(value: JsonValue, column: str) -> Message:
    given = {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {}
    if set(given) != {"role", "content"}:
        odd = sorted(set(given) - {"role", "content"})
        more = f"; it has {', '.join(odd)}, which prompts cannot carry" if odd else ""
        raise ValueError(f"each of `{column}` must have exactly `role` and `content`{more}")
    role = "system" if given["role"] == "developer" else given["role"]
    if role not in _ROLES:
        raise ValueError(f"role {given['role']!r:.60} is not one of {', '.join(_ROLES)}")
    return Message(role=cast(str, role), content=read_content(given["content"]))


def read_content(value: JsonValue) -> str:
    """Return a message's text, also of a list of text parts."""
    if isinstance(value, str):
        return value
    parts: list[str] = []
    for part in value if isinstance(value, list) else [None]:
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str):
            raise ValueError("`content` must be text, or a list of parts that are all text")
        parts.append(text)
    return "".join(parts)


def _check_tools(row: Row) -> None:
    tools = row.get("tools")
    if tools is not None and not (
        isinstance(tools, list) and all(isinstance(t, dict) for t in tools)
    ):
        raise ValueError("`tools` must be a list of tool definitions")
