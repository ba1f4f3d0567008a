"""Rows that lack what a grader asks are named before any actor starts."""

import json
from collections.abc import Callable

from configs.load import parse_grader
from configs.schema import RewardConfig, SourceConfig
from rewards.rows import check_rows
from rollouts.types import Task


def part(**grader: object) -> RewardConfig:
    return RewardConfig(name="r", grader=parse_grader(json.dumps(grader), "g"))


def check(reference: str, op: str = "eq") -> dict[str, object]:
    return {"type": "string_check", "input": "a", "reference": reference, "operation": op}


def test_a_variable_that_some_rows_lack_is_told_once_with_field_row_and_near_name(
    task: Callable[..., Task], source: Callable[..., SourceConfig]
):
    rows = [task(total=1), task(totl=2), task(totl=3)]
    cfg = source(part(type="multi", graders={"a": check("{{ item.total }}")}, calculate_output="a"))
    (problem,) = check_rows([cfg], {"s": rows})
    assert problem.where == "sources.s.rewards.r.grader.graders.a.reference"
    assert "`{{ item.total }}`: the row has no `total`" in problem.what
    assert "row s/train/0; 2 of 3 rows" in problem.what
    assert problem.fix == "Did you mean `totl`?"


def test_sound_rows_and_graders_without_templates_have_no_problem(
    task: Callable[..., Task], source: Callable[..., SourceConfig]
):
    deep = source(part(**check("{{ item.deep.k[2] }} {{ sample.output_json.whatever }}")))
    assert check_rows([deep], {"s": [task()]}) == []
    assert check_rows([deep], {}) == []
    plain = source(RewardConfig(name="r", use="exact"))

    def unread():
        raise AssertionError("no row is read where no grader asks anything of them")
        yield task()

    assert check_rows([plain], {"s": unread()}) == []


def test_a_truth_that_cannot_be_compared_is_told(
    task: Callable[..., Task], source: Callable[..., SourceConfig]
):
    cfg = source(part(type="json_fields", reference="{{ item.deep }}", fields={"k": "number"}))
    (problem,) = check_rows([cfg], {"s": [task()]})
    assert problem.where == "sources.s.rewards.r.grader.reference" and "`k`" in problem.what


def test_tests_that_cannot_be_run_are_told(
    task: Callable[..., Task], source: Callable[..., SourceConfig]
):
    cfg = source(part(type="code_tests"))
    (problem,) = check_rows([cfg], {"s": [task(tests=["print(1)"])]})
    assert "does not split" in problem.what


def test_a_row_that_a_step_lacks_is_told_with_the_field_of_the_recipe(
    task: Callable[..., Task], source: Callable[..., SourceConfig]
):
    cfg = source(part(type="steps", verify=check("{{ item.total }}")))
    (problem,) = check_rows([cfg], {"s": [task(totl=1)]})
    assert problem.where == "sources.s.rewards.r.grader.verify.reference"
