"""Asynchronous work of a command that a signal ends without a traceback."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signalled(BaseException):
    """SIGINT or SIGTERM, where nothing has a handler of its own for them."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def run_interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end.

    Raises:
        Signalled: SIGINT or SIGTERM came; the work was cancelled, and has cleaned up.
    """
    caught: list[int] = []
    try:
        return asyncio.run(_watched(work, caught))
    except asyncio.CancelledError:
        if not caught:
            raise
    raise Signalled(caught[0])


async def _watched(work: Coroutine[Any, Any, T], caught: list[int]) -> T:
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)

    def stop(number: int) -> None:
        caught.append(number)
        task.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
