"""Items of a JSONL file, held-out ones split off by the hash of their prompt."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn, cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.schema import SourceConfig
from mixing.sources import digest, with_instruction
from rollouts.types import Message, Task

_SHOWN = 20
_ROLES = ("system", "user", "assistant", "tool")


class JsonlSource:
    """Rows with `prompt` or `messages`, and `answer`; their other keys become metadata.

    The `held_out` prompts with the smallest hashes are for evaluation: the choice does not depend
    on the order of rows, and no training row has a held-out prompt, duplicates included.
    """

    def __init__(self, cfg: SourceConfig):
        self._cfg = cfg
        self._path = Path(str(cfg.data.jsonl))
        text = self._read()
        rows = self._parse(text)
        chosen = sorted(rows)[: cfg.data.held_out]
        if len(rows) <= cfg.data.held_out:
            raise ConfigError(
                Problem(
                    where=f"sources.{cfg.name}.data.held_out",
                    what=f"{self._path} has {len(rows)} different prompts; {cfg.data.held_out} "
                    "held out leave none to train on",
                    fix="Lower `held_out`, or add rows.",
                )
            )
        self._held_out = tuple(self._task(*rows[key][0], split="held_out") for key in chosen)
        training = [row for key in rows if key not in set(chosen) for row in rows[key]]
        training.sort(key=lambda row: row[0])
        self._training = tuple(self._task(line, row, split="train") for line, row in training)
        self._fingerprint = digest(f"{text}/{cfg.data.held_out}/{cfg.instruction}")

    @property
    def size(self) -> int:
        """Training items of an epoch."""
        return len(self._training)

    @property
    def fingerprint(self) -> str:
        """Hash of the file's content and the split."""
        return self._fingerprint

    def task(self, item: int) -> Task:
        """Return training item `item`."""
        return self._training[item]

    def held_out(self) -> tuple[Task, ...]:
        """Return the evaluation items."""
        return self._held_out

    def _read(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            problem = Problem(
                where=f"sources.{self._cfg.name}.data.jsonl",
                what=f"cannot read {self._path}: {getattr(error, 'strerror', None) or error}",
                fix="A relative path starts from the folder you run in.",
            )
            raise ConfigError(problem) from error

    def _parse(self, text: str) -> dict[str, list[tuple[int, dict[str, JsonValue]]]]:
        """Return (line number, row) pairs by the hash of the row's prompt."""
        rows: dict[str, list[tuple[int, dict[str, JsonValue]]]] = {}
        problems: list[Problem] = []
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = _row(line, instructed=bool(self._cfg.instruction))
            except ValueError as error:
                problems.append(Problem(where=f"{self._path}:{number}", what=str(error)))
                continue
            rows.setdefault(digest(json.dumps(row["messages"])), []).append((number, row))
        if len(problems) > _SHOWN:
            rest = f"{len(problems) - _SHOWN} more malformed rows"
            problems = [*problems[:_SHOWN], Problem(where=str(self._path), what=rest)]
        if problems:
            raise ConfigError(problems)
        return rows

    def _task(self, line: int, row: Mapping[str, JsonValue], *, split: str) -> Task:
        messages = cast("list[dict[str, str]]", row["messages"])
        prompt = tuple(Message(role=m["role"], content=m["content"]) for m in messages)
        return Task(
            task_id=f"{self._cfg.name}/{split}/{line}",
            source=self._cfg.name,
            prompt=with_instruction(self._cfg.instruction, prompt),
            answer=cast("str | None", row["answer"]),
            metadata={k: v for k, v in row.items() if k not in ("messages", "answer")},
        )


def _row(line: str, *, instructed: bool) -> dict[str, JsonValue]:
    """Return the row with `messages` and a textual `answer`; ValueError says what is wrong."""
    try:
        row = json.loads(line, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(row, dict):
        raise ValueError(f"is a {type(row).__name__}, must be an object")
    row = cast("dict[str, JsonValue]", row)
    if ("prompt" in row) == ("messages" in row):
        both = "both" if "prompt" in row else "neither"
        raise ValueError(f"has {both} of `prompt` and `messages`, must have one")
    if "prompt" in row:
        prompt = row.pop("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise ValueError("`prompt` must be text that is not empty")
        row["messages"] = [{"role": "user", "content": prompt}]
    _check_messages(row["messages"], instructed)
    if "answer" not in row:
        raise ValueError("has no `answer`; write null if there is none")
    answer = row["answer"]
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        row["answer"] = json.dumps(answer)
    elif answer is not None and not isinstance(answer, str):
        raise ValueError(f"`answer` must be text, a number or null, is {answer!r:.60}")
    return row


def _check_messages(messages: JsonValue, instructed: bool) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError("`messages` must be a list that is not empty")
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError("each of `messages` must have exactly `role` and `content`")
        if message["role"] not in _ROLES:
            raise ValueError(f"role {message['role']!r:.60} is not one of {', '.join(_ROLES)}")
        if not isinstance(message["content"], str):
            raise ValueError("`content` must be text")
        if instructed and message["role"] == "system":
            raise ValueError(
                "has a system message of its own, and the source sets `instruction`; keep one"
            )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
