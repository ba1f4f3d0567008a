"""Stages: which one holds at a step, what ends it, ramps, overrides, and going on from a state."""

import json
import random
from fractions import Fraction

import pytest

from configs.schema import RunConfig
from mixing.quota.stages import Schedule


def recipe(*stages: dict[str, object], **weights: float) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 100,
            "model": {"path": "m"},
            "batch": {"groups_per_step": 4},
            "stages": stages,
            "sources": [
                {
                    "name": name,
                    "data": {"procedural": "reasoning_gym/lcm"},
                    "rewards": [{"name": "r", "use": "exact"}],
                    "weight": weight,
                }
                for name, weight in (weights or {"a": 1.0, "b": 2.0}).items()
            ],
        }
    )


def pass_rate(source: str, value: float, **bound: float) -> dict[str, object]:
    return {"metric": f"eval/{source}/pass_rate", "gte": value, **bound}


def walk(schedule: Schedule, steps: range) -> list[dict[str, Fraction]]:
    found: list[dict[str, Fraction]] = []
    for step in steps:
        schedule.enter(step)
        found.append(schedule.weights(step))
    return found


def test_without_stages_the_sources_weights_hold() -> None:
    assert walk(Schedule(recipe()), range(1, 4)) == [{"a": 1, "b": 2}] * 3


def test_step_stages_override_who_they_name_and_the_last_one_stays() -> None:
    cfg = recipe(
        {"until": {"step": 2}, "weights": {"b": 0}, "group_size": {"a": 4}},
        {"until": {"step": 4}, "weights": {"a": 5.5}},
    )
    schedule = Schedule(cfg)
    first = walk(schedule, range(1, 3))
    assert first == [{"a": 1, "b": 0}] * 2 and schedule.group_sizes() == {"a": 4, "b": 8}
    later = walk(schedule, range(3, 8))
    assert later == [{"a": Fraction("5.5"), "b": 2}] * 5  # b has its own again
    assert schedule.group_sizes() == {"a": 8, "b": 8} and schedule.stage == 1


def test_a_ramp_goes_in_equal_parts_from_the_stage_before_to_its_own_at_the_end() -> None:
    cfg = recipe(
        {"until": {"step": 4}, "ramp": "linear", "weights": {"a": 3}},
        {"until": {"step": 6}, "ramp": "linear", "weights": {"a": 0, "b": 4}},
        {"weights": {"a": 1}},
    )
    found = walk(Schedule(cfg), range(1, 9))
    half = Fraction(1, 2)
    assert [w["a"] for w in found] == [1 + half, 2, 2 + half, 3, 1 + half, 0, 1, 1]
    assert [w["b"] for w in found] == [2, 2, 2, 2, 3, 4, 2, 2]


def test_a_metric_stage_ends_after_enough_evaluations_in_a_row() -> None:
    cfg = recipe({"until": pass_rate("a", 0.8, patience=2)}, {"weights": {"a": 9}})
    schedule = Schedule(cfg)
    values = {2: 0.9, 4: 0.1, 6: 0.8, 8: 0.95, 10: 0.0}
    stages: list[int] = []
    for step in range(1, 12):
        if step - 1 in values:
            schedule.observe(step - 1, {"eval/a/pass_rate": values[step - 1]})
        schedule.enter(step)
        stages.append(schedule.stage)
    assert stages == [0] * 8 + [1] * 3


def test_an_evaluation_without_the_metric_breaks_the_row_and_lte_is_from_above() -> None:
    until = {"metric": "eval/b/reward_mean", "lte": -1.5, "patience": 2}
    schedule = Schedule(recipe({"until": until, "weights": {"a": 2}}, {"weights": {"a": 9}}))
    for step, metrics in enumerate(
        [{"eval/b/reward_mean": -2.0}, {}, {"eval/b/reward_mean": -1.5}], start=1
    ):
        schedule.observe(step, metrics)
        assert not schedule.enter(step + 1)
    schedule.observe(4, {"eval/b/reward_mean": -9.0})
    assert schedule.enter(5) and schedule.stage == 1


def test_a_stage_counts_only_evaluations_made_since_it_began() -> None:
    cfg = recipe(
        {"until": {"step": 5}, "weights": {"a": 1}},
        {"until": pass_rate("a", 0.5, patience=2), "weights": {"a": 2}},
        {"weights": {"a": 3}},
    )
    schedule = Schedule(cfg)
    good = {"eval/a/pass_rate": 1.0}
    schedule.observe(3, good)
    schedule.enter(6)
    schedule.observe(4, good)  # made under the stage before, known late
    schedule.observe(6, good)
    assert not schedule.enter(8)
    schedule.observe(8, good)
    assert schedule.enter(9) and schedule.stage == 2


def test_a_stage_whose_steps_went_to_a_slow_one_before_is_passed_over() -> None:
    cfg = recipe(
        {"until": pass_rate("a", 0.5), "weights": {"a": 1}},
        {"until": {"step": 10}, "ramp": "linear", "weights": {"a": 2}},
        {"weights": {"a": 3}},
    )
    schedule = Schedule(cfg)
    walk(schedule, range(1, 21))
    assert schedule.stage == 0
    schedule.observe(20, {"eval/a/pass_rate": 1.0})
    assert walk(schedule, range(21, 22))[0]["a"] == 3


def test_an_edit_holds_over_stages_and_ramps_until_it_is_given_back() -> None:
    cfg = recipe(
        {"until": {"step": 4}, "ramp": "linear", "weights": {"a": 5}},
        {"weights": {"a": 7, "b": 1}},
    )
    schedule = Schedule(cfg)
    schedule.edit({"a": 0.25})
    assert {w["a"] for w in walk(schedule, range(1, 7))} == {Fraction(1, 4)}
    schedule.edit({"b": 3.0, "a": None})
    assert walk(schedule, range(7, 8)) == [{"a": 7, "b": 3}]


@pytest.mark.parametrize("seed", range(20))
def test_a_state_goes_on_as_if_never_stopped(seed: int) -> None:
    rng = random.Random(seed)
    cfg = recipe(
        {"until": {"step": 5}, "ramp": "linear", "weights": {"a": 4}},
        {"until": pass_rate("b", 0.6, patience=2), "weights": {"b": 0.5}},
        {"until": {"step": 30}, "ramp": "linear", "weights": {"a": 0.1}, "group_size": {"b": 2}},
        {"weights": {"b": 9}},
    )
    values = [rng.random() for _ in range(40)]
    schedule, found = Schedule(cfg), []
    cuts = set(rng.sample(range(1, 40), 5))
    for with_cuts in (False, True):
        schedule, weights = Schedule(cfg), []
        for step in range(1, 40):
            if with_cuts and step in cuts:
                state = json.loads(json.dumps(schedule.state_dict()))
                schedule = Schedule(cfg)
                schedule.load_state_dict(state)
            schedule.observe(step - 1, {"eval/b/pass_rate": values[step]})
            if step == 17:
                schedule.edit({"a": 2.0})
            schedule.enter(step)
            weights.append((schedule.weights(step), schedule.group_sizes(), schedule.stage))
        found.append(weights)
    assert found[0] == found[1]
