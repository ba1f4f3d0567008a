"""Live edits of the mix: a file of JSON lines between `braid mix` and the driver.

    {"time": "...", "weights": {"arith": 2.0}}      appended by `braid mix`
    {"taken": 0, "step": 41}                        appended by the driver; edits count from 0

The driver takes an edit at the next step that it plans, and writes down at which. A run that is
resumed from before that step meets the edit there again, neither earlier nor later nor twice.
"""

import fcntl
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from pydantic import JsonValue

Weights = Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One edit."""

    number: int
    """Place in the file, from 0."""
    time: str
    weights: Weights
    """New weight by source; None gives it back to recipe and stages. Empty if unreadable."""
    taken: int | None = None
    """Step from which the driver applied or refused it; None while it waits."""
    refused: str = ""
    """Why the driver refused it; empty if it did not."""


class EditLog:
    """The edits of one run directory. One driver and any number of `braid mix` may use it."""

    def __init__(self, path: Path):
        self._path = path
        self._seen_size = -1
        self._seen: tuple[Edit, ...] = ()

    def read(self) -> tuple[Edit, ...]:
        """Return all edits in order; a line that is not whole yet is left out."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return ()
        if size != self._seen_size:
            data = self._path.read_bytes()
            self._seen, self._seen_size = _parse(data), len(data)
        return self._seen

    def ask(self, weights: Weights) -> None:
        """Append an edit."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._append({"time": now, "weights": dict(weights)})

    def mark(self, number: int, step: int, refused: str = "") -> None:
        """Write down at which step an edit was taken, or refused and why."""
        self._append({"taken": number, "step": step} | ({"refused": refused} if refused else {}))

    def _append(self, record: Mapping[str, JsonValue]) -> None:
        """Append one line; after a line torn by a crash, on a line of its own.

        Under a lock: without it, another's write under way could pass for a torn line.
        """
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # released with the descriptor
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (b"\n" if torn else b"") + line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _parse(data: bytes) -> tuple[Edit, ...]:
    """Read all whole lines. One that is no record of ours is an edit that will be refused."""
    asked: list[tuple[str, Weights]] = []
    marks: dict[int, tuple[int, str]] = {}
    for line in data.split(b"\n")[:-1]:
        record = _object(line)
        number, step = record.get("taken"), record.get("step")
        if isinstance(number, int) and isinstance(step, int):
            marks.setdefault(number, (step, str(record.get("refused", ""))))
        else:
            asked.append((str(record.get("time", "")), _weights(record.get("weights"))))
    return tuple(
        Edit(
            number=number,
            time=time,
            weights=weights,
            taken=marks[number][0] if number in marks else None,
            refused=marks[number][1] if number in marks else "",
        )
        for number, (time, weights) in enumerate(asked)
    )


def _object(line: bytes) -> dict[str, JsonValue]:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return cast("dict[str, JsonValue]", record) if isinstance(record, dict) else {}


def _weights(given: JsonValue | None) -> Weights:
    """Return the weights of an edit's line; none if one of them is no finite number or null."""
    if not isinstance(given, dict):
        return {}
    weights: dict[str, float | None] = {}
    for name, value in given.items():
        if value is None:
            weights[name] = None
        elif isinstance(value, (int, float)) and math.isfinite(value):
            weights[name] = float(value)
        else:
            return {}
    return weights
