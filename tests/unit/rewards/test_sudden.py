"""Stability guards on made-up series: a planted fault is caught in time, clean runs are silent."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.guards import GuardsConfig
from configs.schema import RunConfig
from rewards.monitors.alarms import Alarm
from rewards.monitors.board import MonitorBoard
from rewards.monitors.sudden import Usual

ONSET, STEPS = 40, 60
CAUGHT_WITHIN = {
    "loss": 1,
    "grad_norm": 1,
    "kl": 3,
    "mismatch": 2,
    "ratio": 1,
    "entropy": 3,
    "reward": 3,
    "length": 2,
    "non_finite": 1,
}
"""Steps after its onset in which a fault must be caught: `persist` of its guard."""
FAULTS = [*CAUGHT_WITHIN, "length down", "entropy, slowly"]
PER_SOURCE = ("reward", "length")


def config(**guards: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": STEPS,
            "model": {"path": "org/model"},
            "sources": [
                {
                    "name": "s",
                    "data": {"jsonl": "x.jsonl"},
                    "rewards": [{"use": "exact", "name": "r"}],
                }
            ],
            "batch": {"groups_per_step": 16},
            "guards": guards,
        }
    )


def run(seed: int, fault: str | None = None, steps: int = STEPS) -> Iterator[dict[str, float]]:
    """A policy that learns, with noise as real runs of the tiny model have it, and from `ONSET` on
    a fault."""
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        learned = 1 - np.exp(-step / 25)
        row = {
            "step": step,
            "train/loss_max": rng.normal(0, 0.012),
            "train/grad_norm_max": 1.5 * rng.lognormal(0, 0.35),
            "train/kl_ref": 0.15 * learned * rng.lognormal(0, 0.8) + 2.0 * (rng.random() < 0.02),
            "train/mismatch/kl": 1e-3 * rng.lognormal(0, 1.2),
            "train/ratio/max_deviation": 0.6 * rng.lognormal(0, 0.5),
            "train/entropy": (0.8 * np.exp(-step / 8) + 0.12) * rng.lognormal(0, 0.15),
            "train/skipped": 0.0,
            "train/non_finite": 0.0,
            "source/s/all/reward/mean": rng.binomial(64, 0.3 + 0.5 * learned) / 64,
            "source/s/all/length/mean": (20 + 10 * learned) * rng.lognormal(0, 0.08),
        }
        if fault is not None and step > ONSET:
            late = step - ONSET
            match fault:
                case "loss":
                    row["train/loss_max"] += 0.5
                case "grad_norm":
                    row["train/grad_norm_max"] *= 25
                case "kl":
                    row["train/kl_ref"] += 4
                case "mismatch":
                    row["train/mismatch/kl"] += 0.5
                case "ratio":
                    row["train/ratio/max_deviation"] += 40
                case "entropy":
                    row["train/entropy"] *= 0.02
                case "entropy, slowly":
                    row["train/entropy"] *= 0.6**late
                case "reward":
                    row["source/s/all/reward/mean"] *= 0.05
                case "length":
                    row["source/s/all/length/mean"] *= 5
                case "length down":
                    row["source/s/all/length/mean"] = 1.5
                case "non_finite":
                    row["train/non_finite"] = 1.0
                case _:
                    raise AssertionError(fault)
        yield row


def shown(board: MonitorBoard, rows: Iterator[dict[str, float]]) -> list[Alarm]:
    return [a for row in rows for a in board.trained(row) if a.monitor.startswith("guards/")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_in_time(fault: str):
    guard = fault.partition(",")[0].split()[0]
    within = 12 if "slowly" in fault else CAUGHT_WITHIN[guard]
    for seed in range(40):
        raised = [a for a in shown(MonitorBoard(config()), run(seed, fault)) if a.event == "raised"]
        first = next(a for a in raised if a.monitor == f"guards/{guard}")
        assert ONSET < first.step <= ONSET + within, (seed, str(first))
        assert first.source == ("s" if guard in PER_SOURCE else "")


def test_clean_runs_are_silent():
    loud = {
        seed: [str(a) for a in alarms]
        for seed in range(200)
        if (alarms := shown(MonitorBoard(config()), run(seed)))
    }
    assert loud == {}


def test_a_long_clean_run_is_silent():
    alarms = {s: shown(MonitorBoard(config()), run(s, steps=1500)) for s in range(4)}
    assert {s: list(map(str, a)) for s, a in alarms.items() if a} == {}


def test_nothing_is_raised_during_warm_up():
    cfg = config(warmup=15)
    for seed in range(20):
        rows = list(run(seed, steps=15))
        rows[-1]["train/grad_norm_max"] = 1e6
        assert shown(MonitorBoard(cfg), iter(rows)) == []


def test_a_guard_that_is_off_says_nothing():
    board = MonitorBoard(config(grad_norm={"enabled": False}))
    assert shown(board, run(0, "grad_norm")) == []
    assert "alarm/guards/grad_norm" not in board.metrics()
    assert board.limits().keys() == {"loss", "kl", "mismatch", "ratio"}


def test_what_was_not_applied_does_not_become_usual():
    """A spike that is skipped again and again stays one; one that is let through is one no more
    once most of the window has it."""
    still = {}
    for skipped in (0.0, 1.0):
        board = MonitorBoard(config())
        for row in run(1, "grad_norm", steps=ONSET + 30):
            row["train/skipped"] = skipped * (row["step"] > ONSET)
            board.trained(row)
        still[skipped] = [a.monitor for a in board.standing]
    assert still == {0.0: [], 1.0: ["guards/grad_norm"]}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-6, 1e6),
    wild=st.integers(0, 8),
)
def test_limits_follow_the_scale_and_not_a_few_wild_values(seed: int, scale: float, wild: int):
    """The limit is equivariant to scale where no margin acts, and with up to 8 of 20 values gone
    wild it still is below them."""
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0, 0.3, 20)
    values[rng.permutation(20)[:wild]] = 1e9
    one, other = Usual(GuardsConfig()), Usual(GuardsConfig())
    for value in values:
        one.add(float(value))
        other.add(float(value) * scale)
    assert one.level < 10 and one.spread < 10
    assert other.level == pytest.approx(one.level * scale)
    assert other.spread == pytest.approx(one.spread * scale)
