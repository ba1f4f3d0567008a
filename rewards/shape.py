"""Graders of an answer's form: `format` and `length`."""

import importlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

from pydantic import JsonValue

from configs.errors import Problem
from configs.graders.answers import FormatGrader, LengthGrader
from rewards.score import FailureKind, GradeFailed
from rewards.subject import Subject

SchemaCheck = Callable[[JsonValue], str | None]
"""Why a value breaks a JSON Schema, or None."""


def prepare_format(cfg: FormatGrader, where: str) -> Callable[[Subject], float]:
    """Return a grader that pays 1 if the whole answer has the form."""
    checks: list[Callable[[str], bool]] = []
    if cfg.pattern is not None:
        pattern = re.compile(cfg.pattern, re.DOTALL)
        checks.append(lambda text: pattern.fullmatch(text) is not None)
    if cfg.tags:
        tags = _tags_pattern(cfg.tags)
        checks.append(lambda text: tags.fullmatch(text) is not None)
    if cfg.json_schema is not None:
        schema = schema_check(cfg.json_schema)
        checks.append(lambda text: _is_json_of(text, schema))
    return lambda subject: float(all(check(subject.rollout.last_text) for check in checks))


def check_format(cfg: FormatGrader, where: str) -> list[Problem]:
    """Return what is wrong with pattern, tags and schema."""
    problems: list[Problem] = []
    if cfg.pattern is not None:
        problems.extend(check_pattern(cfg.pattern, f"{where}.pattern"))
    if len(set(cfg.tags)) < len(cfg.tags):
        problems.append(Problem(where=f"{where}.tags", what="names a tag twice"))
    problems.extend(check_schema(cfg.json_schema, f"{where}.json_schema"))
    return problems


def check_pattern(pattern: str, where: str) -> list[Problem]:
    """Return why a text is no regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        return [Problem(where=where, what=f"{pattern!r} is not a regular expression: {error}")]
    return []


def prepare_length(cfg: LengthGrader, where: str) -> Callable[[Subject], float]:
    """Return a grader that pays by length."""
    return lambda subject: _shaped(cfg, _length(cfg, subject))


def _length(cfg: LengthGrader, subject: Subject) -> int:
    rollout = subject.rollout
    if cfg.unit == "chars":
        return len(rollout.last_text)
    if rollout.num_completion_tokens == 0 and rollout.last_text:
        why = "the answer came as text alone, without tokens to count; use unit: chars"
        raise GradeFailed(FailureKind.OTHER, why)
    return rollout.num_completion_tokens


def _shaped(cfg: LengthGrader, length: int) -> float:
    short = _beyond(cfg.min + cfg.min_buffer - length, cfg.min_buffer)
    long = 0.0 if cfg.max is None else _beyond(length - (cfg.max - cfg.buffer), cfg.buffer)
    return cfg.inside + (cfg.outside - cfg.inside) * max(short, long)


def _beyond(excess: int, buffer: int) -> float:
    """Return 0 inside a bound, 1 beyond its buffer, and the share of the buffer between."""
    if excess <= 0:
        return 0.0
    return 1.0 if excess >= buffer else excess / buffer


def _tags_pattern(tags: tuple[str, ...]) -> re.Pattern[str]:
    any_tag = "|".join(map(re.escape, tags))
    inside = rf"(?:(?!</?(?:{any_tag})>).)*"
    blocks = "".join(rf"<{t}>{inside}</{t}>\s*" for t in map(re.escape, tags))
    return re.compile(rf"\s*{blocks}", re.DOTALL)


def _is_json_of(text: str, broken: SchemaCheck) -> bool:
    try:
        return broken(parse_json(text)) is None
    except ValueError:
        return False


def parse_json(text: str) -> JsonValue:
    """Return what the text is as strict JSON: no NaN, no key twice.

    Raises:
        ValueError: it is not, or is nested too deep.
    """
    try:
        return cast(JsonValue, _DECODER.decode(text))
    except RecursionError:
        raise ValueError("nested too deep") from None


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_unique)


def decode_json_at(text: str, start: int) -> tuple[JsonValue, int]:
    """Return the strict JSON that begins at `start`, and where it ends; ValueError if none."""
    try:
        return cast("tuple[JsonValue, int]", _DECODER.raw_decode(text, start))
    except RecursionError:
        raise ValueError("nested too deep") from None


def schema_check(schema: Mapping[str, JsonValue]) -> SchemaCheck:
    """Return a check of values against a JSON Schema; references stay inside it."""
    jsonschema, referencing = (importlib.import_module(m) for m in ("jsonschema", "referencing"))
    kind = cast(Any, jsonschema).validators.validator_for(
        schema, default=cast(Any, jsonschema).Draft202012Validator
    )
    validator = kind(schema, registry=cast(Any, referencing).Registry())

    def broken(value: JsonValue) -> str | None:
        try:
            error = next(iter(validator.iter_errors(value)), None)
        except RecursionError:  # of the value: check_schema has tried the schema
            return "nested too deep"
        return None if error is None else f"{error.json_path}: {error.message}"[:300]

    return broken


def check_schema(schema: Mapping[str, JsonValue] | None, where: str) -> list[Problem]:
    """Return why a mapping is no JSON Schema."""
    if schema is None:
        return []
    jsonschema = cast(Any, importlib.import_module("jsonschema"))
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
        schema_check(schema)({})
    except Exception as error:  # noqa: BLE001 - bad schemas raise what they please
        said = str(getattr(error, "message", None) or error)
        return [Problem(where=where, what=f"is not a JSON Schema: {said[:200]}")]
    return []
