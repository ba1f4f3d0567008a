"""A column of pass rates that were measured beforehand, taken while its rows are scanned."""

from array import array
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from configs.errors import Problem
from mixing.tables.row_filter import no_column
from mixing.tables.table import Row, column_names, value_at

F64: TypeAlias = NDArray[np.float64]

_SHOWN = 3


class RateColumn:
    """Eight bytes a row.

    Args:
        name: the column; dots reach into nested values.
        at: the recipe's section, `sources.NAME.difficulty`, for messages.
    """

    def __init__(self, name: str, at: str):
        self._name, self._at = name, f"{at}.pass_rate_column"
        self._rates = array("d")
        self._found = False
        self._columns: dict[str, None] = {}
        self._bad: list[str] = []
        self._num_bad = 0

    def take(self, row: Row, where: str) -> None:
        """Take the next row's rate; a missing value or null is NaN.

        Args:
            where: the row's name in messages.
        """
        value = None
        try:
            value = value_at(row, self._name)
            self._found = True
        except KeyError:
            self._columns.update(dict.fromkeys(column_names(row)) if not self._found else {})
        if value is None:
            self._rates.append(float("nan"))
        elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            self._num_bad += 1
            if len(self._bad) < _SHOWN:
                self._bad.append(f"{value!r:.40} at {where}")
        else:
            self._rates.append(value)

    def problems(self, *, whole: bool) -> list[Problem]:
        """Return what is wrong with the column.

        Args:
            whole: all rows were taken; else one may still have the column.
        """
        if self._num_bad:
            more = self._num_bad - len(self._bad)
            rest = f" and {more:,} more" if more else ""
            return [
                Problem(
                    where=self._at,
                    what=f"`{self._name}` must be numbers from 0 to 1, or null; found "
                    f"{', '.join(self._bad)}{rest}",
                    fix="Name a column of pass rates, or remove it.",
                )
            ]
        if whole and not self._found and self._columns:
            return [no_column(self._at, self._name, list(self._columns))]
        return []

    @property
    def rates(self) -> F64:
        """The rates taken, [N]; complete where there are no problems."""
        return np.array(self._rates, dtype=np.float64)
