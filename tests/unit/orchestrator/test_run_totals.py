import json
import random

import pytest

from orchestrator.records.run_totals import RECENT_STEPS, RunTotals

NAMES = ("sums", "essay")


def row(step: int, **sources: dict[str, float]) -> dict[str, float]:
    """Return a step's metrics from those of its sources."""
    return {
        "step": step,
        **{f"source/{n}/{k}": v for n, own in sources.items() for k, v in own.items()},
    }


def own(groups: int, samples: int, tokens: int, target: float, **more: float) -> dict[str, float]:
    counts = {"groups": groups, "samples": samples, "loss_tokens": tokens, "share/target": target}
    return {**counts, "all/groups": groups, **more}


def test_sums_and_shares_by_hand():
    totals = RunTotals(NAMES)
    totals.add(row(1, sums=own(3, 24, 100, 0.75), essay=own(1, 8, 900, 0.25)))
    totals.add(row(2, sums=own(0, 0, 0, 0.5) | {"all/groups": 1}, essay=own(4, 30, 3000, 0.5)))
    found = totals.metrics()
    assert {k.removeprefix("source/sums/total/"): v for k, v in found.items() if "/sums/" in k} == {
        "groups": 3,
        "samples": 24,
        "loss_tokens": 100,
        "survival": 3 / 4,
        "share/target": 0.625,
        "share/groups": 3 / 8,  # not the mean of 3/4 and 0/4
        "share/samples": 24 / 62,
        "share/loss_tokens": 100 / 4000,
    }
    assert found["source/essay/total/share/loss_tokens"] == 3900 / 4000


def test_nothing_yet():
    assert RunTotals(NAMES).metrics()["source/sums/total/groups"] == 0
    assert RunTotals(NAMES).recent_reward("sums") is None


def test_recent_reward_weighs_steps_by_their_rollouts():
    totals = RunTotals(NAMES)
    totals.add(row(1, sums={"all/valid": 30, "all/reward/mean": 1.0}))
    totals.add(row(2, sums={"all/valid": 10, "all/reward/mean": 0.0}))
    totals.add(row(3, essay={"all/valid": 5, "all/reward/mean": 50.0}))
    assert totals.recent_reward("sums") == 0.75
    assert totals.recent_reward("essay") == 50.0


def test_recent_reward_forgets_and_steps_without_the_source_do_not_push_it_out():
    totals = RunTotals(NAMES)
    totals.add(row(1, sums={"all/valid": 8, "all/reward/mean": 1.0}))
    for step in range(2, 50):
        totals.add(row(step, essay={"all/valid": 8, "all/reward/mean": 0.0}))
    assert totals.recent_reward("sums") == 1.0
    for step in range(50, 50 + RECENT_STEPS):
        totals.add(row(step, sums={"all/valid": 8, "all/reward/mean": 0.25}))
    assert totals.recent_reward("sums") == 0.25


@pytest.mark.parametrize("seed", range(20))
def test_a_resumed_run_has_exactly_the_sums_of_the_uninterrupted_one(seed: int):
    """Rows pass through JSON; steps after the checkpoint come again, with the same content."""
    draw = random.Random(seed)
    rows = [
        row(
            step,
            **{
                n: own(draw.randrange(5), draw.randrange(40), draw.randrange(9999), draw.random())
                | {"all/valid": draw.randrange(1, 40), "all/reward/mean": draw.random()}
                for n in NAMES
            },
        )
        for step in range(1, 31)
    ]
    whole = RunTotals(NAMES)
    for metrics in rows:
        whole.add(metrics)
    cut = draw.randrange(31)
    resumed = RunTotals(NAMES)
    for metrics in rows[:cut]:
        resumed.add(json.loads(json.dumps(metrics)))
    for metrics in rows[cut:]:
        resumed.add(metrics)
    assert resumed.metrics() == whole.metrics()
    assert resumed.recent_reward("sums") == whole.recent_reward("sums")
