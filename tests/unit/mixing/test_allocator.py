"""Shares in each unit, limits and what follows when they are used up."""

import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest

from configs.schema import RunConfig
from mixing.mixer import Mixer
from mixing.quota.allocator import Allocator, MixExhausted
from mixing.quota.shares import exact
from mixing.slates.group_ids import parse_group_id
from rollouts.types import GroupRequest

MakeRun = Callable[..., RunConfig]


def instead(mixer: Mixer, request: GroupRequest) -> GroupRequest:
    """Give a group up; return what is sampled in its place."""
    mixer.casting.give_up(request.group_id)
    (fresh,) = mixer.refill(request.step, fresh=True)
    return fresh


def plan(mixer: Mixer, steps: range) -> list[list[str]]:
    """Return the sources of the requests of each step."""
    return [[r.task.source for r in mixer.plan_step(step)] for step in steps]


@pytest.mark.parametrize("seed", range(20))
def test_samples_are_shared_exactly_whatever_the_group_sizes(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"s{i}" for i in range(rng.randint(2, 6))]
    weights = {n: rng.choice([0.5, 1.0, 2.0, 3.5, 7.0]) for n in names}
    sizes = {n: rng.choice([1, 2, 4, 8, 16, 64]) for n in names}
    cfg = RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 200,
            "model": {"path": "m"},
            "mix": {"unit": "samples"},
            "batch": {"groups_per_step": rng.randint(1, 64)},
            "sources": [
                {
                    "name": n,
                    "data": {"procedural": "reasoning_gym/lcm"},
                    "rewards": [{"name": "r", "use": "exact"}],
                    "weight": weights[n],
                    "group_size": sizes[n],
                }
                for n in names
            ],
        }
    )
    allocator, taken = Allocator(cfg, dict.fromkeys(names)), dict.fromkeys(names, 0)
    groups, due = dict.fromkeys(names, 0), dict.fromkeys(names, Fraction(0))
    for step in range(1, 201):
        allocation = allocator.allocate(step, taken)
        assert sum(allocation.counts.values()) == cfg.batch.groups_per_step
        for name in names:
            assert abs(allocation.counts[name] - allocation.due[name]) < 1
            assert allocation.shares[name] == pytest.approx(weights[name] / sum(weights.values()))
            groups[name] += allocation.counts[name]
            due[name] += allocation.due[name]
            assert abs(groups[name] - due[name]) < 2
    samples = sum((due[n] * sizes[n] for n in names), Fraction(0))
    total = sum(exact(w) for w in weights.values())
    assert all(due[n] * sizes[n] / samples == exact(weights[n]) / total for n in names)


@pytest.mark.parametrize("seed", range(20))
def test_over_stages_and_ramps_each_step_and_the_sum_stay_near_what_is_due(seed: int) -> None:
    """Any weights, units and stages: a step within one group, all steps within two."""
    rng = random.Random(seed)
    names = [f"s{i}" for i in range(rng.randint(2, 7))]
    ends = sorted(rng.sample(range(5, 300), 3))
    stages = [
        {
            "until": {"step": end},
            "ramp": rng.choice(["none", "linear"]),
            "weights": {n: round(rng.uniform(0, 5), 3) for n in rng.sample(names, 2)},
            "group_size": {rng.choice(names): rng.choice([2, 4, 16])},
        }
        for end in ends
    ]
    cfg = RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 400,
            "model": {"path": "m"},
            "mix": {"unit": rng.choice(["groups", "samples"]), "temperature": rng.choice([1.0, 2])},
            "batch": {"groups_per_step": rng.randint(1, 100)},
            "stages": stages,
            "sources": [
                {
                    "name": n,
                    "data": {"procedural": "reasoning_gym/lcm"},
                    "rewards": [{"name": "r", "use": "exact"}],
                    "weight": round(rng.uniform(0.01, 9), 3),
                    "limits": {"max_share": 0.6} if rng.random() < 0.3 else {},
                }
                for n in names
            ],
        }
    )
    allocator, taken = Allocator(cfg, dict.fromkeys(names)), dict.fromkeys(names, 0)
    drift = dict.fromkeys(names, Fraction(0))
    for step in range(1, 401):
        allocation = allocator.allocate(step, taken)
        assert sum(allocation.counts.values()) == cfg.batch.groups_per_step
        assert sum(allocation.shares.values()) == pytest.approx(1)
        for name, due in allocation.due.items():
            assert abs(allocation.counts[name] - due) < 1
            drift[name] += allocation.counts[name] - due
            assert abs(drift[name]) < 2


