"""The `json_fields` grader: a structured answer compared with the truth field by field."""

import re
from collections.abc import Callable, Mapping
from typing import cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.graders.answers import JsonFieldsGrader
from configs.graders.fields import FieldConfig, ListField, ObjectField, SetField
from rewards.compare import BadTruth, compare_fields
from rewards.score import FailureKind, GradeFailed, Score, policy_fault
from rewards.shape import SchemaCheck, check_schema, decode_json_at, parse_json, schema_check
from rewards.subject import Subject
from rewards.templates import SampleFault, Template, check_templates, parse_template

_BLOCK = re.compile(r"```[\w+-]*[ \t]*\n(.*?)```", re.DOTALL)
_STARTS_TRIED = 1000
"""Braces from the end of a text that are tried as the beginning of its last object."""


def prepare_json_fields(cfg: JsonFieldsGrader, where: str) -> Callable[[Subject], Score]:
    """Return the comparison."""
    given = parse_template(cfg.input, f"{where}.input")
    reference = parse_template(cfg.reference, f"{where}.reference")
    broken = None if cfg.json_schema is None else schema_check(cfg.json_schema)

    def grade(subject: Subject) -> Score:
        truth = _truth(reference, subject)
        try:
            answer = _answer(cfg, given, subject, broken)
        except GradeFailed as failed:
            if cfg.on_parse_error == "invalid":
                raise
            return policy_fault(failed)
        return _score(cfg, answer, truth)

    return grade


def check_json_fields(cfg: JsonFieldsGrader, where: str) -> list[Problem]:
    """Return what is wrong with templates, schema and weights."""
    return [
        *check_templates(cfg, where),
        *check_schema(cfg.json_schema, f"{where}.json_schema"),
        *_check_weights(cfg.fields, f"{where}.fields"),
    ]


def check_json_row(
    cfg: JsonFieldsGrader, item: Mapping[str, JsonValue], where: str
) -> list[Problem]:
    """Return what of a row's truth the fields cannot be compared with."""
    try:
        truth = _truth(parse_template(cfg.reference), Subject.of_text(item, ""))
        score = _score(cfg, truth, truth)
    except (GradeFailed, ConfigError) as error:
        said = error.message if isinstance(error, GradeFailed) else str(error)
        return [Problem(where=f"{where}.reference", what=said)]
    if score.value < 1:
        low = ", ".join(f"`{name}`" for name, part in score.parts.items() if part < 1)
        return [Problem(where=f"{where}.fields", what=f"the truth itself is not paid 1: {low}")]
    return []


def _score(cfg: JsonFieldsGrader, answer: JsonValue, truth: Mapping[str, JsonValue]) -> Score:
    if not isinstance(answer, dict):
        why = f"the answer is JSON but no object: {str(answer)[:80]}"
        return policy_fault(GradeFailed(FailureKind.SAMPLE_PARSE, why))
    try:
        whole = ObjectField(type="object", fields=cfg.fields, extra=cfg.extra)
        parts, mean = compare_fields(whole, answer, truth)
    except BadTruth as bad:
        raise GradeFailed(FailureKind.INVALID_VARIABLE, f"reference: {bad}") from None
    except RecursionError:
        return policy_fault(GradeFailed(FailureKind.SAMPLE_PARSE, "the answer is nested too deep"))
    if not parts:
        raise GradeFailed(FailureKind.INVALID_VARIABLE, "reference: it has no field to compare")
    value = mean if cfg.total == "mean" else float(mean == 1)
    return Score(value=value, parts=parts)


def _truth(reference: Template, subject: Subject) -> dict[str, JsonValue]:
    value = reference.value(subject)
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            why = f"reference: it is not JSON: {error}"
            raise GradeFailed(FailureKind.INVALID_VARIABLE, why) from None
    if not isinstance(value, dict):
        why = f"reference: it is no JSON object: {str(value)[:80]}"
        raise GradeFailed(FailureKind.INVALID_VARIABLE, why)
    return value


def _answer(
    cfg: JsonFieldsGrader, given: Template, subject: Subject, broken: SchemaCheck | None
) -> JsonValue:
    """Return the structured answer; GradeFailed where there is none: the policy's fault."""
    value = given.value(subject)
    if isinstance(value, str):
        try:
            value = _EXTRACT[cfg.extract](value)
        except ValueError as error:
            why = f"the answer has no JSON to read: {error}"
            raise SampleFault(FailureKind.SAMPLE_PARSE, why) from None
    why = None if broken is None else broken(value)
    if why is not None:
        raise SampleFault(FailureKind.SAMPLE_PARSE, f"the answer breaks json_schema: {why}")
    return value


def _in_block(text: str) -> JsonValue:
    blocks = cast("list[str]", _BLOCK.findall(text))
    if not blocks:
        raise ValueError("it has no ``` block")
    return parse_json(blocks[-1])


def _last_object(text: str) -> JsonValue:
    """Return the last object that is not inside another."""
    found: JsonValue = None
    starts = [m.start() for m in re.finditer(r"\{", text)][-_STARTS_TRIED:]
    end = 0
    for start in starts:
        if start >= end:
            try:
                found, end = decode_json_at(text, start)
            except ValueError:
                continue
    if found is None:
        raise ValueError("it has no JSON object")
    return found


_EXTRACT: Mapping[str, Callable[[str], JsonValue]] = {
    "whole": parse_json,
    "block": _in_block,
    "last": _last_object,
}


def _check_weights(fields: Mapping[str, FieldConfig], where: str) -> list[Problem]:
    problems: list[Problem] = []
    if fields and not sum(field.weight for field in fields.values()):
        problems.append(Problem(where=where, what="all weights are 0", fix="Raise one of them."))
    for name, field in fields.items():
        at = f"{where}.{name}"
        if isinstance(field, SetField | ListField):
            while isinstance(field, SetField | ListField) and field.items is not None:
                field, at = field.items, f"{at}.items"
        if isinstance(field, ObjectField):
            problems.extend(_check_weights(field.fields, f"{at}.fields"))
    return problems
