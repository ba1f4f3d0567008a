"""Which of the recorded rollouts a page shows, within so many bytes."""

import json
import re
from collections.abc import Sequence
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

from orchestrator.report.lines import Tail

BYTES = 900_000
"""Of all rollouts on a page."""
_STEPS = 40
"""Steps of which rollouts are shown, at most: the first, the last, and those spread between."""
_LEVELS = ((10_000, 600, 6000), (4, 600, 6000), (2, 300, 3000), (2, 120, 1000), (1, 60, 400))
"""What is kept: rollouts of a group (the best, the worst, then the first), tokens of each, and
characters of each text. The first level is taken at which a group of each source fits."""
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
    """Keep whole groups, of each source in turn, as long as there is room."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.get("group_id")), []).append(row)
    by_source: dict[str, list[list[Row]]] = {}
    for group in groups.values():
        by_source.setdefault(str(group[0].get("source")), []).append(group)
    in_turn = [g for turn in zip_longest(*by_source.values()) for g in turn if g is not None]
    for level in _LEVELS:
        kept = _as_many_as_fit([_cut_group(group, *level) for group in in_turn], room)
        if len(kept) >= len(by_source) or level is _LEVELS[-1]:
            return [row for group in kept for row in group]
    return []


def _as_many_as_fit(groups: Sequence[list[Row]], room: int) -> list[list[Row]]:
    """Return the first groups, as long as there is room."""
    sizes = accumulate(_size(group) for group in groups)
    return [group for group, size in zip(groups, sizes, strict=True) if size <= room]


def _cut_group(group: list[Row], count: int, tokens: int, characters: int) -> list[Row]:
    if len(group) > count:
        ranked = sorted(group, key=_reward)
        first = [*ranked[-1:], *(ranked[:1] if count > 1 else [])]
        rest = [r for r in group if not any(r is f for f in first)][: count - len(first)]
        kept = {id(row) for row in [*first, *rest]}
        group = [row | {"of_group": len(group)} for row in group if id(row) in kept]
    return [_cut(row, tokens, characters) for row in group]


def _reward(row: Row) -> float:
    value = row.get("reward")
    return float(value) if isinstance(value, int | float) else 0.0


def _cut(row: Row, num_tokens: int, characters: int) -> Row:
    """Shorten what is very long, and say so."""
    cut = {k: _cut_text(v, characters) for k, v in row.items() if k != "tokens"}
    tokens = row.get("tokens")
    cut["tokens"] = None
    if isinstance(tokens, dict) and _is_sound(tokens):
        cut["tokens"] = _cut_tokens(tokens, num_tokens, characters)
    return cut


def _is_sound(tokens: Row) -> bool:
    """Return whether it is what `rollouts.record` writes."""
    texts, runs = tokens.get("text"), tokens.get("sampled")
    left_out = tokens.get("left_out", [0, 0])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return False
    return isinstance(runs, list) and all(
        isinstance(run, list) and len(run) == 2 and all(isinstance(at, int) for at in run)
        for run in (*runs, left_out)
    )


def _cut_tokens(tokens: Row, count: int, characters: int) -> Row:
    """Keep the first tokens, and the numbers of those that were sampled among them."""
    texts = [text if len(text) <= characters else text[:characters] for text in tokens["text"]]
    size = len(texts)
    if size <= count:
        return {**tokens, "text": texts}
    runs = [[a, min(b, count)] for a, b in tokens["sampled"] if a < count]
    sampled = sum(b - a for a, b in runs)
    numbers = ("advantage", "logprob", "trainer_logprob")
    cut = {k: v[:sampled] if k in numbers and isinstance(v, list) else v for k, v in tokens.items()}
    after = size - count
    if (known := tokens.get("left_out")) and known[0] >= count:
        after += cut.pop("left_out")[1]
    return {**cut, "text": texts[:count], "sampled": runs, "after": after}


def _cut_text(value: Any, characters: int) -> Any:
    if isinstance(value, str) and len(value) > characters:
        return f"{value[:characters]} [... {len(value) - characters} characters more]"
    if isinstance(value, list):
        return [_cut_text(each, characters) for each in value[:200]]
    if isinstance(value, dict):
        return {key: _cut_text(each, characters) for key, each in value.items()}
    return value


def _size(rows: Sequence[Row]) -> int:
    """Return about how many bytes they take on the page."""
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode(errors="replace")) + 5 * text.count("<")  # which is written \u003c