def test_temperature_flattens_the_shares(make_run: MakeRun) -> None:
    weights = {"a": 9.0, "b": 1.0}
    cfg = make_run({"a": 90, "b": 90}, weights=weights, groups=8, mix={"temperature": 2.0})
    assert Counter(plan(Mixer(cfg), range(1, 2))[0]) == {"a": 6, "b": 2}


def test_sampled_shares_hold_on_average_and_depend_on_the_seed(make_run: MakeRun) -> None:
    def sources(seed: int) -> list[list[str]]:
        weights = {"a": 3.0, "b": 1.0}
        mix = {"strategy": "sampled"}
        cfg = make_run({"a": 90, "b": 90}, weights=weights, groups=10, seed=seed, mix=mix)
        return plan(Mixer(cfg), range(1, 201))

    steps = sources(1)
    assert steps == sources(1) != sources(2)
    counts = [step.count("a") for step in steps]
    assert sum(counts) / 2000 == pytest.approx(0.75, abs=0.03)
    assert len(set(counts)) > 4  # drawn, not dealt


def test_sampled_respects_the_bounds_of_a_small_source(make_run: MakeRun) -> None:
    mix = {"strategy": "sampled"}
    cfg = make_run({"a": 3, "b": 90}, weights={"a": 50.0, "b": 1.0}, groups=8, mix=mix)
    mixer = Mixer(cfg)
    for step in range(1, 50):
        requests = mixer.plan_step(step)
        assert len({r.task.task_id for r in requests}) == 8


@pytest.mark.parametrize("seed", range(10))
def test_a_cap_on_the_share_holds_and_the_rest_goes_to_the_others(
    make_run: MakeRun, seed: int
) -> None:
    rng = random.Random(seed)
    cap = rng.choice([0.1, 0.25, 0.4])
    groups = rng.randint(3, 20)
    weights = {"a": 50.0, "b": 3.0, "c": 1.0}
    limits = {"a": {"max_share": cap}}
    cfg = make_run({"a": 90, "b": 90, "c": 90}, weights=weights, groups=groups, limits=limits)
    mixer = Mixer(cfg)
    total = Counter[str]()
    for step in range(1, 101):
        total.update(r.task.source for r in mixer.plan_step(step))
        assert total["a"] <= cap * groups * step + 1
        assert abs(total["a"] - cap * groups * step) < 2
        assert abs(total["b"] - 3 * total["c"]) <= 5
        assert mixer.target_shares(step)["a"] == pytest.approx(cap)


def test_a_small_source_never_repeats_in_a_step_and_the_others_fill_it(make_run: MakeRun) -> None:
    """Ten times its share's worth of rows: 3 of 8 a step, each step another set, for 40 epochs."""
    cfg = make_run({"small": 3, "big": 50}, weights={"small": 9.0, "big": 1.0}, groups=8)
    mixer = Mixer(cfg)
    drawn = Counter[str]()
    for step in range(1, 41):
        requests = mixer.plan_step(step)
        assert len({r.task.task_id for r in requests}) == 8
        drawn.update(r.task.task_id for r in requests if r.task.source == "small")
    assert sorted(drawn.values()) == [40, 40, 40]
    (event,) = mixer.take_events()
    assert (event.kind, event.source, event.step) == ("all_items", "small", 1)


def test_thirty_rows_for_hundreds_of_epochs_are_drawn_evenly(make_run: MakeRun) -> None:
    cfg = make_run({"few": 30, "big": 500}, weights={"few": 0.7, "big": 0.3}, groups=32)
    mixer = Mixer(cfg)
    drawn = Counter[str]()
    for step in range(1, 301):
        requests = mixer.plan_step(step)
        assert len({r.task.task_id for r in requests}) == 32
        drawn.update(r.task.task_id for r in requests if r.task.source == "few")
    assert len(drawn) == 30 and max(drawn.values()) - min(drawn.values()) <= 2
    assert sum(drawn.values()) == pytest.approx(0.7 * 32 * 300, abs=1)


def test_only_where_all_have_too_few_items_a_step_repeats_and_says_so(make_run: MakeRun) -> None:
    mixer = Mixer(make_run({"a": 3, "b": 2}, groups=8))
    for step in range(1, 5):
        requests = mixer.plan_step(step)
        assert Counter(r.task.source for r in requests) == {"a": 4, "b": 4}
        assert len({r.group_id for r in requests}) == 8
    (event,) = mixer.take_events()
    assert (event.kind, event.step) == ("repeats", 1)


