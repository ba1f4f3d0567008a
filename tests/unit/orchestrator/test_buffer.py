"""The buffer: groups in and out once, news, and the producer's failure."""

import asyncio

import pytest

from orchestrator.buffer import GroupBuffer
from tests.made_groups import made_group


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 5))


def test_groups_are_taken_in_the_order_asked_for_and_once():
    buffer = GroupBuffer()
    for name in "zxy":
        buffer.put(made_group(group_id=name))
    assert [g.group_id for g in buffer.take(("x", "y"))] == ["x", "y"]
    with pytest.raises(KeyError):
        buffer.take(("x",))
    dropped = buffer.drop("z")
    assert dropped is not None and dropped.group_id == "z" and buffer.drop("z") is None


def test_delivering_twice_is_an_error():
    buffer = GroupBuffer()
    buffer.put(made_group(group_id="x"))
    with pytest.raises(AssertionError, match="twice"):
        buffer.put(made_group(group_id="x"))


def test_news_of_before_and_after_wake_who_waits():
    async def scenario():
        buffer = GroupBuffer()
        buffer.put(made_group(group_id="x"))
        await buffer.news(None)
        waiting = asyncio.create_task(buffer.news(None))
        await asyncio.sleep(0)
        assert not waiting.done()
        buffer.tell()
        await waiting
        await buffer.news(0.001)  # nothing new: the time is over

    run(scenario())


def test_a_failure_is_raised_by_every_wait_and_the_first_one_stays():
    async def scenario():
        buffer = GroupBuffer()
        waiting = asyncio.create_task(buffer.news(None))
        await asyncio.sleep(0)
        buffer.fail(RuntimeError("engine gone"))
        buffer.fail(RuntimeError("and the next one"))
        with pytest.raises(RuntimeError, match="engine gone"):
            await waiting
        buffer.raise_failure()

    with pytest.raises(RuntimeError, match="engine gone"):
        run(scenario())


def test_who_is_cancelled_as_news_come_is_cancelled():
    async def scenario():
        buffer = GroupBuffer()
        waiting = asyncio.create_task(buffer.news(60))
        await asyncio.sleep(0.01)
        buffer.tell()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(scenario())
