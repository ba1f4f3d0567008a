"""Figures of a baseline, worked by hand, and the verdicts that follow from them."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO

import pytest
from rich.console import Console

from configs.schema import RunConfig
from orchestrator.commands.baseline_stats import (
    ItemSamples,
    SourceBaseline,
    describe,
    histogram,
    informative_window,
    majority_answer,
    suggest_group_size,
    zero_variance,
)
from orchestrator.commands.baseline_view import render_baseline


def item(rewards: str | list[float], **changes: object) -> ItemSamples:
    """An item's samples: `1100` are two passes and two failures."""
    values = [float(r) for r in rewards]
    base = {
        "task_id": "s/train/0",
        "rewards": tuple(values),
        "truncated": 0,
        "invalid": 0,
        "tokens": (3,) * len(values),
    }
    return ItemSamples(**{**base, **changes})


def config(**source: object) -> RunConfig:
    base = {
        "name": "s",
        "data": {"procedural": "reasoning_gym/lcm"},
        "rewards": [{"name": "r", "use": "reasoning_gym"}],
        "group_size": 4,
    }
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 1,
            "model": {"path": "m"},
            "batch": {"groups_per_step": 1},
            "sources": [{**base, **source}],
        }
    )


def found(
    *items: ItemSamples, answers: Sequence[str | None] = (), **source: object
) -> SourceBaseline:
    cfg = config(**source)
    return describe(cfg, cfg.sources[0], items, answers)


@pytest.mark.parametrize(
    ("rewards", "group_size", "expected"),
    [
        ("00000000", 4, 1.0),
        ("11111111", 4, 1.0),
        ("10000000", 4, 35 / 70),
        ("11000000", 4, 15 / 70),
        ("11110000", 4, 2 / 70),
        ("11110000", 8, 0.0),
        ([0, 0, 0.5, 1], 2, 1 / 6),
        ([0.1 + 0.2, 0.3, 1, 2], 2, 1 / 6),
    ],
)
def test_equal_groups_of_one_item_by_hand(rewards, group_size: int, expected: float):
    assert zero_variance([item(rewards)], group_size, 1.0) == pytest.approx(expected)


def test_equal_groups_are_the_mean_over_items():
    items = [item("1100"), item("0000"), item("1110")]
    # pairs: 2 of 6, all, 3 of 6
    assert zero_variance(items, 2, 1.0) == pytest.approx((2 / 6 + 1 + 3 / 6) / 3)


def test_larger_groups_than_sampled_by_the_fitted_beta():
    uniform = [item("1" * c + "0" * (4 - c)) for c in range(5)]
    for group_size in (2, 3, 4, 5, 9, 30):  # a = b = 1: Z(G) = 2 / (G + 1)
        assert zero_variance(uniform, group_size, 1.0) == pytest.approx(2 / (group_size + 1))
    alike = [item("10")] * 3
    assert zero_variance(alike, 5, 1.0) == pytest.approx(2 / 2**5)
    assert zero_variance([item("00"), item("11")], 50, 1.0) == 1.0
    assert zero_variance([item("0")], 50, 1.0) == 1.0


@pytest.mark.parametrize("seed", range(10))
def test_the_estimate_meets_the_truth(seed: int):
    draw = random.Random(seed)
    rates = [draw.betavariate(0.5, 1.5) for _ in range(4000)]
    items = [item([float(draw.random() < p) for _ in range(8)]) for p in rates]
    for group_size in (2, 8, 16):
        truth = sum(p**group_size + (1 - p) ** group_size for p in rates) / len(rates)
        assert zero_variance(items, group_size, 1.0) == pytest.approx(truth, abs=0.03)


def test_the_smallest_group_that_is_mixed_often_enough():
    uniform = [item("1" * c + "0" * (4 - c)) for c in range(5)]
    assert suggest_group_size(uniform, 1.0) == 10  # 2 / 11 < 0.2 <= 2 / 10
    assert suggest_group_size([item("0000")], 1.0) is None


def test_the_smallest_group_by_hand():
    # C(4,3) * 2 / C(8,3) = 8 / 56 = 0.143 < 0.2; pairs: 12 / 28 = 0.43
    assert suggest_group_size([item("11110000")], 1.0) == 3


@pytest.mark.parametrize(
    ("group_size", "low"), [(1, 0.0), (2, 0.15), (4, 0.13), (8, 0.08), (16, 0.04), (64, 0.01)]
)
def test_the_window_is_where_groups_are_mixed_half_as_often_as_at_best(group_size: int, low: float):
    assert informative_window(group_size) == (low, round(1 - low, 2))