def drain(mixer: Mixer, last: int = 10_000) -> tuple[list[list[str]], MixExhausted | None]:
    """Plan until nothing can be planned; return the sources of each step's requests, and why."""
    steps: list[list[str]] = []
    for step in range(1, last + 1):
        try:
            steps.append([r.group_id for r in mixer.plan_step(step)])
        except MixExhausted as end:
            return steps, end
    return steps, None


def of(name: str, steps: list[list[str]]) -> list[str]:
    return [g for step in steps for g in step if g.startswith(f"{name}/")]


@pytest.mark.parametrize("seed", range(12))
def test_a_used_up_source_gave_exactly_its_epochs_and_the_others_take_its_share(
    make_run: MakeRun, seed: int
) -> None:
    rng = random.Random(seed)
    size, epochs, groups = rng.randint(1, 12), rng.randint(1, 4), rng.randint(2, 9)
    cfg = make_run(
        {"a": size, "b": 40, "c": 40},
        weights={"a": 2.0, "b": 2.0, "c": 1.0},
        groups=groups,
        limits={"a": {"max_epochs": epochs}},
        seed=seed,
    )
    mixer = Mixer(cfg)
    steps, end = drain(mixer, last=120)
    assert end is None and all(len(step) == groups for step in steps)
    per_item = Counter(parse_group_id(g)[0] for g in of("a", steps))
    assert len(per_item) == size and set(per_item.values()) == {epochs}
    for step in steps:
        assert len({parse_group_id(g)[0] for g in step}) == groups
    (event,) = [e for e in mixer.take_events() if e.kind == "used_up"]
    assert event.source == "a" and of("a", steps[event.step - 1 :]) == []
    after = steps[event.step - 1 :]
    assert abs(len(of("b", after)) - 2 * len(of("c", after))) <= 6


def test_max_items_counts_draws_over_epochs_and_replacements(make_run: MakeRun) -> None:
    cfg = make_run({"a": 4, "b": 40}, groups=4, limits={"a": {"max_items": 11}})
    mixer = Mixer(cfg)
    first = mixer.plan_step(1)
    fresh = instead(mixer, next(r for r in first if r.task.source == "a"))
    rest = [r for step in range(2, 12) for r in mixer.plan_step(step)]
    drawn = [r for r in [*first, fresh, *rest] if r.task.source == "a"]
    assert len(drawn) == 11


def test_when_nothing_is_left_the_error_says_who_is_used_up(make_run: MakeRun) -> None:
    limits = {"a": {"max_epochs": 1}, "b": {"max_items": 5}}
    mixer = Mixer(make_run({"a": 7, "b": 40}, groups=4, limits=limits))
    steps, end = drain(mixer)
    assert len(steps) == 3 and end is not None and not end.wanted
    assert "step 4 cannot be filled: a, b used up" in str(end)
    state = mixer.state_dict()
    assert state["last_step"] == 3
    with pytest.raises(MixExhausted):
        mixer.plan_step(4)


def test_a_cap_is_not_broken_to_fill_a_step(make_run: MakeRun) -> None:
    limits = {"a": {"max_epochs": 1}, "b": {"max_share": 0.6}}
    mixer = Mixer(make_run({"a": 8, "b": 40}, groups=4, limits=limits))
    steps, end = drain(mixer)
    assert end is not None and len(steps) == 4
    assert all(len(of("b", [step])) <= 3 for step in steps)


def test_stop_ends_before_the_first_step_that_would_not_have_its_mix(make_run: MakeRun) -> None:
    cfg = make_run(
        {"a": 9, "b": 40},
        groups=4,
        limits={"a": {"max_epochs": 1}},
        mix={"on_exhausted": "stop"},
    )
    mixer = Mixer(cfg)
    steps, end = drain(mixer)
    assert [len(of("a", [step])) for step in steps] == [2, 2, 2, 2]
    assert end is not None and end.wanted and "a has 1 draws left" in str(end)


