"""JSON schemas of verdicts, as strict structured output wants them: all keys, and no others."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

Schema = dict[str, JsonValue]
_BOUNDS = ("minimum", "maximum")
_MAX_ITEMS = 8
"""Steps that an engine of our own may write."""
STEPS: Schema = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"description": {"type": "string"}, "conclusion": {"type": "string"}},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    },
}


def record(**properties: JsonValue) -> Schema:
    """Return the schema of an object with exactly these keys, in this order."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def score_schema(low: float, high: float, *, explain: bool) -> Schema:
    """Return RFT's `{steps: [{description, conclusion}], result}` with a number."""
    result: Schema = {"type": "number", "minimum": low, "maximum": high}
    return record(steps=STEPS, result=result) if explain else record(result=result)


def label_schema(labels: Sequence[str], *, explain: bool) -> Schema:
    """Return the same with one of the labels."""
    result: Schema = {"type": "string", "enum": list(labels)}
    return record(steps=STEPS, result=result) if explain else record(result=result)


def criterion_schema(*, explain: bool) -> Schema:
    """Return HealthBench's `{explanation, criteria_met}`."""
    met: Schema = {"type": "boolean"}
    if not explain:
        return record(criteria_met=met)
    return record(explanation={"type": "string"}, criteria_met=met)


def without_bounds(schema: JsonValue) -> JsonValue:
    """Return the schema without bounds on numbers, which not every server takes."""
    if isinstance(schema, dict):
        return {k: without_bounds(v) for k, v in schema.items() if k not in _BOUNDS}
    return [without_bounds(v) for v in schema] if isinstance(schema, list) else schema


def with_limits(schema: JsonValue, max_chars: int) -> JsonValue:
    """Return the schema with a bound on every text and list, so that a verdict ends.

    Args:
        max_chars: of one text.
    """
    if isinstance(schema, list):
        return [with_limits(v, max_chars) for v in schema]
    if not isinstance(schema, Mapping):
        return schema
    bounded: Schema = {k: with_limits(v, max_chars) for k, v in schema.items()}
    if schema.get("type") == "string" and "enum" not in schema:
        bounded["maxLength"] = max_chars
    if schema.get("type") == "array":
        bounded["maxItems"] = _MAX_ITEMS
    return bounded
