"""A signal cancels the work, which cleans up; nothing is left of the handlers."""

import asyncio
import os
import signal
from types import FrameType

import pytest

from orchestrator.interrupt import Signalled, run_interruptible
from orchestrator.loop import StopRequest
from orchestrator.run import listen_for_signals


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_run_does_after_its_last_step_ends_with_exit_codes_too(number: int) -> None:
    """Closing trackers takes up to a minute: the command line's handlers are back by then."""

    def ours(number: int, frame: FrameType | None) -> None:
        raise Signalled(number)

    async def run() -> None:
        stop = StopRequest()
        with listen_for_signals(stop, lambda: None):
            os.kill(os.getpid(), number)
            await asyncio.wait_for(stop.event.wait(), 10)
        os.kill(os.getpid(), number)

    before = signal.signal(number, ours)
    try:
        with pytest.raises(Signalled):
            asyncio.run(run())
        assert signal.getsignal(number) is ours
    finally:
        signal.signal(number, before)
