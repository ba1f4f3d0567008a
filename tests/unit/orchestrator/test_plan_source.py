"""What `braid plan` says of difficulty and of the cost of evaluation."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from configs.evaluation import due_sources
from configs.schema import RunConfig
from orchestrator.planning.plan import make_plan
from orchestrator.planning.source import DifficultyPlan, EvalPlan, plan_difficulty, plan_evaluation
from orchestrator.planning.table import render_plan

PROCEDURAL: Mapping[str, object] = {"procedural": "reasoning_gym/chain_sum", "size": 1_000_000}


def recipe(*sources: Mapping[str, object], **sections: object) -> RunConfig:
    common = {
        "data": PROCEDURAL,
        "rewards": [{"name": "r", "use": "exact"}],
        "sampling": {"max_tokens": 10},
    }
    base = {
        "name": "t",
        "num_steps": 40,
        "model": {"path": "org/model", "max_model_len": 256},
        "batch": {"groups_per_step": 8},
        "sources": [{"name": f"source_{i}", **common, **s} for i, s in enumerate(sources)],
    }
    return RunConfig.model_validate(base | sections)


def test_the_cost_of_evaluation_by_hand() -> None:
    cfg = recipe(
        {},
        {"eval": {"every": 15, "n": 7, "samples": 4, "max_tokens": 100}},
        {"eval": {"every": 0}},
        eval={"every": 10, "samples": 2},
    )
    held_out = {"source_0": 12, "source_1": None, "source_2": 3}
    assert plan_evaluation(cfg, held_out) == (
        # start, 10, 20, 30, end
        EvalPlan(name="source_0", prompts=12, samples=2, every=10, times=5, completions=120,
                 completion_tokens_at_most=1200),
        # start, 15, 30, end; of the 100 that the recipe holds out, 7 are asked
        EvalPlan(name="source_1", prompts=7, samples=4, every=15, times=4, completions=112,
                 completion_tokens_at_most=11200),
        EvalPlan(name="source_2", prompts=3, samples=2, every=0, times=2, completions=12,
                 completion_tokens_at_most=120),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_evaluations_are_counted_as_they_come_due(seed: int) -> None:
    rng = random.Random(seed)
    cfg = recipe(
        {"eval": {"every": rng.randrange(9)}},
        {},
        num_steps=rng.randint(1, 40),
        eval={
            "every": rng.randrange(9),
            "at_start": rng.random() < 0.5,
            "at_end": rng.random() < 0.5,
        },
    )
    for planned in plan_evaluation(cfg, dict.fromkeys(("source_0", "source_1"), 1)):
        due = [
            step
            for step in range(cfg.num_steps + 1)
            if planned.name in due_sources(cfg, step, last=step == cfg.num_steps)
        ]
        assert planned.times == len(due)


def test_difficulty_by_hand() -> None:
    curriculum = {**PROCEDURAL, "curriculum": {"start": 1, "max_level": 4}}
    cfg = recipe(
        {"difficulty": {"window": [0.15, 0.85], "drop_zero_variance": True, "max_resamples": 3}},
        {},
        {"difficulty": {"window": [0.3, 0.8]}, "data": curriculum, "group_size": 4},
        {"difficulty": {"drop_zero_variance": True}},
        {"difficulty": {"window": [0, 0.5], "min_live_share": 0.1, "easy": {"retry_every": 9}}},
    )
    sizes = {"source_0": 30, "source_2": 1000, "source_3": None, "source_4": 500}
    items, levels, groups, share = plan_difficulty(cfg, sizes)
    assert items == DifficultyPlan(
        name="source_0", window=(0.15, 0.85), group_size=8, passes=(2, 6), retire_after=3,
        retire_retry=0, park_after=3, park_retry=100, min_live=8, levels=None, max_resamples=3,
    )  # fmt: skip
    assert (levels.passes, levels.levels, levels.retire_after) == ((2, 3), (1, 4), None)
    assert (groups.window, groups.passes, groups.max_resamples) == (None, None, 2)
    assert (share.passes, share.min_live, share.retire_retry) == ((0, 4), 50, 9)


def test_both_tables_are_whole_at_80_columns(tmp_path: Path) -> None:
    curriculum = {**PROCEDURAL, "curriculum": {"start": 0}}
    cfg = recipe(
        {
            "difficulty": {
                "window": [0.125, 0.875],
                "drop_zero_variance": True,
                "easy": {"retire_after": 10, "retry_every": 1000},
                "hard": {"retry_every": 1000},
                "min_live": 1_000_000,
            },
            "group_size": 16,
            "sampling": {"max_tokens": 200},
        },
        {"difficulty": {"window": [0.3, 0.8]}, "data": curriculum},
        eval={"every": 1, "samples": 16},
        num_steps=10_000,
    )
    plan = make_plan(cfg)
    assert plan.problems == ()
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(render_plan(plan))
    text = console.export_text()
    tables = text[text.index("\ndifficulty") : text.index("batch:")]
    assert "…" not in tables
    assert max(map(len, tables.splitlines())) <= 80
    for cell in ("0.125-0.875", "2-14/16", "10/1000", "3/1000", "level 0-top", "evaluation"):
        assert cell in tables
    assert "1,000,000" in tables and "3,200,320,000" in tables
    plain = make_plan(recipe({}))
    assert plain.difficulty == () and len(plain.evaluation) == 1
