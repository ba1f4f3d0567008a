"""Which of the recorded rollouts a page shows, within so many bytes."""

import json
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from orchestrator.report.lines import Tail

BYTES = 1_100_000
"""Of all rollouts on a page."""
_STEPS = 40
"""Steps of which rollouts are shown, at most: the first, the last, and those spread between."""
_OF_A_GROUP = 4
"""Rollouts that a group keeps where not all have room: the best, the worst, and the first ones."""
_TOKENS, _CHARACTERS = 600, 6000
"""What a rollout keeps of its tokens and of each text."""
_FILE = re.compile(r"^step_(\d+)\.jsonl$")
Row = dict[str, Any]


class SampleReader:
    """Reads `rollouts/`, each file once for as long as it does not change."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._read: dict[Path, tuple[int, int, list[Row]]] = {}
        self.damaged = 0

    def read(self) -> dict[str, Any]:
        """Return the rollouts that fit on a page, and how many steps have some."""
        files = self._files()
        steps = sorted(files)
        chosen = spread(steps, _STEPS)
        self.damaged = 0
        rows: list[Row] = []
        room, left = BYTES, len(chosen)
        for step in reversed(chosen):  # the newest have what the older ones leave
            own = _fit(self._rows(files[step]), room // left)
            room -= _size(own)
            left -= 1
            rows = own + rows
        kept = {files[step] for step in chosen}
        self._read = {path: read for path, read in self._read.items() if path in kept}
        return {"rows": rows, "steps": len(steps), "steps_shown": len(chosen)}

    def _files(self) -> dict[int, Path]:
        if not self._folder.is_dir():
            return {}
        names = ((_FILE.match(entry.name), entry) for entry in self._folder.iterdir())
        return {int(found[1]): entry for found, entry in names if found is not None}

    def _rows(self, path: Path) -> list[Row]:
        try:
            status = path.stat()
        except OSError:
            return []
        size, changed = status.st_size, status.st_mtime_ns
        known = self._read.get(path)
        if known is None or known[:2] != (size, changed):
            tail = Tail(path)
            known = (size, changed, tail.read()[1])
            self.damaged += tail.damaged + tail.torn
            self._read[path] = known
        return known[2]


def spread(steps: Sequence[int], count: int) -> list[int]:
    """Return up to `count` of the steps: first, last, and evenly between."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _fit(rows: Sequence[Row], room: int) -> list[Row]:
    """Keep whole groups, of each source in turn, while there is room."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.get("group_id")), []).append(_cut(row))
    by_source: dict[str, list[list[Row]]] = {}
    for group in groups.values():
        by_source.setdefault(str(group[0].get("source")), []).append(group)
    in_turn = [g for turn in zip_longest(*by_source.values()) for g in turn if g is not None]
    if sum(map(_size, in_turn)) > room:
        in_turn = [_fewer(group) for group in in_turn]
    found: list[Row] = []
    for group in in_turn:
        size = _size(group)
        if size > room and found:
            continue
        room -= size
        found.extend(group)
    return found


def _fewer(group: list[Row]) -> list[Row]:
    if len(group) <= _OF_A_GROUP:
        return group

    def reward(row: Row) -> float:
        value = row.get("reward")
        return float(value) if isinstance(value, int | float) else 0.0

    ends = {id(max(group, key=reward)), id(min(group, key=reward))}
    rest = {id(row) for row in [r for r in group if id(r) not in ends][: _OF_A_GROUP - len(ends)]}
    return [row | {"of_group": len(group)} for row in group if id(row) in ends | rest]


def _cut(row: Row) -> Row:
    """Shorten what is very long, and say so."""
    cut = {key: _cut_text(value) for key, value in row.items()}
    tokens = row.get("tokens")
    if isinstance(tokens, dict):
        cut["tokens"] = _cut_tokens(tokens) if _is_sound(tokens) else None
    return cut


def _is_sound(tokens: Row) -> bool:
    """Return whether it is what `rollouts.record` writes."""
    runs = tokens.get("sampled")
    return isinstance(tokens.get("text"), list) and isinstance(runs, list) and all(
        isinstance(run, list) and len(run) == 2 and all(isinstance(at, int) for at in run)
        for run in runs
    )


def _cut_tokens(tokens: Row) -> Row:
    """Keep the first tokens, and the numbers of those that were sampled among them."""
    size = len(tokens["text"])
    if size <= _TOKENS:
        return tokens
    runs = [[a, min(b, _TOKENS)] for a, b in tokens["sampled"] if a < _TOKENS]
    sampled = sum(b - a for a, b in runs)
    cut = {k: v[:sampled] if isinstance(v, list) else v for k, v in tokens.items()}
    at, count = tokens.get("left_out") or (size, 0)
    left_out = [_TOKENS, size - _TOKENS + count] if at >= _TOKENS else [at, count]
    more = {"after": size - _TOKENS} if at < _TOKENS else {}
    return {**cut, "text": tokens["text"][:_TOKENS], "sampled": runs, "left_out": left_out, **more}


def _cut_text(value: Any) -> Any:
    if isinstance(value, str) and len(value) > _CHARACTERS:
        return f"{value[:_CHARACTERS]} [... {len(value) - _CHARACTERS} characters more]"
    if isinstance(value, list) and len(value) < 200:
        return [_cut_text(each) for each in value]
    if isinstance(value, dict) and "text" not in value:
        return {key: _cut_text(each) for key, each in value.items()}
    return value


def _size(rows: Sequence[Row]) -> int:
    return len(json.dumps(rows, ensure_ascii=False, separators=(",", ":")))
