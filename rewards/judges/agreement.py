"""How well a judge agrees with people: the statistics, of plain lists of numbers."""

import math
import statistics
from collections.abc import Sequence


def nearest(value: float, levels: Sequence[float]) -> float:
    """Return the level nearest to a value, the lower of two."""
    return min(levels, key=lambda level: (abs(level - value), level))


def confusion(
    people: Sequence[float], judge: Sequence[float], levels: Sequence[float]
) -> list[list[int]]:
    """Return the counts [level of people][level of the judge]."""
    at = {level: i for i, level in enumerate(levels)}
    table = [[0] * len(levels) for _ in levels]
    for a, b in zip(people, judge, strict=True):
        table[at[nearest(a, levels)]][at[nearest(b, levels)]] += 1
    return table


def agreement(table: Sequence[Sequence[int]]) -> float:
    """Return the share on the diagonal."""
    return sum(row[i] for i, row in enumerate(table)) / sum(map(sum, table))


def kappa(
    table: Sequence[Sequence[int]], levels: Sequence[float], *, squared: bool = False
) -> float | None:
    """Return Cohen's kappa of a confusion table: 1 full agreement, 0 that of chance.

    None where one level is all that either gave, so that chance alone explains everything.

    Args:
        squared: weigh a disagreement by the squared distance of its levels (Cohen, 1968).
    """
    total = sum(map(sum, table))
    rows = [sum(row) for row in table]
    columns = [sum(row[j] for row in table) for j in range(len(levels))]

    def weight(i: int, j: int) -> float:
        return (levels[i] - levels[j]) ** 2 if squared else float(i != j)

    places = [(i, j) for i in range(len(levels)) for j in range(len(levels))]
    seen = sum(weight(i, j) * table[i][j] for i, j in places) / total
    chance = sum(weight(i, j) * rows[i] * columns[j] for i, j in places) / total**2
    return None if chance == 0 else 1 - seen / chance


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the rank correlation, ties at their mean rank; None where one side is constant."""
    return pearson(_ranks(a), _ranks(b))


def pearson(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the linear correlation; None where one side is constant."""
    if len(a) < 2 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    mean_a, mean_b = statistics.fmean(a), statistics.fmean(b)
    da, db = [x - mean_a for x in a], [x - mean_b for x in b]
    norm = math.sqrt(sum(x * x for x in da)) * math.sqrt(sum(x * x for x in db))
    if norm == 0:  # values that differ by less than their mean's rounding
        return None
    return sum(x * y for x, y in zip(da, db, strict=True)) / norm


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for at in order[start:end]:
            ranks[at] = (start + end - 1) / 2
        start = end
    return ranks
