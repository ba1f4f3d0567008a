"""How near a value of an answer is to the true one, 0 to 1, by how its field is compared."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import cast

from pydantic import JsonValue

from configs.graders.fields import (
    DateField,
    ExactField,
    FieldConfig,
    ListField,
    NumberField,
    ObjectField,
    SetField,
    TextField,
)
from rewards.matching import best_assignment, best_in_order
from rewards.similarity import similarity

_NUMBER = re.compile(
    r"\s*([+-]?)\s*[$€£¥]?\s*(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.?\d*(?:[eE][+-]?\d{1,3})?|\.\d+)\s*"
)
_EXTRA_SEEN = 100
"""Items of an answer's list, beyond ten for each true one, that are still compared; all count."""
_EXACT: FieldConfig = ExactField(type="exact")
_NUMERIC: FieldConfig = NumberField(type="number")
_LISTED: FieldConfig = ListField(type="list")
_OBJECT: FieldConfig = ObjectField(type="object")


class BadTruth(Exception):
    """The true value is not of the kind that its field says: the row's fault."""


def compare_fields(
    cfg: ObjectField, given: Mapping[str, JsonValue], truth: Mapping[str, JsonValue]
) -> tuple[dict[str, float], float]:
    """Return the score of each field, and their weighted mean (1 where there is none)."""
    fields: Mapping[str, FieldConfig] = cfg.fields or {name: _kind(v) for name, v in truth.items()}
    parts: dict[str, float] = {}
    total, weights = 0.0, 0.0
    for name, field in fields.items():
        if name not in truth:
            if field.optional:
                continue
            raise BadTruth(f"it has no field `{name}`; fields are {', '.join(truth) or 'none'}")
        try:
            parts[name] = compare(field, given[name], truth[name]) if name in given else 0.0
        except BadTruth as bad:
            raise BadTruth(f"field `{name}`: {bad}") from None
        if name not in given:
            _check_truth(field, truth[name], name)
        total += field.weight * parts[name]
        weights += field.weight
    if cfg.extra == "penalize":
        weights += len(set(given) - set(truth))
    return parts, min(1.0, total / weights) if weights else 1.0


def compare(field: FieldConfig, given: JsonValue, truth: JsonValue) -> float:
    """Return how near a value is to the true one.

    Raises:
        BadTruth: the true value is not of the field's kind.
    """
    if truth is None:
        return float(given is None)
    match field:
        case ExactField():
            return float(_same(field, given, truth))
        case NumberField():
            return _numbers(field, given, truth)
        case TextField():
            return _texts(field, given, truth)
        case DateField():
            return _dates(field, given, truth)
        case SetField() | ListField():
            return _several(field, given, truth)
        case ObjectField():
            if not isinstance(truth, Mapping):
                raise BadTruth(f"{_shown(truth)} is no object")
            if not isinstance(given, Mapping):
                return 0.0
            return compare_fields(field, given, truth)[1]


def _check_truth(field: FieldConfig, truth: JsonValue, name: str) -> None:
    """Raise BadTruth for a truth that no answer could be compared with."""
    try:
        compare(field, truth, truth)
    except BadTruth as bad:
        raise BadTruth(f"field `{name}`: {bad}") from None


def _kind(truth: JsonValue) -> FieldConfig:
    """Return the comparison that goes by the kind of the true value."""
    if isinstance(truth, bool) or truth is None or isinstance(truth, str):
        return _EXACT
    if isinstance(truth, int | float):
        return _NUMERIC
    return _LISTED if isinstance(truth, list) else _OBJECT


def _same(field: ExactField, given: JsonValue, truth: JsonValue) -> bool:
    if isinstance(truth, str) and isinstance(given, str):
        if field.strip:
            given, truth = given.strip(), truth.strip()
        return given.casefold() == truth.casefold() if field.ignore_case else given == truth
    if isinstance(truth, list) and isinstance(given, list):
        pairs = zip(given, truth, strict=False)
        return len(given) == len(truth) and all(_same(field, g, t) for g, t in pairs)
    if isinstance(truth, Mapping) and isinstance(given, Mapping):
        return set(given) == set(truth) and all(_same(field, given[k], truth[k]) for k in truth)
    return isinstance(given, bool) == isinstance(truth, bool) and given == truth


