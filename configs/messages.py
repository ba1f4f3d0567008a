"""What pydantic found, in our words, with the file, the line and the nearest valid key."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, JsonValue
from pydantic_core import ErrorDetails

from configs.errors import Problem
from configs.schema import RunConfig
from configs.yaml_text import Document, KeyPath

_KINDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def explain(detail: ErrorDetails, *, document: Document, set_by: Mapping[KeyPath, str]) -> Problem:
    """Turn one of pydantic's errors into a Problem."""
    path = tuple(detail["loc"])
    where = _where(path, document, set_by)
    kind, given = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        what, fix = _unknown_key(path)
        return Problem(where=where, what=what, fix=fix)
    if kind == "missing":
        return _missing(path, where)
    if kind in _KINDS:
        return Problem(
            where=where, what=f"must be {_KINDS[kind]}, is {_show(given)}", fix=_hint(path, given)
        )
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return Problem(where=where, what=f"must be {words} {context[key]:g}, is {_show(given)}")
    if kind == "literal_error":
        allowed = context["expected"].replace("'", "`")
        near = _near(str(given), [a.strip("` ") for a in allowed.replace(" or ", ", ").split(",")])
        return Problem(where=where, what=f"must be {allowed}, is {_show(given)}", fix=near)
    if kind == "too_short":
        return Problem(where=where, what=f"needs at least {context['min_length']} item(s)")
    if kind == "too_long":
        return Problem(where=where, what=f"has more than {context['max_length']} items")
    if kind == "string_pattern_mismatch":
        return Problem(
            where=where,
            what=f"is {_show(given)}; a name has letters, digits, `_`, `.` and `-`, and starts "
            "with a letter or digit",
        )
    return Problem(where=where, what=f"{detail['msg']}, is {_show(given)}")


def _where(path: KeyPath, document: Document, set_by: Mapping[KeyPath, str]) -> str:
    for end in range(len(path), 0, -1):
        if path[:end] in set_by:
            return f"{_named(path, document.data)} ({set_by[path[:end]]})"
    return document.where(path, _named(path, document.data))


def _named(path: KeyPath, data: JsonValue) -> str:
    """Write a path with items of lists by their names: `sources.arith.weight`."""
    parts: list[str] = []
    for part in path:
        data = _below(data, part)
        name = data.get("name") if isinstance(part, int) and isinstance(data, dict) else None
        parts.append(name if isinstance(name, str) and name else str(part))
    return ".".join(parts) or "recipe"


def _below(data: JsonValue, part: str | int) -> JsonValue:
    if isinstance(data, dict):
        return data.get(str(part))
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return None


def _missing(path: KeyPath, where: str) -> Problem:
    model = _model_at(path[:-1])
    field = model.model_fields.get(str(path[-1])) if model else None
    meaning = f": {field.description}" if field and field.description else ""
    return Problem(where=where, what=f"is missing{meaning}", fix=f"Add `{path[-1]}`.")


def _unknown_key(path: KeyPath) -> tuple[str, str]:
    key = str(path[-1])
    model = _model_at(path[:-1])
    fields = list(model.model_fields) if model else []
    what = "unknown key"
    if near := _near(key, fields):
        return what, near
    elsewhere = [knob for knob in all_knobs() if knob.rsplit(".", 1)[-1] == key]
    if elsewhere:
        return what, f"There is `{'`, `'.join(elsewhere[:3])}`."
    return what, f"Keys here: {', '.join(fields)}." if fields else ""


def _near(given: str, allowed: Sequence[str]) -> str:
    match = difflib.get_close_matches(given, allowed, n=1, cutoff=0.6)
    return f"Did you mean `{match[0]}`?" if match else ""


def _model_at(path: KeyPath) -> type[BaseModel] | None:
    """Return the section that a path leads to, or None where it leads into plain data."""
    model: type[BaseModel] | None = RunConfig
    named = False  # whether the next part is a name of the user's own, as below `judges`
    for part in path:
        if isinstance(part, int) or named:
            named = False
            continue
        field = model.model_fields.get(part) if model else None
        if field is None:
            return None
        model = section_of(field.annotation)
        named = get_origin(field.annotation) is dict
    return model


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section class inside an annotation, also of a list of sections."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(section_of, get_args(annotation)) if m is not None), None)


def all_knobs(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield the path of every knob, lists of sections written as `sources[]`."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield prefix + name
        else:
            many = "" if field.annotation is section else "[]"
            yield from all_knobs(section, f"{prefix}{name}{many}.")


def _hint(path: KeyPath, given: JsonValue) -> str:
    model = _model_at(path)
    if model is None or not isinstance(given, str):
        return ""
    if "use" in model.model_fields:
        return f"Write it as `{path[-1]}: {{use: {given}}}`."
    return f"Keys here: {', '.join(model.model_fields)}."


def _show(value: JsonValue) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"text {value[:60]!r}"
    if isinstance(value, dict):
        return f"a mapping with {', '.join(map(str, list(value)[:4])) or 'no keys'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{value:g}" if isinstance(value, float) else str(value)
