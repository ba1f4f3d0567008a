"""Short ways of writing graders, written out before they are checked.

Not pydantic's validators: those would check what is below them as Python objects, so that a list
is no tuple any more.
"""

import re
from collections.abc import Mapping

from pydantic import JsonValue


def write_out(data: JsonValue) -> JsonValue:
    """Return a grader object with `multi`'s list of graders as a mapping, and each field that
    `json_fields` compares as a mapping with its type.

    Raises:
        ValueError: two graders of a list have the same name in a formula.
    """
    if isinstance(data, list):
        return [write_out(value) for value in data]
    if not isinstance(data, dict):
        return data
    whole = {key: write_out(value) for key, value in data.items() if key != "json_schema"}
    if data.get("json_schema") is not None:
        whole["json_schema"] = data["json_schema"]
    if data.get("type") == "multi":
        whole["graders"] = _by_key(whole.get("graders"))
    if data.get("type") == "json_fields":
        whole["fields"] = _fields(whole.get("fields", {}))
    return whole


def slug(name: str) -> str:
    """Return the identifier by which a formula calls a grader of that name."""
    return re.sub(r"\W+", "_", name.strip(), flags=re.ASCII).strip("_").lower()


def _by_key(given: JsonValue) -> JsonValue:
    """Take a list of graders, or one, for a mapping by the identifiers of their names."""
    if isinstance(given, dict) and isinstance(given.get("type"), str):
        given = [given]
    if not isinstance(given, list):
        return given
    keyed: dict[str, JsonValue] = {}
    for i, grader in enumerate(given):
        name = grader.get("name") if isinstance(grader, dict) else None
        key = slug(str(name or "")) or f"grader_{i}"
        if key in keyed:
            raise ValueError(f"two graders of the list are called `{key}` in a formula; rename one")
        keyed[key] = grader
    return keyed


def _fields(given: JsonValue) -> JsonValue:
    if not isinstance(given, dict):
        return given
    return {name: _field(field) for name, field in given.items()}


def _field(given: JsonValue) -> JsonValue:
    """Take a bare `number` for `{type: number}`."""
    if isinstance(given, str):
        return {"type": given}
    if not isinstance(given, Mapping):
        return given
    whole = dict(given)
    if "items" in whole:
        whole["items"] = _field(whole["items"])
    if "fields" in whole:
        whole["fields"] = _fields(whole["fields"])
    return whole