def test_repeat_begins_all_limits_again_once_all_are_used_up(make_run: MakeRun) -> None:
    cfg = make_run(
        {"a": 4, "b": 6},
        groups=2,
        limits={"a": {"max_epochs": 1}, "b": {"max_epochs": 2}},
        mix={"on_exhausted": "repeat"},
    )
    mixer = Mixer(cfg)
    steps, end = drain(mixer, last=24)
    assert end is None
    for begin in (0, 8, 16):  # 4 + 12 draws: eight steps of two
        part = steps[begin : begin + 8]
        assert len(of("a", part)) == 4 and len(of("b", part)) == 12
    kinds = [(e.kind, e.step, e.source) for e in mixer.take_events()]
    assert [k for k in kinds if k[0] == "again"] == [("again", 9, None), ("again", 17, None)]
    assert [k[2] for k in kinds if k[0] == "used_up"] == ["a", "a", "a"]


def test_a_failed_group_of_a_source_without_another_item_is_given_by_who_is_owed(
    make_run: MakeRun,
) -> None:
    cfg = make_run({"a": 2, "b": 40}, groups=4, group_sizes={"a": 5, "b": 7})
    mixer = Mixer(cfg)
    first = mixer.plan_step(1)
    fresh = instead(mixer, next(r for r in first if r.task.source == "a"))
    assert fresh.task.source == "b" and fresh.group_size == 7
    assert fresh.task.task_id not in {r.task.task_id for r in first}
    kinds = [(e.kind, e.source, e.step) for e in mixer.take_events()]
    assert kinds == [("all_items", "a", 1), ("substituted", "a", 1)]
    groups = Counter(s for step in plan(mixer, range(2, 12)) for s in step)
    assert groups == {"a": 20, "b": 20}  # two rows: a step cannot give more of `a` back
    assert mixer.take_events() == ()


def test_a_group_given_by_another_source_is_given_back_when_there_are_items(
    make_run: MakeRun,
) -> None:
    limits = {"a": {"max_share": 0.5}}
    mixer = Mixer(make_run({"a": 3, "b": 40}, groups=4, limits=limits))
    first = mixer.plan_step(1)
    ours = [r for r in first if r.task.source == "a"]
    instead(mixer, ours[0])  # the third row
    fresh = instead(mixer, ours[1])
    assert fresh.task.source == "b"
    assert Counter(plan(mixer, range(2, 3))[0]) == {"a": 3, "b": 1}
    assert Counter(plan(mixer, range(3, 4))[0]) == {"a": 2, "b": 2}


def test_a_stages_group_size_is_asked_for_and_kept_by_replacements(make_run: MakeRun) -> None:
    stages = [
        {"until": {"step": 2}, "group_size": {"a": 16}},
        {"weights": {"b": 3}},
    ]
    mixer = Mixer(make_run({"a": 40, "b": 40}, groups=4, stages=stages))
    early = mixer.plan_step(2)
    late = mixer.plan_step(3)
    assert {r.task.source: r.group_size for r in early} == {"a": 16, "b": 3}
    assert {r.task.source: r.group_size for r in late} == {"a": 3, "b": 3}
    again = instead(mixer, next(r for r in early if r.task.source == "a"))
    assert (again.task.source, again.group_size) == ("a", 16)
    retried = mixer.retry(again)
    assert retried is not None and retried.group_size == 16


def test_a_source_of_weight_0_waits_for_its_stage(make_run: MakeRun) -> None:
    stages = [{"until": {"step": 3}, "weights": {"a": 1}}, {"weights": {"b": 1}}]
    cfg = make_run({"a": 40, "b": 40}, weights={"b": 0.0}, groups=4, stages=stages)
    mixer = Mixer(cfg)
    assert [sorted(set(s)) for s in plan(mixer, range(1, 6))] == [["a"]] * 3 + [["a", "b"]] * 2
    (event,) = mixer.take_events()
    assert (event.kind, event.step) == ("stage", 4)


def test_a_group_that_fails_as_the_last_limit_is_used_up_is_still_replaced(
    make_run: MakeRun,
) -> None:
    mixer = Mixer(make_run({"a": 4}, groups=2, limits={"a": {"max_epochs": 1}}))
    planned = [mixer.plan_step(step) for step in (1, 2)]
    fresh = instead(mixer, planned[1][0])
    assert fresh.task.task_id not in {r.task.task_id for r in planned[1]}
    assert fresh.group_id not in {r.group_id for step in planned for r in step}
    assert [e.kind for e in mixer.take_events()] == ["overdrawn"]
    with pytest.raises(MixExhausted):
        mixer.plan_step(3)
