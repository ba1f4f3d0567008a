import asyncio

import pytest

from orchestrator.buffer import GroupBuffer
from rollouts.types import GroupSummary


def summary(group_id: str, step: int) -> GroupSummary:
    return GroupSummary(
        group_id=group_id,
        task_id=group_id,
        source="a",
        step=step,
        rollouts=(),
        samples=(),
        group_ref=None,
        oldest_version=0,
        newest_version=0,
        generate_s=0.0,
        grade_s=0.0,
    )


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 5))


def test_take_waits_for_all_and_returns_dispatch_order():
    async def scenario():
        buffer = GroupBuffer()
        await buffer.expect(1, ("x", "y", "z"))
        taking = asyncio.create_task(buffer.take(1))
        for name in ("z", "x"):
            await buffer.put(name, summary(name, 1))
        await asyncio.sleep(0)
        assert not taking.done()
        await buffer.put("y", summary("y", 1))
        return [g.group_id for g in await taking]

    assert run(scenario()) == ["x", "y", "z"]


def test_a_later_step_that_finishes_first_does_not_train_first():
    async def scenario():
        buffer = GroupBuffer()
        await buffer.expect(1, ("slow",))
        await buffer.expect(2, ("fast",))
        await buffer.put("fast", summary("fast", 2))
        taking = asyncio.create_task(buffer.take(1))
        await asyncio.sleep(0.01)
        assert not taking.done()
        await buffer.put("slow", summary("slow", 1))
        first = await taking
        return [g.group_id for g in (*first, *await buffer.take(2))]

    assert run(scenario()) == ["slow", "fast"]


def test_a_replacement_takes_the_announced_place():
    async def scenario():
        buffer = GroupBuffer()
        await buffer.expect(1, ("a#e0a0", "b#e0a0"))
        await buffer.put("b#e0a0", summary("b#e0a0", 1))
        await buffer.put("a#e0a0", summary("a#e0a1", 1))
        return [g.group_id for g in await buffer.take(1)]

    assert run(scenario()) == ["a#e0a1", "b#e0a0"]


def test_a_producers_failure_is_raised_by_take():
    async def scenario():
        buffer = GroupBuffer()
        taking = asyncio.create_task(buffer.take(1))
        await asyncio.sleep(0)
        await buffer.fail(RuntimeError("engine gone"))
        await taking

    with pytest.raises(RuntimeError, match="engine gone"):
        run(scenario())


def test_delivering_twice_is_an_error():
    async def scenario():
        buffer = GroupBuffer()
        await buffer.expect(1, ("x",))
        await buffer.put("x", summary("x", 1))
        await buffer.put("x", summary("x", 1))

    with pytest.raises(AssertionError, match="twice"):
        run(scenario())
