"""Finished groups waiting for the step they are destined for.

Invariants:
- a group is put in once, and leaves once, for its own step: short completions never train first
  because they finished first;
- `take(step)` returns when all P groups of that step are there, in dispatch order;
- a failure put in by the producer is raised by the waiting `take`: nothing waits for the dead.
"""

import asyncio
from collections.abc import Callable

from rollouts.types import GroupSummary


class GroupBuffer:
    """Holds GroupSummary by destined step. The driver's one event loop is its lock."""

    def __init__(self) -> None:
        self._expected: dict[int, dict[str, GroupSummary | None]] = {}
        self._changed = asyncio.Condition()
        self._failure: BaseException | None = None

    async def expect(self, step: int, group_ids: tuple[str, ...]) -> None:
        """Announce the groups of a step, in dispatch order."""
        async with self._changed:
            self._expected[step] = dict.fromkeys(group_ids)
            self._changed.notify_all()

    async def put(self, ordered_as: str, summary: GroupSummary) -> None:
        """Give the finished group of the place that was announced as `ordered_as`."""
        async with self._changed:
            places = self._expected[summary.step]
            if places[ordered_as] is not None:
                raise AssertionError(f"group {ordered_as} was delivered twice")
            places[ordered_as] = summary
            self._changed.notify_all()

    async def fail(self, error: BaseException) -> None:
        """Make every `take`, now and later, raise `error`."""
        async with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    async def take(self, step: int) -> tuple[GroupSummary, ...]:
        """Wait for all groups of `step` and remove them."""
        async with self._changed:
            await self._changed.wait_for(self._ready(step))
            if self._failure is not None:
                raise self._failure
            groups = self._expected.pop(step)
            return tuple(g for g in groups.values() if g is not None)

    def _ready(self, step: int) -> Callable[[], bool]:
        def ready() -> bool:
            places = self._expected.get(step)
            complete = places is not None and None not in places.values()
            return complete or self._failure is not None

        return ready