def _numbers(field: NumberField, given: JsonValue, truth: JsonValue) -> float:
    true, number = _number(truth, field.from_text), _number(given, field.from_text)
    if true is None:
        raise BadTruth(f"{_shown(truth)} is no number")
    if number is None:
        return 0.0
    try:
        off = abs(number - true)
        right = max(field.abs, field.rel * abs(true)) if field.rel else field.abs
        if off <= right:
            return 1.0
        return max(0.0, 1 - (off - right) / field.scale) if field.scale else 0.0
    except OverflowError:  # an integer beyond every float
        return 0.0


def _number(value: JsonValue, from_text: bool) -> int | float | None:
    if isinstance(value, str) and from_text and (match := _NUMBER.fullmatch(value)):
        return _number(float(match[1] + match[2].replace(",", "")), False)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _texts(field: TextField, given: JsonValue, truth: JsonValue) -> float:
    if not isinstance(truth, str):
        raise BadTruth(f"{_shown(truth)} is no text")
    if not isinstance(given, str):
        return 0.0
    if field.ignore_case:
        given, truth = given.lower(), truth.lower()
    alike = similarity(field.metric, given, truth)
    return alike if alike >= field.threshold else 0.0


def _dates(field: DateField, given: JsonValue, truth: JsonValue) -> float:
    true = _date(truth, field.formats)
    if true is None:
        raise BadTruth(f"{_shown(truth)} is no date as {' or '.join(field.formats)}")
    return float(_date(given, field.formats) == true)


def _date(value: JsonValue, formats: Sequence[str]) -> date | None:
    if not isinstance(value, str):
        return None
    for read in (*formats, ""):
        try:
            text = value.strip()
            found = datetime.strptime(text, read) if read else datetime.fromisoformat(text)
        except ValueError:
            continue
        return found.date()
    return None


def _several(field: SetField | ListField, given: JsonValue, truth: JsonValue) -> float:
    if not isinstance(truth, list):
        raise BadTruth(f"{_shown(truth)} is no list")
    if not isinstance(given, list):
        return 0.0
    if isinstance(field, SetField):
        given, truth = _distinct(given), _distinct(truth)
    if not given or not truth:
        return float(len(given) == len(truth))
    matched = _matched(field, given, truth)
    precision, recall = matched / len(given), matched / len(truth)
    if field.score == "precision":
        return precision
    return recall if field.score == "recall" else 2 * matched / (len(given) + len(truth))


def _matched(field: SetField | ListField, given: list[JsonValue], truth: list[JsonValue]) -> float:
    """Return the largest sum of scores of items matched one to one."""
    kinds = [field.items or _kind(true) for true in truth]
    ordered = isinstance(field, ListField) and field.ordered
    if not ordered and all(kind == _EXACT for kind in kinds):
        texts = [Counter(_spelling(v) for v in values) for values in (given, truth)]
        return float((texts[0] & texts[1]).total())
    seen = given[: 10 * len(truth) + _EXTRA_SEEN]
    scores = [
        [compare(kind, value, true) for kind, true in zip(kinds, truth, strict=True)]
        for value in seen
    ]
    if not field.partial:
        scores = [[float(score >= 1 - 1e-9) for score in row] for row in scores]
    return best_in_order(scores) if ordered else best_assignment(scores)


def _distinct(values: list[JsonValue]) -> list[JsonValue]:
    return list({_spelling(value): value for value in values}.values())


def _spelling(value: JsonValue) -> str:
    """Return a text that values equal by `exact` have in common."""
    if isinstance(value, str):
        return json.dumps(value.strip())
    if isinstance(value, list):
        return f"[{','.join(_spelling(v) for v in value)}]"
    if isinstance(value, Mapping):
        pairs = sorted((k, _spelling(v)) for k, v in value.items())
        return json.dumps(cast(JsonValue, pairs))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value)


def _shown(value: JsonValue) -> str:
    return json.dumps(value, ensure_ascii=False)[:80]
