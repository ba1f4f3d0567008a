"""Groups outside training: as many at once as keep the engines busy, and no queue behind them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from configs.schema import RunConfig
from rollouts.types import GroupRequest

T = TypeVar("T")


async def at_once(
    cfg: RunConfig, requests: Sequence[GroupRequest], work: Callable[[GroupRequest], Awaitable[T]]
) -> list[T]:
    """Work on groups, twice as many at once as the engines have slots for; return what comes of
    each, in order.

    The time that a group may take (`health.generate_s`) counts from when it is asked for: of
    thousands asked for at once, the last would be late by the time of all before it.

    Raises:
        Exception: the first that `work` raised; the others are cancelled.
    """
    slots = cfg.rollout.actors.count * cfg.rollout.max_num_seqs
    largest = max((r.group_size for r in requests), default=1)
    room = asyncio.Semaphore(max(1, 2 * slots // largest))

    async def one(request: GroupRequest) -> T:
        async with room:
            return await work(request)

    asked = [asyncio.create_task(one(r)) for r in requests]
    try:
        return list(await asyncio.gather(*asked))
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
