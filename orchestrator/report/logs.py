"""What log.txt tells: warnings, failures, weight syncs and what was mended, of bounded size."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ ([A-Z]+) ([\w.]+): (.*)")
_AGREEMENT = re.compile(
    r"agreement at version (\d+): median (\S+), largest (\S+) over (\d+) tokens"
)
_SYNC = re.compile(r"weight sync: (generation \d+, .*)")
_KEPT = 40
"""Entries of a kind that are kept at either end."""
_CHARACTERS = 1500
"""Of an entry with its traceback."""
_REPAIRS = (
    ("once more", "weight sync tried again"),
    ("did not start (try", "engine or Ray started again"),
    ("damaged and passed over", "damaged checkpoint passed over"),
    ("resuming from", "resumed from a checkpoint"),
    ("removing ", "left-over of an interrupted attempt removed"),
    (" failed (", "group sampled again or replaced"),
    ("is late: step", "step went on without a late group"),
    ("is left out from here on", "a metrics sink left alone"),
)
"""What a line says -> what was done."""


@dataclass(slots=True)
class Entry:
    """One line of the log, with the traceback that follows it."""

    time: str
    level: str
    logger: str
    text: str
    more: list[str] = field(default_factory=list[str])

    def to_json(self) -> dict[str, Any]:
        """Return it for the page."""
        shown = asdict(self)
        more = "\n".join(shown.pop("more"))
        half = _CHARACTERS // 2
        if len(more) > _CHARACTERS:
            more = f"{more[:half]}\n[...]\n{more[-half:]}"
        return {**shown, "text": self.text[:_CHARACTERS], "trace": more}


def read_log(path: Path) -> dict[str, Any]:
    """Return warnings and errors, repairs by kind, agreement checks, and the last lines."""
    entries = list(_entries(path)) if path.is_file() else []
    loud = [e for e in entries if e.level not in ("INFO", "DEBUG")]
    repairs: Counter[str] = Counter()
    for entry in entries:
        repairs.update(what for mark, what in _REPAIRS if mark in entry.text)
    checks = [found for e in entries if (found := _AGREEMENT.search(e.text))]
    syncs = [found[1] for e in entries if (found := _SYNC.match(e.text))]
    ends = [e for e in entries if e.text.startswith(("the run ended with", "stopped"))]
    return {
        "there": path.is_file(),
        "loud": [e.to_json() for e in _ends(loud)],
        "num_loud": len(loud),
        "repairs": dict(repairs.most_common()),
        "checks": [
            {
                "version": int(c[1]),
                "median": float(c[2]),
                "largest": float(c[3]),
                "tokens": int(c[4]),
            }
            for c in checks[-400:]
        ],
        "syncs": syncs[-20:],
        "end": ends[-1].to_json() if ends and ends[-1] in entries[-3:] else None,
        "last": [f"{e.time} {e.level} {e.text}"[:400] for e in entries[-25:]],
    }


def _entries(path: Path) -> Iterator[Entry]:
    entry: Entry | None = None
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if found := _LINE.match(line):
                if entry is not None:
                    yield entry
                entry = Entry(found[1], found[2], found[3], found[4])
            elif entry is not None and len(entry.more) < 200:
                entry.more.append(line.rstrip("\n")[:500])
    if entry is not None:
        yield entry


def _ends(entries: list[Entry]) -> list[Entry]:
    """Keep the first and the last ones."""
    if len(entries) <= 2 * _KEPT:
        return entries
    return entries[:_KEPT] + entries[-_KEPT:]
