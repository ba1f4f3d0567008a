"""The rule and the figures of benchmarks/process_reward.py, without a run."""

import random
from pathlib import Path

import pytest

from benchmarks.process_reward import TINY, careless, judge, make_rows, recipe
from configs.errors import Problem
from configs.schema import RunConfig
from configs.validate import validate_run
from rewards.graders import validate_rewards
from rewards.objective import validate_objectives

ROW = {"answer": "even", "terms": "4 -1 -7"}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("4-1=3\n3-7=-4\neven", (True, True)),
        ("4-1=3\n3-7=-4\nodd", (False, True)),
        ("4-1=2\n2-7=-5\neven", (True, False)),  # a slip
        ("4-1=3\n3-6=-3\neven", (True, False)),  # another term
        ("4-1=3\n2-7=-5\neven", (True, False)),  # does not go on from the step before
        ("4-1=3\neven", (True, False)),  # a step left out
        ("4-1=3\n3-7=-4\n0+0=0\neven", (True, False)),  # padded
        ("even", (True, False)),
        ("", (False, False)),
    ],
)
def test_right_answers_and_right_steps(text: str, right: tuple[bool, bool]) -> None:
    assert judge(text, ROW) == right


def test_the_rows_are_different_questions_with_their_parity() -> None:
    rows = make_rows()
    assert len({str(r["prompt"]) for r in rows}) == len(rows) == 9**3 * 4
    for row in rows:
        odd = sum(int(n) for n in str(row["terms"]).split()) % 2
        assert row["answer"] == ("odd" if odd else "even")


def test_the_warm_start_is_careless_and_of_the_form() -> None:
    dice = random.Random(0)
    graded = [judge(careless(row, dice), row) for row in make_rows()[:600]]
    answers, steps = (sum(g[i] for g in graded) / len(graded) for i in (0, 1))
    assert 0.5 < answers < 0.7 and 0.4 < steps < 0.6


@pytest.mark.parametrize("kind", ["outcome", "process", "credit"])
def test_the_recipes_are_sound(kind: str, tmp_path: Path) -> None:
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    cfg = RunConfig.model_validate(recipe(kind, tmp_path, TINY, seed=1, steps=2))
    found: list[Problem] = [
        *validate_run(cfg),
        *validate_rewards(cfg.sources),
        *validate_objectives(cfg.sources),
    ]
    assert found == []
