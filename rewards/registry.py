"""Which code grades which `type` of grader, and where it runs.

COMPUTE graders run in a killable process. Each is `module:prepare`, where
`prepare(cfg, where) -> (Subject -> Score | float)` is called once in every worker; the parent
never imports it. ASYNC graders run in the parent's event loop and are
`async (cfg, subject, services, path) -> Score`: they compose others, or ask judges.
"""

import importlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, cast

from pydantic import JsonValue

from configs.errors import Problem
from configs.graders.union import GraderConfig
from rewards.score import Score
from rewards.services import Services
from rewards.subject import Subject

Prepare = Callable[[Any, str], Callable[[Subject], object]]
RowCheck = Callable[[Any, Mapping[str, JsonValue], str], list[Problem]]
Evaluator = Callable[[Any, Subject, Services, str], Awaitable[Score]]

COMPUTE: Mapping[str, str] = {
    "function": "rewards.graders:prepare_function",
    "python": "rewards.python_grader:prepare_python",
    "code_tests": "rewards.code_tests:prepare_code_tests",
    "reasoning_gym": "rewards.graders:prepare_reasoning_gym",
    "format": "rewards.shape:prepare_format",
    "length": "rewards.shape:prepare_length",
    "string_check": "rewards.text:prepare_string_check",
    "text_similarity": "rewards.text:prepare_text_similarity",
    "math": "rewards.math_answers:prepare_math",
    "json_fields": "rewards.fields:prepare_json_fields",
}
ASYNC: Mapping[str, str] = {
    "multi": "rewards.multi:evaluate_multi",
    "score_model": "rewards.judges.scoring:evaluate_score",
    "label_model": "rewards.judges.scoring:evaluate_label",
    "rubric": "rewards.judges.rubric:evaluate_rubric",
    "reward_model": "rewards.judges.reward_model:evaluate_reward_model",
}
CHECKS: Mapping[str, str] = {
    "function": "rewards.graders:check_function",
    "format": "rewards.shape:check_format",
    "python": "rewards.python_grader:check_python",
    "code_tests": "rewards.code_tests:check_code_tests",
    "string_check": "rewards.text:check_texts",
    "text_similarity": "rewards.text:check_texts",
    "math": "rewards.math_answers:check_math",
    "json_fields": "rewards.fields:check_json_fields",
    "multi": "rewards.multi:check_multi",
    "score_model": "rewards.judges.checks:check_score",
    "label_model": "rewards.judges.checks:check_label",
    "rubric": "rewards.judges.checks:check_rubric",
}
"""`(cfg, where) -> list[Problem]`: what is wrong with a grader beyond its fields' types."""
ROW_CHECKS: Mapping[str, str] = {
    "code_tests": "rewards.code_tests:check_code_row",
    "json_fields": "rewards.fields:check_json_row",
    "rubric": "rewards.judges.checks:check_rubric_row",
}
"""`(cfg, item, where) -> list[Problem]`: what of a row a grader with sound templates cannot use."""


def load_prepare(kind: str) -> Prepare:
    """Return what prepares a COMPUTE grader of this type."""
    return cast(Prepare, _attribute(COMPUTE[kind]))


def load_evaluator(kind: str) -> Evaluator:
    """Return what evaluates an ASYNC grader of this type."""
    return cast(Evaluator, _attribute(ASYNC[kind]))


def load_row_check(kind: str) -> RowCheck | None:
    """Return what checks a row for a grader of this type, if anything does."""
    return cast(RowCheck, _attribute(ROW_CHECKS[kind])) if kind in ROW_CHECKS else None


def _attribute(name: str) -> object:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def children(cfg: GraderConfig) -> Iterator[tuple[str, GraderConfig]]:
    """Yield the graders that a grader is made of, by the name that its path has for them."""
    graders = getattr(cfg, "graders", None)
    if isinstance(graders, Mapping):
        yield from cast("Mapping[str, GraderConfig]", graders).items()


def leaves(cfg: GraderConfig, path: str) -> Iterator[tuple[str, GraderConfig]]:
    """Yield every COMPUTE grader of the tree, by path."""
    if cfg.type in COMPUTE:
        yield path, cfg
    for name, child in children(cfg):
        yield from leaves(child, f"{path}.{name}")


def check_grader(cfg: GraderConfig, where: str) -> list[Problem]:
    """Return every problem with a grader and those that it is made of; nothing is graded."""
    problems: list[Problem] = []
    if cfg.type in CHECKS:
        check = cast("Callable[[GraderConfig, str], list[Problem]]", _attribute(CHECKS[cfg.type]))
        problems.extend(check(cfg, where))
    for name, child in children(cfg):
        problems.extend(check_grader(child, f"{where}.graders.{name}"))
    return problems
