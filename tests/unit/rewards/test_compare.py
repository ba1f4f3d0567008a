"""Structured answers: always between 0 and 1, 1 for the truth itself, F1 as it is defined."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.graders.fields import FieldConfig, ObjectField
from configs.load import parse_grader
from rewards.compare import BadTruth, compare, compare_fields
from rewards.fields import check_json_row, prepare_json_fields
from rewards.score import GradeFailed
from rewards.subject import Subject

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", " a", "a", "B", "1,000", "2026-01-01"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4)
    ),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


def field(**given: object) -> FieldConfig:
    """Return a comparison."""
    grader = parse_grader(json.dumps({"type": "json_fields", "fields": {"f": given}}), "g")
    assert grader.type == "json_fields"
    return grader.fields["f"]


FIELDS = [
    field(type="exact"),
    field(type="exact", ignore_case=True, strip=False),
    field(type="number", abs=1, scale=3),
    field(type="text"),
    field(type="text", metric="rouge_1", threshold=0.5),
    field(type="date"),
    field(type="set"),
    field(type="set", items="text", score="precision"),
    field(type="list"),
    field(type="list", ordered=False, score="recall", partial=False),
    field(type="object", extra="penalize"),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FIELDS), JSON, JSON)
def test_a_comparison_is_between_0_and_1_or_the_truth_is_bad(
    how: FieldConfig, a: object, b: object
):
    try:
        assert 0 <= compare(how, a, b) <= 1  # type: ignore[arg-type]
        assert compare(how, b, b) == pytest.approx(1)  # type: ignore[arg-type]
    except (BadTruth, GradeFailed):
        return


@settings(max_examples=200, deadline=None)
@given(OBJECTS, OBJECTS)
def test_fields_by_kind_know_the_truth_and_stay_in_bounds(answer: object, truth: object):
    whole = ObjectField(type="object")
    parts, mean = compare_fields(whole, answer, truth)  # type: ignore[arg-type]
    assert 0 <= mean <= 1 and all(0 <= part <= 1 for part in parts.values())
    assert compare_fields(whole, truth, truth)[1] == pytest.approx(1)  # type: ignore[arg-type]


ITEMS = st.lists(st.sampled_from("abcdef"), max_size=7)


@settings(max_examples=200, deadline=None)
@given(ITEMS, ITEMS)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(answer: list[str], truth: list[str]):
    for kind in ("set", "list"):
        p, r, f1 = (
            compare(field(type=kind, score=s, **{"ordered": False} if kind == "list" else {}), a, t)
            for s, a, t in (
                ("precision", answer, truth),
                ("recall", answer, truth),
                ("f1", answer, truth),
            )  # type: ignore[arg-type]
        )
        assert f1 == pytest.approx(2 * p * r / (p + r) if p + r else 0)
    same = (Counter(answer) & Counter(truth)).total()
    if truth and answer:
        assert compare(field(type="list", ordered=False), answer, truth) == pytest.approx(  # type: ignore[arg-type]
            2 * same / (len(answer) + len(truth))
        )


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet='{}[]":,ab1 \\\n`', max_size=30), st.sampled_from(["whole", "block", "last"])
)
def test_any_text_is_graded_0_to_1(text: str, extract: str):
    cfg = parse_grader(json.dumps({"type": "json_fields", "extract": extract}), "g")
    assert cfg.type == "json_fields"
    score = prepare_json_fields(cfg, "g")(Subject.of_text({"answer": {"a": 1, "b": [1]}}, text))
    assert 0 <= score.value <= 1


def test_a_deep_or_huge_answer_is_wrong_and_no_failure():
    cfg = parse_grader('{"type": "json_fields"}', "g")
    assert cfg.type == "json_fields"
    grade = prepare_json_fields(cfg, "g")
    for text in (
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": 1' + "0" * 5000 + "}",
        '{"a": [' + "1," * 9999 + "1]}",
    ):
        assert grade(Subject.of_text({"answer": {"a": [1, 2]}}, text)).value < 0.01


def test_a_row_whose_truth_does_not_fit_is_found_before_anything_starts():
    cfg = parse_grader('{"type": "json_fields", "fields": {"n": "number", "d": "date"}}', "g")
    assert cfg.type == "json_fields"
    assert check_json_row(cfg, {"answer": {"n": 1, "d": "2026-01-01"}}, "g") == []
    for truth in ({"n": "x", "d": "2026-01-01"}, {"n": 1}, "text", {"n": 1, "d": "1/1/26"}):
        (problem,) = check_json_row(cfg, {"answer": truth}, "g")  # type: ignore[dict-item]
        assert problem.where == "g.reference"


@pytest.mark.parametrize("depth", [100, 500, 900])
def test_a_deep_answer_is_the_policys_fault(depth: int):
    text = json.dumps({"type": "json_fields", "fields": {"a": "set"}})
    grader = parse_grader(text, "g")
    grade = prepare_json_fields(grader, "g")  # type: ignore[arg-type]
    deep = f'{{"a": {"[" * depth}{"]" * depth}}}'
    found = grade(Subject.of_text({"answer": '{"a": [1, 2]}'}, deep))
    assert found.value == 0.0


def test_a_deep_answer_to_a_recursive_schema_is_the_policys_fault():
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}}}
    text = json.dumps({"type": "json_fields", "json_schema": schema})
    grade = prepare_json_fields(parse_grader(text, "g"), "g")  # type: ignore[arg-type]
    deep = '{"a": ' * 300 + "{}" + "}" * 300
    assert grade(Subject.of_text({"answer": '{"b": 1}'}, deep)).value == 0.0
