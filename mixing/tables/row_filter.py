"""Which rows a source takes: `where: {column: value | [values] | {min:, max:}}`."""

import difflib
from collections.abc import Callable, Mapping
from typing import cast

from pydantic import JsonValue

from configs.errors import Problem
from mixing.tables.table import Row, column_names, value_at

_SHOWN = 6
_MAX_COLUMNS = 1000

_Test = Callable[[JsonValue], bool]


class RowFilter:
    """Takes a row if every condition holds, and keeps what an error message will want to say.

    Args:
        at: the recipe's field, for messages.
    """

    def __init__(self, conditions: Mapping[str, JsonValue], at: str):
        self._at = at
        self._tests = {column: _test(wanted) for column, wanted in conditions.items()}
        self._conditions = conditions
        self._absent = dict.fromkeys(conditions, 0)
        self._values: dict[str, dict[str, None]] = {column: {} for column in conditions}
        self._columns: dict[str, None] = {}
        self._seen = 0
        self._taken = 0

    def takes(self, row: Row) -> bool:
        """Whether the row is taken; ValueError if a range meets a value that is no number."""
        self._seen += 1
        holds = True
        for column, test in self._tests.items():
            try:
                value = value_at(row, column)
            except KeyError:
                self._absent[column] += 1
                self._note_columns(row)
                holds = False
                continue
            if len(self._values[column]) < _SHOWN:
                self._values[column].setdefault(repr(value)[:40])
            try:
                holds = test(value) and holds
            except TypeError as error:
                raise ValueError(
                    f"`{column}` is {value!r:.60}, and {self._at} wants a number there"
                ) from error
        self._taken += holds
        return holds

    def sift(self, row: Row | ValueError) -> Row | ValueError | None:
        """Return the row if it is taken, None if not, and an error as it is or as it arises."""
        try:
            return row if isinstance(row, ValueError) or self.takes(row) else None
        except ValueError as error:
            return error

    def problems(self) -> list[Problem]:
        """Return what is wrong with the filter itself, once rows went through it."""
        if not self._seen:
            return []
        dead = [column for column, count in self._absent.items() if count == self._seen]
        if dead:
            return [self._no_column(column) for column in dead]
        if self._tests and not self._taken:
            return [self._takes_none()]
        return []

    def _note_columns(self, row: Row) -> None:
        if len(self._columns) < _MAX_COLUMNS:
            self._columns.update(dict.fromkeys(column_names(row)))

    def _no_column(self, column: str) -> Problem:
        return no_column(f"{self._at}.{column}", column, list(self._columns))

    def _takes_none(self) -> Problem:
        there = "; ".join(
            f"{column} is {', '.join(values)}{', ...' if len(values) == _SHOWN else ''}"
            for column, values in self._values.items()
        )
        wanted = ", ".join(f"{c}: {w!r}" for c, w in self._conditions.items())
        return Problem(
            where=self._at,
            what=f"no row of {self._seen} has {{{wanted}}}",
            fix=f"In the rows, {there}.",
        )


def no_column(at: str, column: str, there: list[str]) -> Problem:
    """Return the problem of a column that no row has, with the nearest one that they have."""
    near = difflib.get_close_matches(column, there, n=1)
    top = [name for name in there if "." not in name][:12]
    return Problem(
        where=at,
        what=f"no row has a column `{column}`",
        fix=f"Did you mean `{near[0]}`?" if near else f"Columns: {', '.join(top) or 'none'}.",
    )


def _test(wanted: JsonValue) -> _Test:
    if isinstance(wanted, dict):
        bounds = cast("dict[str, float]", wanted)
        low, high = bounds.get("min"), bounds.get("max")

        def within(value: JsonValue) -> bool:
            if value is None:
                return False
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError
            return (low is None or value >= low) and (high is None or value <= high)

        return within
    allowed = wanted if isinstance(wanted, list) else [wanted]
    return lambda value: any(_equal(value, a) for a in allowed)


def _equal(value: JsonValue, wanted: JsonValue) -> bool:
    """JSON's equality: 1 is 1.0, and true is not 1."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)
