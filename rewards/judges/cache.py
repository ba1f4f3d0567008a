"""Verdicts kept by what was asked: in memory up to a bound, and on disk where a folder is given."""

import contextlib
import json
import logging
import os
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import TextIO

from pydantic import JsonValue

from rewards.judges.request import Reply

log = logging.getLogger("braid.judges")


class ReplyCache:
    """Keeps the least recently used replies out. One process, one thread.

    On disk it is one JSONL file a process, so that actors never write into each other's lines;
    all files of the folder are read at the start. A line that was cut off is passed over. A disk
    that takes no more costs the copy on disk, and no verdict.
    """

    def __init__(self, entries: int, folder: Path | None = None):
        self._entries = entries
        self._replies: OrderedDict[str, Reply] = OrderedDict()
        self._folder = folder
        self._file: TextIO | None = None
        if folder is not None and entries:
            for path in sorted(folder.glob("*.jsonl")):
                self._read(path)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """Return what was answered before."""
        reply = self._replies.get(key)
        if reply is not None:
            self._replies.move_to_end(key)
        return reply

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply that could be read."""
        if not self._entries:
            return
        self._keep(key, reply)
        if self._folder is not None:
            try:
                self._write(self._folder, json.dumps(_row(key, reply)))
            except OSError as error:
                log.warning("%s: verdicts are kept in memory alone: %s", self._folder, error)
                self._folder = None
                self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written was told of
                self._file.close()
            self._file = None

    def _keep(self, key: str, reply: Reply) -> None:
        self._replies[key] = reply
        self._replies.move_to_end(key)
        while len(self._replies) > self._entries:
            self._replies.popitem(last=False)

    def _write(self, folder: Path, line: str) -> None:
        if self._file is None:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
            self._file = (folder / name).open("a", encoding="utf-8")
        self._file.write(line + "\n")
        self._file.flush()

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                self._keep(row["key"], Reply(text=row["text"], model=row["model"]))
            except (ValueError, TypeError, KeyError):
                log.warning("%s: passed over a line that was cut off", path)


def _row(key: str, reply: Reply) -> JsonValue:
    return {"key": key, "text": reply.text, "model": reply.model}
