"""Which item of a windowed source comes next: seeded passes over the items that may come.

A pass visits each item once, in the order of a hash; who may come is asked when its place is
reached, so that a million items of which few are live cost no more than those few. Retries of
benched items come between, up to their share.
"""

import hashlib
import heapq
from collections.abc import Collection, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from mixing.difficulty.window import Difficulty, DifficultyState, Observation

_EPS = 1e-9
_PAST_ALL = 2**64


class LivePoolState(TypedDict):
    """A pool's place, as JSON."""

    step: int
    round: int
    last_key: int
    credit: float
    put_off: list[int]
    items: list[int]
    draws: list[int]
    difficulty: DifficultyState


class LivePool:
    """Draws the items of one source that its window lets come."""

    def __init__(self, name: str, difficulty: Difficulty, seed: int):
        self._name, self._seed = name, seed
        self._difficulty = difficulty
        self._draws = np.zeros(difficulty.size, np.int32)
        self._step = self._taken = 0
        self._credit = 1.0
        self._put_off: list[int] = []
        self._begin_round(0)

    @property
    def difficulty(self) -> Difficulty:
        """What is known of the items."""
        return self._difficulty

    @property
    def taken(self) -> int:
        """Draws taken so far."""
        return self._taken

    @property
    def epoch(self) -> float:
        """Draws taken so far, in epochs of all items."""
        return self._taken / self._difficulty.size

    def begin(self, step: int) -> None:
        """Tell which step is planned from now on: retries come due by it."""
        self._step = step

    def require(self, live: int) -> None:
        """Tell how many different items a step asks for: fewer are not live from then on."""
        self._join(self._difficulty.require(live))

    def take(self, avoid: Collection[int], end: int | None = None) -> tuple[int, int] | None:
        """Return the next (item, times it was drawn before) whose item is not in `avoid`; None
        where the source has no other item. Where no other is live, the benched item nearest to
        the window comes.

        Args:
            end: only so many draws may be taken in all; None for no bound.
        """
        if end is not None and self._taken >= end:
            return None
        item = self._retry(avoid)
        if item is None and self._any_left(avoid):
            item = self._next_live(avoid)
        if item is None:
            item = self._difficulty.due(self._step, avoid)
        if item is None:
            item = self._difficulty.nearest_benched(avoid)
        return None if item is None else self._draw(item)

    def take_spare(self, avoid: Collection[int], end: int | None = None) -> tuple[int, int] | None:
        """Return the next live item as `take` does; None where no other is live."""
        if (end is not None and self._taken >= end) or not self._any_left(avoid):
            return None
        return self._draw(self._next_live(avoid))

    def observe(self, step: int, observations: Sequence[Observation]) -> None:
        """Take in the graded groups of a step; who may come from now on has its place in this
        round, if that is ahead."""
        self._join(self._difficulty.observe(step, observations))

    def state_dict(self) -> LivePoolState:
        """Return the place, and what is known of the items."""
        drawn = np.flatnonzero(self._draws)
        return {
            "step": self._step,
            "round": self._round,
            "last_key": self._last_key,
            "credit": self._credit,
            "put_off": list(self._put_off),
            "items": drawn.tolist(),
            "draws": self._draws[drawn].tolist(),
            "difficulty": self._difficulty.state_dict(),
        }

    def load_state_dict(self, state: LivePoolState) -> None:
        """Go to the place that `state_dict` returned; called once, on a new instance."""
        self._difficulty.load_state_dict(state["difficulty"])
        self._draws[np.array(state["items"], np.int64)] = state["draws"]
        self._taken, self._step = sum(state["draws"]), state["step"]
        self._credit = state["credit"]
        self._put_off = list(state["put_off"])
        self._begin_round(state["round"], after=state["last_key"])

    def skip_epoch(self, state: LivePoolState) -> None:
        """Begin anew where `state` is that of a source whose items were others: nothing is known of
        these, and no (item, draw) comes that may have been another one."""
        self._draws[:] = max(state["draws"], default=0)
        self._taken, self._step = int(self._draws.sum()), state["step"]

    def _draw(self, item: int) -> tuple[int, int]:
        self._taken += 1
        self._draws[item] += 1
        self._difficulty.drawn(item, self._step)
        return item, int(self._draws[item]) - 1

    def _retry(self, avoid: Collection[int]) -> int | None:
        """Return a benched item that is due, while retries stay within their share."""
        self._credit = min(1.0, self._credit + self._difficulty.retry_share)
        retry = self._difficulty.due(self._step, avoid) if self._credit >= 1 - _EPS else None
        self._credit -= retry is not None
        return retry

    def _join(self, items: Sequence[int]) -> None:
        keys = _hash(np.array(items, np.uint64), self._salt).tolist()
        for key, item in zip(keys, items, strict=True):
            if key > self._last_key:
                heapq.heappush(self._joiners, (key, item))

    def _any_left(self, avoid: Collection[int]) -> bool:
        """Return whether an item that may come is not in `avoid`."""
        live = self._difficulty.num_eligible
        if live > len(avoid):
            return True
        return live > sum(bool(self._difficulty.eligible[item]) for item in avoid)

    def _next_live(self, avoid: Collection[int]) -> int:
        """Return what was put off and may come, else the next of the round; there is one."""
        may_come = self._difficulty.eligible
        self._put_off = [item for item in self._put_off if may_come[item]]
        for place, item in enumerate(self._put_off):
            if item not in avoid:
                return self._put_off.pop(place)
        while True:
            item = self._next_of_round()
            if item is None:
                self._begin_round(self._round + 1)
            elif item in avoid:
                self._put_off.append(item)
            else:
                return item

    def _next_of_round(self) -> int | None:
        """Return the item with the next key that may come; None at the round's end."""
        while True:
            left = self._place < len(self._items)
            key = int(self._keys[self._place]) if left else _PAST_ALL
            if self._joiners and self._joiners[0][0] < key:
                key, item = heapq.heappop(self._joiners)
            elif left:
                item = int(self._items[self._place])
                self._place += 1
            else:
                return None
            if key > self._last_key and self._difficulty.eligible[item]:
                self._last_key = key
                return item

    def _begin_round(self, number: int, after: int = -1) -> None:
        self._round, self._last_key = number, after
        digest = hashlib.sha256(f"{self._seed}/{self._name}/{number}".encode()).digest()
        self._salt = int.from_bytes(digest[:8], "big")
        items = np.flatnonzero(self._difficulty.eligible)
        keys = _hash(items.astype(np.uint64), self._salt)
        ahead = keys > np.uint64(after) if after >= 0 else np.ones(len(keys), np.bool_)
        items, keys = items[ahead], keys[ahead]
        order = np.argsort(keys)
        self._items: NDArray[np.int64] = items[order]
        self._keys: NDArray[np.uint64] = keys[order]
        self._place = 0
        self._joiners: list[tuple[int, int]] = []


def _hash(items: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """Return 64-bit keys, different for different items (the finaliser of splitmix64)."""
    z = items + np.uint64(salt)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
