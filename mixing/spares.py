"""Replacements, drawn together with the step that may need them.

Each place of a step has spares of its own, so that who gets which does not depend on who finishes
first; what was not needed comes back when the step was trained, and is drawn before anything new.
"""

from collections.abc import Collection, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

Drawn = tuple[int, int]
"""An item and its epoch."""


class SparesState(TypedDict):
    """Spares as JSON."""

    lent: dict[str, dict[str, list[list[int] | None]]]
    places: dict[str, dict[str, int]]
    returned: dict[str, list[list[int]]]


class Spares:
    """Draws set aside, by step and source."""

    def __init__(self) -> None:
        self._lent: dict[int, dict[str, list[Drawn | None]]] = {}
        """None where a spare was used."""
        self._places: dict[int, dict[str, int]] = {}
        self._returned: dict[str, list[Drawn]] = {}

    def lend(self, step: int, source: str, places: int, drawn: Sequence[Drawn]) -> None:
        """Set `drawn` aside for the source's places in `step`: one each, then one each again."""
        if not drawn:
            return
        self._lent.setdefault(step, {})[source] = list(drawn)
        self._places.setdefault(step, {})[source] = places

    def take(self, step: int, source: str, place: int) -> Drawn | None:
        """Return the next spare of a place; None when it had all of its own.

        Args:
            place: which of the source's places in the step, from 0.
        """
        lent = self._lent.get(step, {}).get(source, [])
        for index in range(place, len(lent), self._places.get(step, {}).get(source, 1)):
            if (drawn := lent[index]) is not None:
                lent[index] = None
                return drawn
        return None

    def end(self, step: int) -> None:
        """Take back what the places of a trained step did not need."""
        for source, lent in self._lent.pop(step, {}).items():
            self._returned.setdefault(source, []).extend(d for d in lent if d is not None)
        self._places.pop(step, None)

    def take_returned(
        self, source: str, avoid: Collection[int], may_come: NDArray[np.bool_] | None = None
    ) -> Drawn | None:
        """Return the oldest draw that came back and whose item is not in `avoid`; those that may
        no longer come are let go."""
        returned = self._returned.get(source, [])
        if may_come is not None:
            returned[:] = [drawn for drawn in returned if may_come[drawn[0]]]
        for index, (item, _) in enumerate(returned):
            if item not in avoid:
                return returned.pop(index)
        return None

    def forget(self, source: str) -> None:
        """Drop the source's draws, whose items are no more."""
        self._returned.pop(source, None)
        for lent in self._lent.values():
            lent.pop(source, None)

    def num_returned(self, source: str) -> int:
        """Return how many of the source's draws came back and wait to be drawn again."""
        return len(self._returned.get(source, []))

    def state_dict(self) -> SparesState:
        """Return all spares."""
        return {
            "lent": {
                str(step): {
                    s: [None if d is None else list(d) for d in lent]
                    for s, lent in by_source.items()
                }
                for step, by_source in self._lent.items()
            },
            "places": {str(step): dict(places) for step, places in self._places.items()},
            "returned": {s: [list(d) for d in drawn] for s, drawn in self._returned.items()},
        }

    def load_state_dict(self, state: SparesState) -> None:
        """Take up what `state_dict` returned."""
        self._lent = {
            int(step): {
                s: [None if d is None else _drawn(d) for d in lent] for s, lent in by_source.items()
            }
            for step, by_source in state["lent"].items()
        }
        self._places = {int(step): dict(places) for step, places in state["places"].items()}
        self._returned = {s: [_drawn(d) for d in drawn] for s, drawn in state["returned"].items()}


def _drawn(pair: list[int]) -> Drawn:
    item, epoch = pair
    return item, epoch
