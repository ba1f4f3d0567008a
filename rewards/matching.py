"""Matching one list's items with another's so that the scores of the pairs sum highest."""

from collections.abc import Sequence

_EXACT_CELLS = 40_000
"""Beyond so many pairs, matching takes the best pair first and is not always the best in all."""


def best_in_order(scores: Sequence[Sequence[float]]) -> float:
    """Return the highest sum of scores[i][j] over pairs in which both i and j rise."""
    above = [0.0] * (len(scores[0]) + 1) if scores else [0.0]
    for row in scores:
        best = [0.0]
        for j, score in enumerate(row):
            best.append(max(above[j] + score, above[j + 1], best[j]))
        above = best
    return above[-1]


def best_assignment(scores: Sequence[Sequence[float]]) -> float:
    """Return the highest sum of scores[i][j] over pairs in which no i or j is there twice."""
    if not scores or not scores[0]:
        return 0.0
    if len(scores) > len(scores[0]):
        scores = list(zip(*scores, strict=True))
    if len(scores) * len(scores[0]) > _EXACT_CELLS:
        return _best_first(scores)
    return _hungarian(scores)


def _best_first(scores: Sequence[Sequence[float]]) -> float:
    pairs = sorted(((s, i, j) for i, row in enumerate(scores) for j, s in enumerate(row)), key=_low)
    rows, columns, total = set[int](), set[int](), 0.0
    for score, i, j in pairs:
        if i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
            total += score
    return total


def _low(pair: tuple[float, int, int]) -> tuple[float, int, int]:
    return (-pair[0], pair[1], pair[2])


def _hungarian(scores: Sequence[Sequence[float]]) -> float:
    """Assign each row a column by shortest augmenting paths with potentials; rows <= columns."""
    rows, columns = len(scores), len(scores[0])
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    row_of = [0] * (columns + 1)  # 1-based; 0 for a free column, column 0 stands for the new row
    for new in range(1, rows + 1):
        row_of[0] = new
        came_from = [0] * (columns + 1)
        slack = [float("inf")] * (columns + 1)
        done = [False] * (columns + 1)
        at = 0
        while row_of[at] != 0:
            done[at] = True
            row, step, nearest = row_of[at], float("inf"), 0
            for j in range(1, columns + 1):
                if done[j]:
                    continue
                cost = -scores[row - 1][j - 1] - row_price[row] - column_price[j]
                if cost < slack[j]:
                    slack[j], came_from[j] = cost, at
                if slack[j] < step:
                    step, nearest = slack[j], j
            for j in range(columns + 1):
                if done[j]:
                    row_price[row_of[j]] += step
                    column_price[j] -= step
                else:
                    slack[j] -= step
            at = nearest
        while at:
            row_of[at] = row_of[came_from[at]]
            at = came_from[at]
    return sum(scores[row_of[j] - 1][j - 1] for j in range(1, columns + 1) if row_of[j])
