"""A signal cancels the work, which cleans up; nothing is left of the handlers."""

import asyncio
import os
import signal

import pytest

from orchestrator.interrupt import Signalled, run_interruptible


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_work_and_lets_it_clean_up(number: int) -> None:
    cleaned: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append("yes")

    before = signal.getsignal(number)
    try:
        with pytest.raises(Signalled) as caught:
            run_interruptible(work())
    finally:
        signal.signal(number, before)
    assert caught.value.number == number and cleaned == ["yes"]


def test_work_that_ends_or_fails_does_so_as_ever() -> None:
    async def good() -> int:
        return 3

    async def bad() -> int:
        raise ValueError("no")

    assert run_interruptible(good()) == 3
    with pytest.raises(ValueError, match="no"):
        run_interruptible(bad())
