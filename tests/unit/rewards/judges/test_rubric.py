"""Rubrics: one verdict a criterion, and what they come to."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from configs.graders.judged import Criterion
from configs.graders.union import GRADER
from rewards.judges.rubric import CriterionVerdict, total
from rewards.registry import check_grader
from rewards.score import FailureKind

RUBRIC = {
    "type": "rubric",
    "model": "j",
    "criteria": [
        {"name": "right", "criterion": "is right", "points": 5, "tags": ["truth"]},
        {"name": "short", "criterion": "is short", "points": 3, "tags": ["style"]},
        {"name": "rude", "criterion": "is rude", "points": -4, "tags": ["style"]},
    ],
}


def met_if(fake, *words: str) -> Callable[[dict[str, Any], int], Any]:
    """Return a judge that finds the criteria met that hold one of the words."""

    def reply(body, n):
        criterion = fake.said(body, "user").rsplit("Criterion: ", 1)[1]
        met = any(word in criterion for word in words)
        return fake.verdict(explanation="so", criteria_met=met)

    return reply


@pytest.mark.parametrize(
    ("met", "value"),
    [
        (("right", "short"), 1.0),
        (("right",), 5 / 8),
        (("rude",), -0.5),
        (("right", "rude"), 1 / 8),
        ((), 0.0),
    ],
)
def test_rubrics_are_scored_as_healthbench_does(fake, met: Sequence[str], value: float):
    found, asked = fake.grade(RUBRIC, met_if(fake, *met))
    assert found.value == pytest.approx(value)
    assert len(asked) == 3
    assert {k: v for k, v in found.parts.items() if "." not in k} == {
        name: float(name in met) for name in ("right", "short", "rude")
    }
    assert found.parts["tag.truth"] == float("right" in met)
    assert found.parts["tag.style"] == pytest.approx(
        (3 * ("short" in met) - 4 * ("rude" in met)) / 3
    )
    assert "What is 6 x 7?" in fake.said(asked[0], "user")
    assert [c["points"] for c in found.notes["criteria"]] == [5, 3, -4]


def test_a_rubrics_score_may_be_clipped(fake):
    found, _ = fake.grade({**RUBRIC, "clip": [0, 1]}, met_if(fake, "rude"))
    assert found.value == 0


@pytest.mark.parametrize("seed", range(30))
def test_totals_against_the_definition(seed: int):
    rng = random.Random(seed)
    verdicts = [
        CriterionVerdict(
            criterion=Criterion(criterion="c", points=rng.choice([-3, -1, 0, 2, 5])),
            met=rng.choice([0.0, 0.5, 1.0]),
        )
        for _ in range(rng.randint(1, 6))
    ]
    points = [v.criterion.points for v in verdicts]
    got = math.fsum(v.met * p for v, p in zip(verdicts, points, strict=True))
    whole = {
        "positive_points": sum(p for p in points if p > 0),
        "abs": sum(map(abs, points)),
        "sum": 1,
    }
    for how, divisor in whole.items():
        expected = pytest.approx(got / divisor) if divisor else None
        assert total(verdicts, how) == expected
    most = total(
        [replace(v, met=float(v.criterion.points > 0)) for v in verdicts], "positive_points"
    )
    assert most in (None, 1.0)


def test_a_rubric_may_come_with_the_row(fake):
    rubrics = [
        {"criterion": "is right", "points": 1, "tags": ["a"], "note": "ignored"},
        {"criterion": "is long", "points": 3},
    ]
    grader = {**RUBRIC, "criteria": "{{ item.meta.rubrics }}"}
    found, _ = fake.grade(grader, met_if(fake, "right"), item={"meta": {"rubrics": rubrics}})
    assert (found.value, dict(found.parts)) == (0.25, {"tag.a": 1.0})
    for wrong in ([], "none", [{"points": 1}], [{"criterion": "x", "points": "many"}], [3]):
        found, _ = fake.grade(grader, met_if(fake), item={"meta": {"rubrics": wrong}})
        assert found.kind == FailureKind.INVALID_VARIABLE


def test_all_criteria_may_be_asked_at_once(fake):
    def reply(body, n):
        keys = body["response_format"]["json_schema"]["schema"]["required"]
        return fake.verdict(**{k: {"explanation": "", "criteria_met": k != keys[2]} for k in keys})

    found, asked = fake.grade({**RUBRIC, "mode": "together"}, reply)
    assert (found.value, len(asked)) == (1.0, 1)
    found, _ = fake.grade(
        {**RUBRIC, "mode": "together"},
        lambda b, n: fake.verdict(criterion_1={"criteria_met": True}),
    )
    assert found.kind == FailureKind.JUDGE_PARSE


@pytest.mark.parametrize("met", ["true", 1, None])
def test_a_criterion_is_met_or_not(fake, met: object):
    found, _ = fake.grade(RUBRIC, lambda b, n: fake.verdict(explanation="", criteria_met=met))
    assert found.kind == FailureKind.JUDGE_PARSE


def test_one_criterion_without_a_verdict_leaves_the_answer_without_a_score(fake):
    def reply(body, n):
        rude = "rude" in fake.said(body, "user")
        return fake.status(401) if rude else fake.verdict(explanation="", criteria_met=True)

    assert fake.grade(RUBRIC, reply)[0].kind == FailureKind.JUDGE_SERVER


@pytest.mark.parametrize(
    ("changed", "where", "what"),
    [
        ({"question": "{{ item.x"}, "g.question", "never closed"),
        ({"criteria": "{{ sample.x }}"}, "g.criteria", "not of the row"),
        ({"criteria": "rubrics"}, "g.criteria", "without a template"),
        ({"criteria": [{"criterion": "x", "points": -1}]}, "g.criteria", "no positive points"),
    ],
)
def test_mistakes_are_found_before_anything_is_asked(
    changed: dict[str, object], where: str, what: str
):
    problems = check_grader(GRADER.validate_json(json.dumps({**RUBRIC, **changed})), "g")
    assert any(p.where == where and what in p.what for p in problems), problems
    assert check_grader(GRADER.validate_json(json.dumps(RUBRIC)), "g") == []
