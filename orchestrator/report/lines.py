"""JSON lines as they come: read once, then only what was appended."""

import json
import os
from pathlib import Path
from typing import Any


class Tail:
    """Follows a file of JSON lines that grows, is rewritten, or is not there yet."""

    def __init__(self, path: Path):
        self.path = path
        self.damaged = 0
        """Whole lines so far that are no JSON object."""
        self.torn = False
        """Whether the file ends within a line: one that is being written, or that a crash cut."""
        self._offset = 0
        self._inode = -1

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Return whether the file was begun anew, and the objects that are new since the last call.

        A file that is shorter than what was read, or another one, is read from its start; so a
        resumed run, which cuts its files back to a checkpoint, is followed too.
        """
        try:
            file = self.path.open("rb")
        except OSError:
            anew = self._offset > 0
            self._begin(-1)
            return anew, []
        with file:
            status = os.fstat(file.fileno())
            anew = status.st_ino != self._inode or status.st_size < self._offset
            if anew:
                self._begin(status.st_ino)
            file.seek(self._offset)
            whole, _, rest = file.read().rpartition(b"\n")
        self.torn = bool(rest)
        if not whole:
            return anew, []
        self._offset += len(whole) + 1
        return anew, [row for line in whole.split(b"\n") if (row := self._parse(line)) is not None]

    def _begin(self, inode: int) -> None:
        self._offset, self._inode = 0, inode
        self.damaged, self.torn = 0, False

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            return row
        self.damaged += bool(line.strip())
        return None
