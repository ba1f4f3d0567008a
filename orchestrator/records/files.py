"""The few ways in which a run's files are written and read: whole, or a line at a time."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

log = logging.getLogger("braid.run_dir")


def to_bytes(value: Mapping[str, JsonValue]) -> bytes:
    """Write JSON; half a character, as data and models may hold it, becomes its escape."""
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace")


def fsync(path: Path) -> None:
    """Force a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by rename, so that a reader or a crash sees the old or the new one whole."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Replace a file by rename."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def append_line(path: Path, record: Mapping[str, JsonValue]) -> None:
    """Append one JSON object as a line, in one write."""
    line = to_line(record)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = memoryview(line.encode(errors="backslashreplace"))
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        error.filename = str(path)  # which a write to a descriptor does not tell
        raise
    finally:
        os.close(descriptor)


def to_line(record: Mapping[str, JsonValue]) -> str:
    """Write one JSON object as a line; numbers that are not finite become null."""
    finite = {
        k: None if isinstance(v, float) and not abs(v) < float("inf") else v
        for k, v in record.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def read_lines(path: Path) -> Iterator[dict[str, JsonValue]]:
    """Read JSON lines; a line torn by a crash is left out, and said so."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            log.warning("%s:%d is not JSON and is left out: %.60r", path, number, line)
            continue
        if isinstance(record, dict):
            yield record
