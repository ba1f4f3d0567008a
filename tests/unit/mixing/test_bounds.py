"""Sources with staleness bounds of their own: when each is ordered, and what a step comes to."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.schema import RunConfig
from mixing.mixer import Mixer
from mixing.quota.allocator import MixExhausted
from mixing.quota.edits import EditLog
from mixing.quota.tokens import Trained
from rollouts.types import GroupRequest

MakeRun = Callable[..., RunConfig]


def ordered(requests: tuple[GroupRequest, ...]) -> Counter[tuple[str, int]]:
    return Counter((r.task.source, r.step) for r in requests)


def test_each_source_is_ordered_as_far_ahead_as_its_own_bound(make_run: MakeRun) -> None:
    cfg = make_run({"a": 90, "b": 90, "c": 90}, groups=6, max_staleness=1, bounds={"b": 0, "c": 3})
    mixer = Mixer(cfg)
    assert ordered(mixer.order(0)) == {
        ("a", 1): 2, ("b", 1): 2, ("c", 1): 2,
        ("a", 2): 2, ("c", 2): 2,
        ("c", 3): 2, ("c", 4): 2,
    }  # fmt: skip
    assert mixer.order(0) == ()
    mixer.casting.close(1)
    assert ordered(mixer.order(1)) == {("b", 2): 2, ("a", 3): 2, ("c", 5): 2}


def test_shares_are_those_of_one_bound_whatever_the_bounds(make_run: MakeRun) -> None:
    weights, steps = {"a": 2.3, "b": 1.1, "c": 0.7}, 120
    found: list[list[Counter[str]]] = []
    for bounds in ({}, {"a": 0, "b": 5, "c": 2}):
        cfg = make_run(
            dict.fromkeys("abc", 400), weights=weights, groups=7, bounds=bounds, num_steps=steps
        )
        mixer, by_step = Mixer(cfg), [Counter[str]() for _ in range(steps + 1)]
        for version in range(steps):
            for request in mixer.order(version):
                by_step[request.step][request.task.source] += 1
            mixer.casting.close(version + 1)
        found.append(by_step[1:])
    assert found[0] == found[1]
    assert all(step.total() == 7 for step in found[0])


def test_an_edit_holds_from_the_first_step_that_was_not_planned(
    make_run: MakeRun, tmp_path: Path
) -> None:
    log = EditLog(tmp_path / "edits.jsonl")
    cfg = make_run({"a": 90, "b": 90}, groups=4, bounds={"b": 3}, num_steps=20)
    mixer, steps = Mixer(cfg, edits=log), [Counter[str]() for _ in range(21)]
    for version in range(12):
        if version == 5:
            log.ask({"b": 0.0})
        for request in mixer.order(version):
            steps[request.step][request.task.source] += 1
        mixer.casting.close(version + 1)
    assert steps[8] == {"a": 2, "b": 2} and steps[9] == {"a": 4}  # planned at versions 4 and 5
    assert [e.taken for e in mixer.edits] == [9]


def test_planned_draws_count_for_limits_before_they_are_drawn(make_run: MakeRun) -> None:
    limits = {"a": {"max_items": 9}}
    cfg = make_run({"a": 40, "b": 40}, groups=4, bounds={"b": 4}, limits=limits, num_steps=30)
    mixer, steps = Mixer(cfg), [Counter[str]() for _ in range(31)]
    for version in range(20):
        for request in mixer.order(version):
            steps[request.step][request.task.source] += 1
        mixer.casting.close(version + 1)
    assert [s["a"] for s in steps[1:7]] == [2, 2, 2, 2, 1, 0]
    assert all(step.total() == 4 for step in steps[1:20])


def test_a_source_ahead_without_another_item_hands_its_place_to_one_that_comes_later(
    make_run: MakeRun,
) -> None:
    """Replacements used up its limit between planning and drawing."""
    limits = {"ahead": {"max_items": 9}}
    cfg = make_run(
        {"quick": 40, "slow": 2, "ahead": 40},
        groups=6,
        bounds={"slow": 4, "ahead": 1},
        mix={"over_dispatch": 1},
        limits=limits,
        num_steps=12,
    )
    mixer, steps = Mixer(cfg), [Counter[str]() for _ in range(13)]
    for version in range(8):
        made = list(mixer.order(version))
        own = [r for r in made if r.task.source == "ahead" and r.step == version + 1]
        for request in own:  # none but those of the first step
            mixer.casting.give_up(request.group_id)
            made.remove(request)
        made += mixer.order(version)
        for request in made:
            steps[request.step][request.task.source] += 1
        mixer.casting.close(version + 1)
    assert all(step.total() == 6 for step in steps[1:9])
    event = next(e for e in mixer.take_events() if e.kind == "substituted")
    assert (event.source, event.step) == ("ahead", 4) and "quick stands in" in event.text
    assert steps[4] == {"quick": 3, "slow": 2, "ahead": 1}


def test_a_step_that_cannot_be_planned_is_tried_again_and_named_when_its_turn_comes(
    make_run: MakeRun,
) -> None:
    limits = {"a": {"max_items": 8}}
    cfg = make_run({"a": 40}, groups=4, max_staleness=2, limits=limits, num_steps=30)
    mixer = Mixer(cfg)
    assert {r.step for r in mixer.order(0)} == {1, 2}
    assert isinstance(mixer.exhausted, MixExhausted) and mixer.exhausted.step == 3
    mixer.casting.close(1)
    assert mixer.order(1) == () and mixer.exhausted.step == 3


@pytest.mark.parametrize("seed", range(12))
def test_cut_anywhere_the_same_is_ordered(make_run: MakeRun, seed: int) -> None:
    """Over stages, limits, units and failures, with a bound for each source."""
    dice = random.Random(seed)
    names = "abcd"
    stages = [
        {"until": {"step": 12}, "ramp": "linear", "weights": {"a": 3}},
        {"until": {"metric": "eval/b/pass_rate", "gte": 0.4}, "weights": {"d": 2}},
        {"weights": {"c": 4}, "group_size": {"a": 5}},
    ]
    cfg = make_run(
        {name: dice.randint(3, 40) for name in names},
        groups=dice.randint(3, 9),
        seed=seed,
        max_staleness=dice.choice([0, 1]),
        bounds={name: dice.randint(0, 5) for name in "abc"},
        limits={"b": {"max_epochs": 3}},
        stages=stages,
        eval={"every": 5},
        mix={"unit": dice.choice(["groups", "samples", "loss_tokens"])},
        num_steps=40,
    )

    def go(cuts: set[int]) -> list[tuple[GroupRequest, ...]]:
        mixer, made = Mixer(cfg), list[tuple[GroupRequest, ...]]()
        for version in range(40):
            outcome = random.Random(f"{seed}/{version}")
            requests = list(mixer.order(version))
            slate = mixer.casting.slates.at(version + 1, "d")
            now = [c.group_id for c in slate.candidates]
            if now and outcome.random() < 0.4:
                mixer.casting.give_up(outcome.choice(now))
                requests += mixer.order(version)
            made.append(tuple(requests))
            tokens = {n: Trained(1, 3, outcome.randint(1, 50)) for n in names}
            mixer.observe_trained(version + 1, tokens)
            mixer.casting.close(version + 1)
            if version % 5 == 0:
                mixer.observe_eval(version, {"eval/b/pass_rate": outcome.random()})
            if version in cuts:
                state = json.loads(json.dumps(mixer.state_dict()))
                mixer = Mixer(cfg)
                mixer.load_state_dict(state)
        return made

    whole = go(set())
    assert go(set(dice.sample(range(40), 5))) == whole
    assert len({r.group_id for made in whole for r in made}) == sum(map(len, whole))
