"""Which item of a source comes next: a new seeded permutation each epoch, no item left out."""

import hashlib
from collections.abc import Container
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class CursorState(TypedDict):
    """A cursor's place, as JSON."""

    head: int
    put_off: list[int]
    size: int


class Cursor:
    """Walks the endless sequence of draws 0, 1, 2, ...: draw d is item perm[epoch][d mod size] of
    epoch d // size.

    A draw whose item may not come now (it is in the step already) is put off, not lost: later
    draws are taken first, and the oldest put-off draw comes as soon as it may.
    """

    def __init__(self, name: str, size: int, seed: int):
        self._name, self._size, self._seed = name, size, seed
        self._head = 0
        self._put_off: list[int] = []
        """Draws below head that were not taken, oldest first."""
        self._permutations: dict[int, NDArray[np.int32]] = {}

    @property
    def taken(self) -> int:
        """Draws taken so far."""
        return self._head - len(self._put_off)

    @property
    def epoch(self) -> float:
        """Draws taken so far, in epochs."""
        return self.taken / self._size

    def take(self, avoid: Container[int], end: int | None = None) -> tuple[int, int] | None:
        """Return the next (item, epoch) whose item is not in `avoid`, or None if there is none.

        Args:
            end: only draws below this one may be taken; None for no bound.
        """
        for place, draw in enumerate(self._put_off):
            if (item := self._item(draw)) not in avoid:
                del self._put_off[place]
                return item, draw // self._size
        # A whole epoch is among the next 2 * size draws: nothing new comes after them.
        last = self._head + 2 * self._size
        for draw in range(self._head, last if end is None else min(last, end)):
            if (item := self._item(draw)) not in avoid:
                self._put_off.extend(range(self._head, draw))
                self._head = draw + 1
                return item, draw // self._size
        return None

    def _item(self, draw: int) -> int:
        epoch, place = divmod(draw, self._size)
        if epoch not in self._permutations:
            oldest = min([*self._put_off[:1], self._head]) // self._size
            self._permutations = {e: p for e, p in self._permutations.items() if e >= oldest}
            self._permutations[epoch] = _permutation(
                f"{self._seed}/{self._name}/{epoch}", self._size
            )
        return int(self._permutations[epoch][place])

    def state_dict(self) -> CursorState:
        """Return the place."""
        return {"head": self._head, "put_off": list(self._put_off), "size": self._size}

    def load_state_dict(self, state: CursorState) -> None:
        """Go to the place that `state_dict` returned."""
        self._head, self._put_off = state["head"], list(state["put_off"])
        self._permutations = {}

    def skip_epoch(self, state: CursorState) -> None:
        """Go to the first draw of the epoch after all that `state`, of a source whose items were
        others, had begun: no (item, epoch) comes that may have been another one."""
        begun = (state["head"] - 1) // state["size"]
        self._head, self._put_off = (begun + 1) * self._size, []
        self._permutations = {}


def _permutation(key: str, size: int) -> NDArray[np.int32]:
    """Return a permutation that depends on `key` alone.

    numpy keeps the raw stream of a bit generator the same over its versions, and not that of
    `Generator.permutation`: a resumed run must meet the same order after an upgrade.
    """
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16])
    raw = np.random.PCG64(seed).random_raw(size)
    return np.argsort(raw, kind="stable").astype(np.int32)
