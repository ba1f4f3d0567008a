"""`where`: which rows it takes, and filters that cannot be meant."""

from typing import Any

import pytest

from mixing.tables.row_filter import RowFilter

ROWS: list[dict[str, Any]] = [
    {"level": 1, "kind": "a", "score": 0.25, "ok": True, "x": {"y": "deep"}},
    {"level": 2, "kind": "b", "score": None, "ok": False, "x": {"y": "other"}},
    {"level": 3, "kind": "a", "score": 1, "ok": True, "x": {}},
    {"level": 4, "kind": None, "score": 0.75, "x": "flat"},
]


@pytest.mark.parametrize(
    ("where", "taken"),
    [
        ({}, [1, 2, 3, 4]),
        ({"kind": "a"}, [1, 3]),
        ({"kind": ["b", None]}, [2, 4]),
        ({"level": {"min": 2}}, [2, 3, 4]),
        ({"level": {"min": 2, "max": 3.0}}, [2, 3]),
        ({"score": {"max": 0.75}}, [1, 4]),
        ({"level": [1.0, 9]}, [1]),
        ({"ok": True}, [1, 3]),
        ({"score": True}, []),
        ({"x.y": "deep"}, [1]),
        ({"kind": "a", "level": {"min": 2}}, [3]),
    ],
)
def test_rows_are_taken_when_all_conditions_hold(where: Any, taken: list[int]) -> None:
    row_filter = RowFilter(where, "at")
    assert [row["level"] for row in ROWS if row_filter.sift(row) is row] == taken
    assert bool(row_filter.problems()) == (not taken)


def test_a_filter_that_takes_nothing_says_what_there_is() -> None:
    row_filter = RowFilter({"level": "3"}, "sources.s.data.where")
    assert not any(map(row_filter.takes, ROWS))
    (problem,) = row_filter.problems()
    assert problem.where == "sources.s.data.where"
    assert problem.what == "no row of 4 has {level: '3'}"
    assert problem.fix == "In the rows, level is 1, 2, 3, 4."


def test_a_column_that_no_row_has_gives_the_nearest_one_that_they_have() -> None:
    row_filter = RowFilter({"levle": 1, "x.z": 1}, "sources.s.data.where")
    assert not any(map(row_filter.takes, ROWS))
    first, second = row_filter.problems()
    assert first.where == "sources.s.data.where.levle"
    assert first.fix == "Did you mean `level`?"
    assert second.fix == "Did you mean `x.y`?"


def test_a_range_over_what_is_no_number_is_an_error_of_the_row() -> None:
    row_filter = RowFilter({"kind": {"min": 1}}, "sources.s.data.where")
    error = row_filter.sift(ROWS[0])
    assert isinstance(error, ValueError)
    assert "`kind` is 'a', and sources.s.data.where wants a number" in str(error)
    assert row_filter.sift(ROWS[3]) is None


def test_an_error_passes_through() -> None:
    error = ValueError("not JSON")
    assert RowFilter({"a": 1}, "at").sift(error) is error
