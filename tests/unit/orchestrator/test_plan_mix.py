"""What `braid plan` says about the mix: by stage and source, and how long limits last."""

import io

from rich.console import Console

from configs.schema import RunConfig
from orchestrator.planning.mix import plan_mix
from orchestrator.planning.plan import make_plan
from orchestrator.planning.table import render_plan

ITEMS = dict.fromkeys("abc", 100)


def recipe(sources: list[dict[str, object]], **sections: object) -> RunConfig:
    common = {
        "data": {"procedural": "reasoning_gym/lcm", "size": 100},
        "rewards": [{"name": "r", "use": "exact"}],
        "sampling": {"max_tokens": 10},
    }
    base = {
        "name": "t",
        "num_steps": 40,
        "model": {"path": "org/model", "max_model_len": 256},
        "batch": {"groups_per_step": 8},
        "eval": {"every": 10},
        "sources": [
            {"name": name, **common, **more} for name, more in zip("abc", sources, strict=False)
        ],
    }
    return RunConfig.model_validate(base | sections)


def test_stages_by_hand() -> None:
    cfg = recipe(
        [{"limits": {"max_epochs": 2}}, {"weight": 3, "group_size": 4}],
        stages=[
            {"until": {"step": 10}, "weights": {"b": 0}},
            {"until": {"metric": "eval/a/pass_rate", "gte": 0.5, "patience": 2},
             "weights": {"a": 3, "b": 1}, "group_size": {"b": 16}},
            {"weights": {"a": 0}},
        ],
    )  # fmt: skip
    plan = plan_mix(cfg, ITEMS)
    rows = [
        (s.until, x.source, x.share, x.groups_per_step, x.group_size, x.steps_to_exhaustion)
        for s in plan.stages
        for x in s.sources
    ]
    metric = "eval/a/pass_rate >= 0.5, 2 times in a row"
    assert rows == [
        ("step 10", "a", 1.0, 8.0, 8, 25),
        ("step 10", "b", 0.0, 0.0, 4, None),
        (metric, "a", 0.75, 6.0, 8, 33),
        (metric, "b", 0.25, 2.0, 16, None),
        ("the end", "a", 0.0, 0.0, 8, None),
        ("the end", "b", 1.0, 8.0, 4, None),
    ]
    # 10 steps of 8, then 6 a step: the 200 draws of two epochs end with step 30.
    a, b = plan.sources
    assert (a.groups_in_run, a.epochs, a.groups_most) == (200, 2.0, 8)
    assert (b.groups_in_run, b.groups_least, b.groups_most) == (120, 0, 8)
    assert ["a is used up after 200 draws" in w.what for w in plan.warnings] == [True]


def test_samples_are_counted_with_the_stages_group_sizes() -> None:
    stages = [{"until": {"step": 5}, "group_size": {"a": 2}}, {"weights": {"b": 1}}]
    cfg = recipe([{}, {}], stages=stages)
    steps = plan_mix(cfg, ITEMS).steps
    assert {s.samples for s in steps[:5]} == {4 * 2 + 4 * 8}
    assert {s.samples for s in steps[5:]} == {64}
    assert make_plan(cfg).batch.samples_per_step == 64
    assert make_plan(cfg).batch.completion_tokens_at_most == 640


def test_a_mix_that_ends_early_is_a_problem_unless_that_is_meant() -> None:
    limits = {"max_share": 0.5}
    cfg = recipe([{"limits": {"max_epochs": 1}}, {"limits": limits}])
    (problem,) = make_plan(cfg).problems
    assert "step 26 cannot be filled: a used up" in problem.what
    meant = recipe([{"limits": {"max_epochs": 1}}, {}], mix={"on_exhausted": "stop"})
    plan = make_plan(meant)
    assert plan.problems == () and any("mix.on_exhausted is stop" in w.what for w in plan.warnings)
    assert [s.groups_in_run for s in plan.sources] == [100, 100]


def test_a_mix_with_faults_still_has_a_plan_without_figures() -> None:
    plan = make_plan(recipe([{}, {}], stages=[{"weights": {"x": 1}}]))
    assert [p.where for p in plan.problems] == ["stages.0.weights.x"]
    assert plan.sources == () and plan.batch.samples_per_step == 0


def test_long_runs_are_not_gone_through_to_the_end() -> None:
    plan = plan_mix(recipe([{}, {}], num_steps=100_000), ITEMS)
    assert len(plan.steps) == 500
    assert [s.groups_in_run for s in plan.sources] == [400_000, 400_000]


def test_shares_of_samples_follow_each_stages_own_group_sizes() -> None:
    stages = [{"until": {"step": 5}, "weights": {"a": 1}}, {"group_size": {"a": 24}}]
    plan = plan_mix(recipe([{}, {}], stages=stages, mix={"unit": "samples"}), ITEMS)
    rows = [[(x.share, x.groups_per_step) for x in s.sources] for s in plan.stages]
    assert rows == [[(0.5, 4.0), (0.5, 4.0)], [(0.5, 2.0), (0.5, 6.0)]]
    assert {s.samples for s in plan.steps[5:]} == {96}


def test_each_sources_lead_is_shown_where_they_differ() -> None:
    alike = make_plan(recipe([{}, {}], batch={"groups_per_step": 8, "max_staleness": 2}))
    assert [s.max_staleness for s in alike.sources] == [2, 2]
    assert alike.batch.groups_in_flight == 24 and alike.batch.sequences_in_flight == 192
    unlike = make_plan(
        recipe(
            [{}, {"max_staleness": 5, "group_size": 4}],
            batch={"groups_per_step": 8, "max_staleness": 2},
        )
    )
    assert [s.max_staleness for s in unlike.sources] == [2, 5]
    # 3 steps of all, and 3 steps more of the 4 groups that are b's
    assert unlike.batch.groups_in_flight == 24 + 12
    assert unlike.batch.sequences_in_flight == 3 * 48 + 12 * 4
    for plan, shown in ((alike, False), (unlike, True)):
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(render_plan(plan))
        text = console.export_text()
        assert ("steps ahead" in text) is ("up to 5" in text) is shown
