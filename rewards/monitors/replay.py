"""Show a board what a run has been through, from its files.

Where weights went back, the board forgets the steps since: no figure of theirs is compared with,
and their alarms are cleared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from rewards.monitors.alarms import Alarm
from rewards.monitors.board import MonitorBoard, Row

ROLLED_BACK_TO = "guards/rolled_back_to"
"""In the row of a step after which weights went back: the step that they are of again."""


Shown: TypeAlias = tuple[bool, Row]
"""Whether it is a row of eval.jsonl, and the row."""


def replay(
    board: MonitorBoard, steps: Sequence[Row], evaluations: Sequence[Row]
) -> Iterator[Alarm]:
    """Yield what the rows raise and clear, in the order in which a run shows them.

    Args:
        steps: of metrics.jsonl.
        evaluations: of eval.jsonl; those after step s come after the row of step s.
    """
    before: list[Shown] = []
    for shown in _in_order(steps, evaluations):
        before.append(shown)
        yield from _show(board, shown)
        if (to := _went_back(shown)) is not None:
            yield from _restart(board, before, _number(shown[1], "step"), to)


def go_back(
    board: MonitorBoard, step: int, to: int, steps: Sequence[Row], evaluations: Sequence[Row]
) -> tuple[Alarm, ...]:
    """Have the board forget what came after step `to`, whose weights the run has again; return
    the alarms that this clears, after `step`."""
    return tuple(_restart(board, list(_in_order(steps, evaluations)), step, to))


def _restart(board: MonitorBoard, shown: Sequence[Shown], step: int, to: int) -> Iterator[Alarm]:
    before = board.standing
    board.start()
    for earlier in _lineage(shown, to):
        _show(board, earlier)
    still = {(a.source, a.monitor) for a in board.standing}
    for alarm in before:
        if (alarm.source, alarm.monitor) not in still:
            text = f"weights are those of step {to} again"
            yield replace(alarm, step=step, event="cleared", text=text, figures={})


def _lineage(shown: Sequence[Shown], to: int) -> list[Shown]:
    """Return the rows that the weights of step `to` have come through."""
    kept: list[Shown] = []
    early = [s for s in shown if _number(s[1], "step") <= to]
    for place, row in enumerate(early):
        kept.append(row)
        if (back := _went_back(row)) is not None:
            kept = _lineage(early[:place], back)
    return kept


def _went_back(shown: Shown) -> int | None:
    late, row = shown
    return None if late or row.get(ROLLED_BACK_TO) is None else _number(row, ROLLED_BACK_TO)


def _in_order(steps: Sequence[Row], evaluations: Sequence[Row]) -> Iterator[Shown]:
    rows = [(_number(row, "step"), False, place, row) for place, row in enumerate(steps)]
    rows += [(_number(row, "step"), True, place, row) for place, row in enumerate(evaluations)]
    for _, late, _, row in sorted(rows, key=lambda r: r[:3]):
        yield late, row


def _show(board: MonitorBoard, shown: Shown) -> tuple[Alarm, ...]:
    late, row = shown
    return board.evaluated(row) if late else board.trained(row)


def _number(row: Row, name: str) -> int:
    return int(float(str(row[name])))
