"""Draws that were not trained on and are drawn again before anything new: spares that no place
needed, and groups that came too late."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mixing.slates.group_ids import Drawn

ReturnedState = dict[str, list[list[int]]]


class Returned:
    """The draws that came back, by source, oldest first."""

    def __init__(self) -> None:
        self._drawn: dict[str, list[Drawn]] = {}

    def give(self, source: str, drawn: Sequence[Drawn]) -> None:
        """Take draws back."""
        if drawn:
            self._drawn.setdefault(source, []).extend(drawn)

    def take(
        self, source: str, avoid: Collection[int], may_come: NDArray[np.bool_] | None = None
    ) -> Drawn | None:
        """Return the oldest draw whose item is not in `avoid`; those that may no longer come are
        let go."""
        drawn = self._drawn.get(source, [])
        if may_come is not None:
            drawn[:] = [one for one in drawn if may_come[one.item]]
        for index, one in enumerate(drawn):
            if one.item not in avoid:
                return drawn.pop(index)
        return None

    def forget(self, source: str) -> None:
        """Drop the source's draws, whose items are no more."""
        self._drawn.pop(source, None)

    def count(self, source: str) -> int:
        """Return how many of the source's draws wait to be drawn again."""
        return len(self._drawn.get(source, []))

    def state_dict(self) -> ReturnedState:
        """Return all of them."""
        return {source: [list(one) for one in drawn] for source, drawn in self._drawn.items()}

    def load_state_dict(self, state: Mapping[str, list[list[int]]]) -> None:
        """Take up what `state_dict` returned."""
        self._drawn = {source: [Drawn(*one) for one in drawn] for source, drawn in state.items()}
