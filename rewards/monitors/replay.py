"""Show a board what a run has been through, from its files."""

from collections.abc import Iterator, Sequence

from rewards.monitors.alarms import Alarm
from rewards.monitors.board import MonitorBoard, Row


def replay(
    board: MonitorBoard, steps: Sequence[Row], evaluations: Sequence[Row]
) -> Iterator[Alarm]:
    """Yield what the rows raise and clear, in the order in which a run shows them.

    Args:
        steps: of metrics.jsonl.
        evaluations: of eval.jsonl; those after step s come after the row of step s.
    """
    rows = [(_step(row), 0, place, row) for place, row in enumerate(steps)]
    rows += [(_step(row), 1, place, row) for place, row in enumerate(evaluations)]
    for _, late, _, row in sorted(rows, key=lambda r: r[:3]):
        yield from board.evaluated(row) if late else board.trained(row)


def _step(row: Row) -> int:
    return int(str(row["step"]))
