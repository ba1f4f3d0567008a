"""Groups outside training: how many are asked for at once, and what a failure leaves."""

import asyncio

import pytest

from configs.schema import RunConfig
from orchestrator.at_once import at_once
from rollouts.types import GroupRequest, Sampling
from tests.unit.orchestrator.fakes import made_task


def recipe(engines: int, slots: int) -> RunConfig:
    source = {
        "name": "a",
        "data": {"procedural": "reasoning_gym/chain_sum"},
        "rewards": [{"name": "r", "use": "exact"}],
    }
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 1,
            "model": {"path": "nowhere"},
            "sources": [source],
            "batch": {"groups_per_step": 2},
            "rollout": {"actors": {"count": engines}, "max_num_seqs": slots},
        }
    )


def asked(*sizes: int) -> list[GroupRequest]:
    return [
        GroupRequest(
            group_id=str(i),
            task=made_task("a", i),
            group_size=size,
            sampling=Sampling(temperature=1.0, max_tokens=4),
            step=-1,
        )
        for i, size in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("engines", "slots", "sizes", "most"),
    [
        (1, 4, [1] * 50, 8),
        (3, 4, [4] * 50, 6),
        (1, 8, [1, 4] * 20, 4),  # by the largest group
        (1, 2, [16] * 5, 1),  # one group is more than the engine holds
        (2, 100, [1] * 5, 5),
        (1, 4, [], 0),
    ],
)
def test_no_more_are_asked_for_than_twice_the_engines_slots(
    engines: int, slots: int, sizes: list[int], most: int
) -> None:
    working, largest = 0, 0

    async def work(request: GroupRequest) -> str:
        nonlocal working, largest
        working += 1
        largest = max(largest, working)
        for _ in range(1 + int(request.group_id) % 3):
            await asyncio.sleep(0)
        working -= 1
        return request.group_id

    async def run() -> list[str]:
        async with asyncio.timeout(10):
            return await at_once(recipe(engines, slots), asked(*sizes), work)

    assert asyncio.run(run()) == [str(i) for i in range(len(sizes))]
    assert largest == most


def test_after_a_failure_the_others_are_cancelled_and_the_rest_is_not_begun() -> None:
    begun: list[str] = []
    ended: list[str] = []

    async def work(request: GroupRequest) -> None:
        begun.append(request.group_id)
        try:
            if request.group_id == "1":
                raise ValueError("the engine is gone")
            await asyncio.sleep(60)
        finally:
            ended.append(request.group_id)

    async def run() -> None:
        async with asyncio.timeout(10):
            await at_once(recipe(1, 2), asked(*[1] * 20), work)

    with pytest.raises(ValueError, match="the engine is gone"):
        asyncio.run(run())
    assert begun in (["0", "1", "2", "3"], ["0", "1", "2", "3", "4"])  # the failed one made room
    assert sorted(ended) == begun
