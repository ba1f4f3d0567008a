"""Which item of a source comes next: a new seeded permutation each epoch, no item left out."""

import random
from collections.abc import Container
from typing import TypedDict


class CursorState(TypedDict):
    """A cursor's place, as JSON."""

    next: int
    taken: list[int]
    size: int


class Cursor:
    """Walks the endless sequence of draws 0, 1, 2, ...: draw d is item perm[epoch][d mod size] of
    epoch d // size.

    A draw whose item may not come now (it is in the step already) is put off, not lost: later
    draws are taken first, and the oldest open draw comes as soon as it may.
    """

    def __init__(self, name: str, size: int, seed: int):
        self._name, self._size, self._seed = name, size, seed
        self._next = 0
        self._taken: set[int] = set()
        self._permutations: dict[int, list[int]] = {}

    def take(self, avoid: Container[int]) -> tuple[int, int]:
        """Return the next (item, epoch) whose item is not in `avoid`; if all are, the next."""
        chosen = None
        for draw in range(self._next, self._next + len(self._taken) + 2 * self._size):
            if draw in self._taken:
                continue
            chosen = draw if chosen is None else chosen
            if self._item(draw) not in avoid:
                chosen = draw
                break
        assert chosen is not None  # the range is longer than what is taken
        self._taken.add(chosen)
        while self._next in self._taken:
            self._taken.remove(self._next)
            self._next += 1
        return self._item(chosen), chosen // self._size

    def _item(self, draw: int) -> int:
        epoch, place = divmod(draw, self._size)
        if epoch not in self._permutations:
            oldest = self._next // self._size
            self._permutations = {e: p for e, p in self._permutations.items() if e >= oldest}
            items = list(range(self._size))
            random.Random(f"{self._seed}/{self._name}/{epoch}").shuffle(items)
            self._permutations[epoch] = items
        return self._permutations[epoch][place]

    def state_dict(self) -> CursorState:
        """Return the place."""
        return {"next": self._next, "taken": sorted(self._taken), "size": self._size}

    def load_state_dict(self, state: CursorState) -> None:
        """Go to the place that `state_dict` returned."""
        self._next, self._taken = state["next"], set(state["taken"])
        self._permutations = {}

    def skip_epoch(self, state: CursorState) -> None:
        """Go to the first draw of the epoch after all that `state`, of a source whose items were
        others, had begun: no (item, epoch) comes that may have been another one."""
        begun = max([state["next"] - 1, *state["taken"]]) // state["size"]
        self._next, self._taken = (begun + 1) * self._size, set()
