"""Which items of a source may come: a window on the policy's own pass rate of each.

    live      may come: its pass rate is within the window, or not known yet
    retired   mastered: it was above the window so many visits in a row
    parked    hopeless for now: it was below; tried again every so many steps
    held      retired or parked, and kept live because fewer than the floor would be

Observations come in the order of steps, whatever order groups finished in; then everything here
is a function of the recipe, the data and those observations.
"""

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from configs.schema import DifficultyConfig

_EPS = 1e-9
_NEVER = 2**31 - 1
_LOW_BITS = 2**32 - 1
_ITEM_BITS = 30
_DEFAULT_FLOOR = 8
_MAX_STREAK = 2**15 - 1


class ItemState(IntEnum):
    """What the window makes of an item."""

    LIVE = 0
    RETIRED = 1
    PARKED = 2


class DifficultyState(TypedDict):
    """What was learned of the items drawn or observed so far, as JSON: columns, one row an item."""

    items: list[int]
    estimates: list[float | None]
    visits: list[int]
    rollouts: list[int]
    streaks: list[int]
    states: list[int]
    due: list[int]
    seen: list[int]
    held: list[int]
    floor: int
    warned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one graded group said of an item."""

    item: int
    pass_rate: float
    """Share of the group's valid rollouts that passed."""
    rollouts: int
    """Those valid rollouts, at least 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DifficultySnapshot:
    """Where a source's items stand; live + retired + parked are all of them."""

    live: int
    """Items that may come."""
    widened: int
    """Those of them outside the window, kept by the floor."""
    retired: int
    parked: int
    unseen: int
    """Items of which no pass rate is known; they are live."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Widened:
    """A warning: the window left too few items, so the nearest others are live too."""

    source: str
    live: int
    """Items live by the window."""
    floor: int
    lowest: float
    """Lowest pass rate of the items that are live now by the floor; NaN where none is known."""
    highest: float

    def __str__(self) -> str:
        return (
            f"source {self.source}: {self.live} items are live by difficulty.window, fewer than "
            f"{self.floor}; the nearest others (pass rates {self.lowest:.2f} to "
            f"{self.highest:.2f}) are trained on too"
        )


class Difficulty:
    """Pass rates and states of one source's items 0 to `size` - 1."""

    def __init__(
        self,
        name: str,
        cfg: DifficultyConfig,
        size: int,
        offline: NDArray[np.float64] | None = None,
    ):
        """Args:
        offline: [size], pass rates measured beforehand, NaN where there is none.
        """
        if cfg.window is None:
            raise ValueError(f"source {name} has no window")
        self._name, self._cfg, self._size = name, cfg, size
        self._low, self._high = cfg.window[0] - _EPS, cfg.window[1] + _EPS
        self._estimates = np.full(size, np.nan)
        self._visits = np.zeros(size, np.int32)
        self._rollouts = np.zeros(size, np.int32)
        self._streaks = np.zeros(size, np.int16)
        self._states = np.zeros(size, np.int8)
        self._due = np.full(size, _NEVER, np.int32)
        self._seen = np.full(size, -1, np.int32)
        self._held: set[int] = set()
        self._floor = floor_of(cfg, size)
        self._warned = False
        if offline is not None:
            self._take_offline(offline)
        self._recount()
        self._hold()

    @property
    def retry_share(self) -> float:
        """Most of the source's draws that retries may take."""
        return self._cfg.retry_share

    @property
    def size(self) -> int:
        """Items of the source."""
        return self._size

    @property
    def eligible(self) -> NDArray[np.bool_]:
        """[size], whether an item may come; a view that later calls change."""
        return self._eligible

    @property
    def num_eligible(self) -> int:
        """How many items may come."""
        return self._counts[ItemState.LIVE] + len(self._held)

    def observe(self, step: int, observations: Sequence[Observation]) -> list[int]:
        """Take in the graded groups of a step, and widen the window where it leaves too few.
        Return the items that may come now and could not before.
        """
        before = self._eligible.copy()
        for seen in observations:
            self._observe(step, seen)
        self._hold()
        return np.flatnonzero(self._eligible & ~before).tolist()

    def due(self, step: int, avoid: Collection[int]) -> int | None:
        """Return the benched item whose retry has been due longest at `step`, if one is."""
        passed_over: list[int] = []
        found = None
        while found is None and self._retries and self._retries[0] >> 32 <= step:
            entry = heapq.heappop(self._retries)
            item = entry & _LOW_BITS
            if self._eligible[item] or self._due[item] != entry >> 32:
                continue
            passed_over.append(entry)
            found = None if item in avoid else item
        for entry in passed_over:
            heapq.heappush(self._retries, entry)
        return found

    def nearest_benched(self, avoid: Collection[int]) -> int | None:
        """Return the benched item nearest to the window, longest unseen first."""
        return next((i for i in self._nearest_benched(len(avoid) + 1) if i not in avoid), None)

    def drawn(self, item: int, step: int) -> None:
        """Tell that `item` was drawn for `step`; a retry is not due again until observed, or until
        another `retry_every` steps have passed."""
        self._seen[item] = max(self._seen[item], step)
        if not self._eligible[item]:
            self._schedule(item, step)

    def require(self, live: int) -> list[int]:
        """Raise the floor: a step asks for so many different items. Return those that may come
        now and could not before."""
        before = set(self._held)
        if (floor := min(live, self._size)) > self._floor:
            self._floor = floor
            self._hold()
        return sorted(self._held - before)

    def take_warning(self) -> Widened | None:
        """Return a warning where the floor binds, once each time that it begins to."""
        begins, self._warned = bool(self._held) and not self._warned, bool(self._held)
        if not begins:
            return None
        rates = self._estimates[sorted(self._held)]
        return Widened(
            source=self._name,
            live=self._counts[ItemState.LIVE],
            floor=self._floor,
            lowest=float(rates.min()),
            highest=float(rates.max()),
        )

    def snapshot(self) -> DifficultySnapshot:
        """Return where the items stand, for metrics."""
        held = [int(self._states[item]) for item in self._held]
        return DifficultySnapshot(
            live=self.num_eligible,
            widened=len(held),
            retired=self._counts[ItemState.RETIRED] - held.count(ItemState.RETIRED),
            parked=self._counts[ItemState.PARKED] - held.count(ItemState.PARKED),
            unseen=self._unseen,
        )

    def estimate(self, item: int) -> float | None:
        """Return the pass rate believed of an item; None where nothing is known."""
        value = float(self._estimates[item])
        return None if math.isnan(value) else value

    def state(self, item: int) -> ItemState:
        """Return what the window makes of an item, the floor left aside."""
        return ItemState(int(self._states[item]))

    def state_dict(self) -> DifficultyState:
        """Return what was learned, of the items drawn or observed alone."""
        items = np.flatnonzero(self._seen >= 0)
        return {
            "items": items.tolist(),
            "estimates": [None if math.isnan(e) else e for e in self._estimates[items].tolist()],
            "visits": self._visits[items].tolist(),
            "rollouts": self._rollouts[items].tolist(),
            "streaks": self._streaks[items].tolist(),
            "states": self._states[items].tolist(),
            "due": self._due[items].tolist(),
            "seen": self._seen[items].tolist(),
            "held": sorted(self._held),
            "floor": self._floor,
            "warned": self._warned,
        }

    def load_state_dict(self, state: DifficultyState) -> None:
        """Take up what `state_dict` returned; called once, on a new instance."""
        items = np.array(state["items"], np.int64)
        self._estimates[items] = [math.nan if e is None else e for e in state["estimates"]]
        self._visits[items] = state["visits"]
        self._rollouts[items] = state["rollouts"]
        self._streaks[items] = state["streaks"]
        self._states[items] = state["states"]
        self._due[items] = state["due"]
        self._seen[items] = state["seen"]
        self._held = set(state["held"])
        self._floor, self._warned = state["floor"], state["warned"]
        self._recount()

    def _observe(self, step: int, seen: Observation) -> None:
        """Move the item's estimate and state. An item that was benched starts anew: what it was
        when it was benched is long ago."""
        item = seen.item
        if seen.rollouts < 1 or not 0 <= seen.pass_rate <= 1:
            raise ValueError(f"not an observation: {seen}")
        state = ItemState(int(self._states[item]))
        if not self._eligible[item]:
            self._visits[item] = self._rollouts[item] = 0
        if self._visits[item] == 0:
            self._unseen -= int(math.isnan(self._estimates[item]))
            self._estimates[item] = seen.pass_rate
        else:
            gap = seen.pass_rate - self._estimates[item]
            self._estimates[item] += self._step_size(item, seen.rollouts) * gap
        self._visits[item] += 1
        self._rollouts[item] += seen.rollouts
        self._seen[item] = max(self._seen[item], step)
        side = self._side(float(self._estimates[item]))
        before = int(self._streaks[item])
        streak = before + side if before * side > 0 else side
        self._streaks[item] = max(-_MAX_STREAK, min(_MAX_STREAK, streak))
        self._move(item, state, self._next_state(item, state, side), step)

    def _hold(self) -> None:
        """Hold as many benched items live as the floor asks, nearest to the window first."""
        need = max(0, self._floor - self._counts[ItemState.LIVE])
        if not need and not self._held:
            return
        held = set(self._nearest_benched(need))
        for item in sorted(self._held - held):
            self._eligible[item] = False
            self._push(item)
        self._eligible[sorted(held)] = True
        self._held = held

    def _take_offline(self, offline: NDArray[np.float64]) -> None:
        """Bench what is outside the window from the start; spread the retries evenly in time."""
        known = ~np.isnan(offline)
        self._estimates[known] = offline[known]
        self._visits[known] = self._rollouts[known] = 1
        easy, hard = self._cfg.easy, self._cfg.hard
        sides = (
            (offline > self._high, ItemState.RETIRED, easy.retire_after, easy.retry_every),
            (offline < self._low, ItemState.PARKED, hard.park_after, hard.retry_every),
        )
        for outside, state, limit, every in sides:
            items = np.flatnonzero(outside)
            if limit == 0 or not len(items):
                continue
            self._states[items] = state
            if every:
                self._due[items] = 1 + np.arange(len(items)) * every // len(items)

    def _recount(self) -> None:
        """Derive from the arrays what is kept beside them."""
        counts = np.bincount(self._states, minlength=len(ItemState)).tolist()
        self._counts = {state: counts[state] for state in ItemState}
        self._unseen = int(np.isnan(self._estimates).sum())
        self._eligible = self._states == ItemState.LIVE
        self._eligible[sorted(self._held)] = True
        waiting = np.flatnonzero(~self._eligible & (self._due < _NEVER))
        entries = (self._due[waiting].astype(np.int64) << 32) | waiting
        self._retries: list[int] = np.sort(entries).tolist()

    def _step_size(self, item: int, rollouts: int) -> float:
        """Return how far the estimate goes towards a new observation."""
        if self._cfg.estimate == "ema":
            return 1 - self._cfg.decay
        return rollouts / (int(self._rollouts[item]) + rollouts)

    def _side(self, estimate: float) -> int:
        """Return 1 above the window, -1 below it, 0 within."""
        return int(estimate > self._high) - int(estimate < self._low)

    def _next_state(self, item: int, state: ItemState, side: int) -> ItemState:
        benched = {1: ItemState.RETIRED, -1: ItemState.PARKED}.get(side)
        if benched is None or state is benched:
            return state if state is benched else ItemState.LIVE
        limit = self._cfg.easy.retire_after if side > 0 else self._cfg.hard.park_after
        tried = int(self._visits[item]) >= self._cfg.min_obs
        enough = limit > 0 and abs(int(self._streaks[item])) >= limit
        return benched if tried and enough else ItemState.LIVE

    def _move(self, item: int, state: ItemState, new: ItemState, step: int) -> None:
        self._states[item] = new
        self._counts[state] -= 1
        self._counts[new] += 1
        if new is ItemState.LIVE:
            self._held.discard(item)
            self._due[item] = _NEVER
            self._eligible[item] = True
            return
        self._eligible[item] = item in self._held
        self._schedule(item, step)

    def _schedule(self, item: int, step: int) -> None:
        """Set when a benched item is tried again."""
        retired = self._states[item] == ItemState.RETIRED
        every = self._cfg.easy.retry_every if retired else self._cfg.hard.retry_every
        self._due[item] = min(step + every, _NEVER - 1) if every else _NEVER
        self._push(item)

    def _push(self, item: int) -> None:
        if self._due[item] < _NEVER:
            heapq.heappush(self._retries, int(self._due[item]) << 32 | item)

    def _nearest_benched(self, count: int) -> list[int]:
        """Return benched items, held or not: nearest to the window first, then longest unseen.

        Distance, last step and number are packed into one key, so that the few nearest of a
        million are found without sorting all.
        """
        items = np.flatnonzero(self._states != ItemState.LIVE)
        estimates = self._estimates[items]
        outside = np.maximum(estimates - self._high, self._low - estimates).clip(0, 1)
        seen = (self._seen[items] + 1).astype(np.uint64)
        keys = np.round(outside * 1000).astype(np.uint64) << np.uint64(54)
        keys |= seen << np.uint64(_ITEM_BITS)
        keys |= items.astype(np.uint64)
        if count < len(keys):
            keys = np.partition(keys, count)[:count]
        return (np.sort(keys) & np.uint64(2**_ITEM_BITS - 1)).tolist()


def floor_of(cfg: DifficultyConfig, size: int) -> int:
    """Return how many items of a source are live at least."""
    items = _DEFAULT_FLOOR if cfg.min_live is None else cfg.min_live
    return min(size, max(items, math.ceil(cfg.min_live_share * size)))
