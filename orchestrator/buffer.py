"""Accepted groups that wait to be trained on, and the failure of whoever makes them.

Invariants:
- a group is put in once and taken out once;
- a failure put in by the producer is raised by whoever waits: nothing waits for the dead.
"""

import asyncio
from collections.abc import Sequence

from rollouts.types import GroupSummary


class GroupBuffer:
    """Holds GroupSummary by group id. The driver's one event loop is its lock."""

    def __init__(self) -> None:
        self._groups: dict[str, GroupSummary] = {}
        self._news = asyncio.Event()
        self._failure: BaseException | None = None

    def put(self, summary: GroupSummary) -> None:
        """Give a group."""
        if summary.group_id in self._groups:
            raise AssertionError(f"group {summary.group_id} was delivered twice")
        self._groups[summary.group_id] = summary
        self.tell()

    def take(self, group_ids: Sequence[str]) -> tuple[GroupSummary, ...]:
        """Remove groups, all of which are there, and return them."""
        return tuple(self._groups.pop(group_id) for group_id in group_ids)

    def drop(self, group_id: str) -> GroupSummary | None:
        """Remove a group that nobody wants; None if it is not there."""
        return self._groups.pop(group_id, None)

    def fail(self, error: BaseException) -> None:
        """Make every wait, now and later, raise `error`."""
        self._failure = self._failure or error
        self.tell()

    def tell(self) -> None:
        """Wake whoever waits for news."""
        self._news.set()

    async def news(self, timeout_s: float | None) -> None:
        """Wait until something happens, at most so long.

        Raises:
            BaseException: what the producer failed with.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise what the producer failed with, if it did."""
        if self._failure is not None:
            raise self._failure
