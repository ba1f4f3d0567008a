"""Verdicts are asked for once: kept in memory and on disk, and shared while they are awaited."""

import asyncio
from pathlib import Path

import pytest

from rewards.judges.cache import ReplyCache
from tests.unit.rewards.judges.asking import (
    ask,
    endpoint_judge,
    failure,
    hang,
    slow_verdict,
)


def test_a_cached_verdict_costs_nothing(fake):
    async def scenario():
        price = {"prompt": 2.0, "completion": 10.0}
        async with fake.judging(lambda b, n: fake.verdict(result=n), price=price) as (
            panel,
            server,
        ):
            first = await ask(panel["j"])
            cost = panel["j"].meter.take()["cost"]
            again = [await ask(panel["j"]) for _ in range(5)]
            other = await ask(panel["j"], seed=3)
            return first, cost, again, other, len(server.asked), panel["j"].meter.take()

    first, cost, again, other, asked, counts = asyncio.run(scenario())
    assert cost == pytest.approx((100 * 2 + 10 * 10) / 1e6)
    assert {(a.value, a.cached, a.usage.prompt_tokens) for a in again} == {(first.value, True, 0)}
    assert (other.value, asked) == (1, 2)
    assert (counts["hits"], counts["verdicts"]) == (5, 1)
    assert counts["cost"] == pytest.approx(cost)


def test_equal_questions_at_once_are_sent_once(fake):
    async def scenario():
        async with fake.judging(lambda b, n: slow_verdict(fake)) as (panel, server):
            found = await asyncio.gather(*(ask(panel["j"]) for _ in range(20)))
            return found, len(server.asked), panel["j"].meter.take()

    found, asked, counts = asyncio.run(scenario())
    assert asked == 1
    assert sum(f.usage.prompt_tokens for f in found) == 100
    assert (counts["hits"], counts["verdicts"]) == (19, 1)


def test_one_of_equal_questions_may_be_given_up(fake):
    async def scenario():
        async with fake.judging(lambda b, n: slow_verdict(fake)) as (panel, server):
            first, second = (asyncio.create_task(ask(panel["j"])) for _ in range(2))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            first.cancel()
            return (await second).value, len(server.asked)

    assert asyncio.run(scenario()) == (1, 1)


def test_a_question_that_nobody_waits_for_is_given_up(fake):
    async def scenario():
        async with fake.judging(lambda b, n: hang()) as (panel, server):
            asking = asyncio.create_task(ask(panel["j"]))
            async with asyncio.timeout(10):
                while not server.in_flight:
                    await asyncio.sleep(0.001)
                asking.cancel()
                while server.in_flight:
                    await asyncio.sleep(0.001)
            return asking.cancelled()

    assert asyncio.run(scenario())


def test_failures_are_not_cached(fake):
    async def scenario():
        def reply(body, n):
            return fake.status(401) if n == 0 else fake.verdict(result=1)

        async with fake.judging(reply) as (panel, _):
            await failure(panel["j"])
            return (await ask(panel["j"])).value

    assert asyncio.run(scenario()) == 1


def test_verdicts_outlive_the_run_on_disk(fake, tmp_path: Path):
    cache = {"folder": str(tmp_path / "kept")}

    async def scenario():
        async with fake.serving(lambda b, n: fake.verdict(result=0.25)) as server:
            for _ in range(2):
                cfg = fake.judge_config(server.url, cache=cache)
                judge = endpoint_judge(cfg, cache=ReplyCache(10, tmp_path / "kept"))
                found = await ask(judge)
                await judge.close()
                for file in (tmp_path / "kept").iterdir():
                    with file.open("a") as torn:
                        torn.write('{"key": "x", "te')
            return found, len(server.asked)

    found, asked = asyncio.run(scenario())
    assert (found.value, found.cached, asked) == (0.25, True, 1)


def test_the_cache_keeps_the_latest_used():
    from rewards.judges.request import Reply

    cache = ReplyCache(2)
    for name in "abcd":
        cache.put(name, Reply(text=name, model="m"))
        cache.get("a")
    assert len(cache) == 2
    assert [cache.get(n) is not None for n in "abcd"] == [True, False, False, True]


def test_a_full_disk_costs_the_copy_on_disk_and_no_verdict(fake, tmp_path: Path, caplog):
    taken = tmp_path / "file"
    taken.write_text("")

    async def scenario():
        cache = {"folder": str(taken / "cache")}
        async with fake.judging(lambda b, n: fake.verdict(result=1), cache=cache) as (
            panel,
            server,
        ):
            found = [await ask(panel["j"], text) for text in ("a", "b", "a")]
            return [f.cached for f in found], len(server.asked)

    assert asyncio.run(scenario()) == ([False, False, True], 2)
    assert caplog.text.count("kept in memory alone") == 1