def test_a_histogram_has_its_ends_apart():
    bars = histogram([0, 0, 0.125, 0.2, 0.25, 0.5, 0.999, 1])
    assert [(b.low, b.high, b.items) for b in bars] == [
        (0.0, 0.0, 2),
        (0.0, 0.2, 2),
        (0.2, 0.4, 1),
        (0.4, 0.6, 1),
        (0.6, 0.8, 0),
        (0.8, 1.0, 1),
        (1.0, 1.0, 1),
    ]


def test_the_most_frequent_answer():
    assert majority_answer(["7", " 7", "8", None]) == ("7", 2 / 3)
    assert majority_answer(["b", "a"]) == ("a", 0.5)
    assert majority_answer([None, None]) is None


def test_figures_by_hand():
    s = found(
        item("1100", tokens=(2, 4, 6, 8), truncated=1),
        item("000", tokens=(1, 1, 1, 1), invalid=1, error="reward: no"),
        item("1111", tokens=(5, 5, 5, 5)),
        answers=["x", "x", "x", "y"],
    )
    assert s.pass_rate == pytest.approx(6 / 11)
    assert s.reward_mean == pytest.approx(6 / 11)
    assert (s.solved_none, s.solved_all) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (s.truncated, s.invalid) == (1 / 12, 1 / 12)
    assert s.tokens_mean == pytest.approx(44 / 12)
    # groups of four: of the first and third item alone, none and all equal
    assert s.zero_variance == pytest.approx(0.5)
    assert (s.items, s.samples, s.majority_answer, s.majority_share) == (3, 12, "x", 0.75)
    assert s.in_window == pytest.approx(1 / 3)
    assert s.go
    assert any("'x'" in w and "75%" in w for w in s.warnings)
    assert any("reward: no" in w for w in s.warnings)
    json.dumps(asdict(s), allow_nan=False)


def test_partial_rewards_make_a_difference_without_a_pass():
    s = found(item([0.1, 0.2, 0.3, 0.4]))
    assert (s.pass_rate, s.solved_none, s.zero_variance, s.go) == (0.0, 1.0, 0.0, True)


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([item("0000")] * 5, "too hard: 100% of items are never solved"),
        ([item("1111")] * 5, "too easy: 100% of items are always solved"),
        ([item("0000")] * 5 + [item("1111")] * 5, "differ within only 0%"),
        (
            [item("", tokens=(0,) * 4, invalid=4, error="environment: no door")],
            "no sample has a reward: environment: no door",
        ),
        (
            [item("10", tokens=(1,) * 4, invalid=2, error="reward: timeout")] * 3,
            "50% of samples are invalid, more than reward.max_error_rate=0.2: reward: timeout",
        ),
        ([item("1100", truncated=3)] * 3, "75% of completions end at sampling.max_tokens=512"),
    ],
)
def test_no_go_and_why(items: list[ItemSamples], says: str):
    s = found(*items)
    assert not s.go and says in s.reason
    json.dumps(asdict(s), allow_nan=False)


def test_a_small_group_is_warned_about():
    rare = [item("10000000")] * 10
    s = found(*rare, group_size=4)
    assert s.go and any("group_size is 4; " in w for w in s.warnings)
    assert s.suggested_group_size == 7  # C(7,7) / C(8,7) = 1/8; of 6: 7 / 28
    assert found(*rare, group_size=8).warnings == ()


def shown(s: SourceBaseline, bars: str, *, width: int = 160) -> str:
    out = StringIO()
    Console(file=out, width=width).print(render_baseline([s], bars=bars))
    return out.getvalue()


def test_the_view_has_bars_figures_and_the_verdict():
    text = shown(found(*[item("1100")] * 30, item("0000"), answers=["a", "a"]), "#")
    assert "\x1b" not in text
    lines = text.splitlines()
    assert lines[0] == "s: 31 items, 124 samples"
    assert lines[1].split() == ["0%", "##", "1"]
    assert lines[4].split() == ["40%-60%", "#" * 40, "30"]
    assert lines[5].split() == ["60%-80%", "0"]
    assert "pass rate 48.4%, reward 0.484, solved none 3.2%, solved all 0.0%" in text
    assert "suggested group size: 3" in text
    assert "go: s: rewards differ within" in text
    assert "warning: s: 100% of the answers are 'a'" in text


def test_the_view_of_a_source_without_a_reward():
    text = shown(found(item("", tokens=(0, 0), invalid=2, error="generate: no")), "#")
    assert "no-go: s: no sample has a reward: generate: no" in text
