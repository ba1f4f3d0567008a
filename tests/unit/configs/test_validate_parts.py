"""An objective that cannot mean what it says is refused, with a remedy, all problems at once."""

import pytest

from configs.schema import SourceConfig
from configs.validate_parts import check_parts
from rewards.objective import validate_objectives
from rollouts.advantages import validate_advantages


def source(objective: dict[str, object], *parts: dict[str, object], **more: object) -> SourceConfig:
    named = parts or ({"name": "right"}, {"name": "style"}, {"name": "brief"})
    return SourceConfig.model_validate(
        {
            "name": "s",
            "data": {"jsonl": "x.jsonl"},
            "rewards": [{"use": "exact", **p} for p in named],
            "objective": objective,
            **more,
        }
    )


def problems(of: SourceConfig) -> dict[str, str]:
    found = [*check_parts(of), *validate_objectives([of]), *validate_advantages([of])]
    assert all(p.fix or "is not a formula" in p.what for p in found), found
    return {p.where.removeprefix("sources.s."): f"{p.what} {p.fix}" for p in found}


def needs(part: str, other: str, **more: object) -> dict[str, object]:
    return {"part": part, "needs": other, **more}


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {"combine": "normalize_then_sum"},
        {"combine": "formula", "formula": "right * max(style, brief)"},
        {"gates": [needs("style", "right"), needs("brief", "style"), needs("brief", "right")]},
        {
            "combine": "formula",
            "formula": "right + style",
            "gates": [needs("style", "brief")],  # brief matters by the gate that it opens
        },
    ],
)
def test_sound_objectives_are_taken(objective: dict[str, object]) -> None:
    assert problems(source(objective)) == {}


@pytest.mark.parametrize(
    ("objective", "where", "what"),
    [
        ({"gates": [needs("stile", "right")]}, "objective.gates.0.part", "Did you mean `style`?"),
        ({"gates": [needs("style", "rihgt")]}, "objective.gates.0.needs", "Did you mean `right`?"),
        ({"gates": [needs("style", "zzz")]}, "objective.gates.0.needs", "The parts are `right`"),
        (
            {"gates": [needs("style", "right"), needs("right", "style")]},
            "objective.gates",
            "`style` needs `right` needs `style`",
        ),
        ({"gates": [needs("style", "style")]}, "objective.gates", "`style` needs `style`"),
        (
            {"gates": [needs("style", "right"), needs("style", "right", at_least=0.5)]},
            "objective.gates",
            "2 gates keep `style` behind `right`",
        ),
        (
            {"gates": [needs("style", "right"), needs("style", "brief", otherwise=-1)]},
            "objective.gates",
            "differ in `otherwise`",
        ),
        ({"combine": "formula"}, "objective.formula", "is empty"),
        ({"formula": "right"}, "objective.formula", "is not used by `combine: weighted_sum`"),
        (
            {"combine": "formula", "formula": "right * stile * brief"},
            "objective.formula",
            "style",
        ),
        (
            {"combine": "formula", "formula": "right +* brief"},
            "objective.formula",
            "right +* brief",
        ),
        (
            {"combine": "formula", "formula": "right * style"},
            "objective.formula",
            "does not use the part `brief`",
        ),
    ],
)
def test_unsound_objectives_are_told(objective: dict[str, object], where: str, what: str) -> None:
    found = problems(source(objective))
    assert list(found) == [where]
    assert what in found[where]


@pytest.mark.parametrize(
    ("part", "objective", "where", "what"),
    [
        ({"weight": 2}, "formula", "rewards.right.weight", "2 * right"),
        ({"weight": 0, "credit": {}}, "", "rewards.right.weight", "cannot matter"),
        ({"credit": {"gamma": 0.9}}, "", "rewards.right.credit.gamma", "discounted"),
        ({"credit": {"aggregate": "sum"}}, "formula", "rewards.right.credit.to", "rollout"),
        ({"credit": {"to": "rollout"}}, "", "rewards.right.credit", "Set aggregate"),
    ],
)
def test_weights_and_credit_that_cannot_matter(
    part: dict[str, object], objective: str, where: str, what: str
) -> None:
    combine = {"combine": "formula", "formula": "right + style"} if objective else {}
    found = problems(source(combine, {"name": "right", **part}, {"name": "style"}))
    assert list(found) == [where]
    assert what in found[where]


@pytest.mark.parametrize(
    ("grader", "fix"),
    [
        ({"type": "math"}, "Remove it"),
        (
            {"type": "multi", "graders": {"a": {"type": "math"}}, "calculate_output": "a"},
            "a part of its own",
        ),
    ],
)
def test_credit_of_a_grader_that_scores_no_steps(grader: dict[str, object], fix: str) -> None:
    part = {"name": "right", "grader": grader, "credit": {}, "use": None}
    (where, said), *_ = problems(source({}, part)).items()
    assert where == "rewards.right.credit"
    assert "nothing to credit" in said and fix in said


def test_an_aggregate_that_would_leave_the_outcome_out() -> None:
    steps = {"type": "steps", "verify": {"type": "math"}}
    for outcome, credit, wrong in (
        ({"type": "math"}, {"aggregate": "mean"}, True),
        ({"type": "math"}, {"aggregate": "sum", "to": "rollout"}, True),
        ({"type": "math"}, {}, False),
        (None, {"aggregate": "mean"}, False),
    ):
        part = {"name": "right", "grader": {**steps, "outcome": outcome}, "credit": credit}
        found = problems(source({}, {**part, "use": None}))
        assert list(found) == ["rewards.right.credit.aggregate"] * wrong
        assert "`outcome` would not count" in "".join(found.values()) or not wrong


def test_a_gate_of_a_part_without_weight() -> None:
    idle = ({"name": "right"}, {"name": "style", "weight": 0})
    found = problems(source({"gates": [needs("style", "right")]}, *idle))
    assert "gate cannot matter" in found["rewards.style.weight"]
    opener = source(
        {"gates": [needs("style", "right"), needs("brief", "style")]},
        {"name": "right"},
        {"name": "style", "weight": 0},
        {"name": "brief"},
    )
    assert problems(opener) == {}


def test_estimators_that_the_objective_cannot_use() -> None:
    for use, what in (
        ("mean_baseline", "normalises nothing"),
        ("grpo_process", "combines the parts itself"),
    ):
        found = problems(source({"combine": "normalize_then_sum"}, advantage={"use": use}))
        assert list(found) == ["advantage"] and what in found["advantage"]
    assert problems(source({}, advantage={"use": "grpo_process"})) == {}


def test_all_problems_come_at_once() -> None:
    bad = source(
        {"combine": "formula", "gates": [needs("a", "b")]},
        {"name": "right", "weight": 3, "credit": {"gamma": 0.5}},
        {"name": "style"},
    )
    assert len(problems(bad)) == 6
