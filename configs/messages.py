"""What pydantic found, in our words, with the file, the line and the nearest valid key."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias, get_args, get_origin

from pydantic import BaseModel, JsonValue
from pydantic_core import ErrorDetails

from configs.base import PATTERN_WORDS
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


def explain(
    detail: ErrorDetails,
    *,
    document: Document,
    set_by: Mapping[KeyPath, str],
    root: object = RunConfig,
) -> Problem:
    """Turn one of pydantic's errors into a Problem.

    Args:
        root: the section, or union of sections, that the document was checked against.
    """
    loc = detail["loc"][:-1] if detail["loc"][-1:] == ("[key]",) else detail["loc"]
    path, holder, sections = _follow(loc, root)
    where = _where(path, document, set_by)
    kind, given = detail["type"], detail["input"]
    context = detail.get("ctx", {})
    if kind == "extra_forbidden":
        what, fix = _unknown_key(path, holder, root)
        return Problem(where=where, what=what, fix=fix)
    if kind == "missing":
        return _missing(path, where, holder)
    if kind == "union_tag_not_found":
        what = f"has no `type`, which is one of {', '.join(_by_tag(sections))}"
        return Problem(where=where, what=what)
    if kind == "union_tag_invalid":
        tags = list(_by_tag(sections))
        what = f"there is no type `{context['tag']}`; types are {', '.join(tags)}"
        return Problem(where=where, what=what, fix=_near(str(context["tag"]), tags))
    if kind == "value_error":
        return Problem(where=where, what=str(context["error"]))
    if kind in _KINDS:
        fix = _hint(path, sections, given)
        return Problem(where=where, what=f"must be {_KINDS[kind]}, is {_show(given)}", fix=fix)
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return Problem(where=where, what=f"must be {words} {context[key]:g}, is {_show(given)}")
    if kind == "literal_error":
        allowed = context["expected"].replace("'", "`")
        near = _near(str(given), [a.strip("` ") for a in allowed.replace(" or ", ", ").split(",")])
        return Problem(where=where, what=f"must be {allowed}, is {_show(given)}", fix=near)
    if kind == "too_short":
        return Problem(where=where, what=f"needs at least {context['min_length']} item(s)")
    if kind == "string_too_short":
        return Problem(where=where, what="is empty", fix="Fill it in, or remove the line.")
    if kind == "too_long":
        return Problem(where=where, what=f"has more than {context['max_length']} items")
    if kind == "string_pattern_mismatch":
        return Problem(
            where=where,
            what=f"is {_show(given)}; {PATTERN_WORDS[context['pattern']]}",
        )
    return Problem(where=where, what=f"{detail['msg']}, is {_show(given)}")


def _where(path: KeyPath, document: Document, set_by: Mapping[KeyPath, str]) -> str:
    for end in range(len(path), 0, -1):
        if path[:end] in set_by:
            return f"{_named(path, document.data)} ({set_by[path[:end]]})"
    if path not in document.lines:  # a section that an override has begun
        for key, override in set_by.items():
            if path and key[: len(path)] == path:
                return f"{_named(path, document.data)} ({override})"
    return document.where(path, _named(path, document.data))


def _named(path: KeyPath, data: JsonValue) -> str:
    """Write a path with items of lists by their names: `sources.arith.weight`."""
    parts: list[str] = []
    for part in path:
        data = _below(data, part)
        name = data.get("name") if isinstance(part, int) and isinstance(data, dict) else None
        parts.append(name if isinstance(name, str) and name else str(part))
    return ".".join(parts)


def _below(data: JsonValue, part: str | int) -> JsonValue:
    if isinstance(data, dict):
        return data.get(str(part))
    if isinstance(data, list) and isinstance(part, int) and part < len(data):
        return data[part]
    return None


def _missing(path: KeyPath, where: str, holder: type[BaseModel] | None) -> Problem:
    field = holder.model_fields.get(str(path[-1])) if holder else None
    meaning = f": {field.description}" if field and field.description else ""
    return Problem(where=where, what=f"is missing{meaning}", fix=f"Add `{path[-1]}`.")


def _unknown_key(path: KeyPath, holder: type[BaseModel] | None, root: object) -> tuple[str, str]:
    key = str(path[-1])
    fields = list(holder.model_fields) if holder else []
    what = "unknown key"
    if near := _near(key, fields):
        return what, near
    knobs = all_knobs() if root is RunConfig else ()
    elsewhere = [knob for knob in knobs if knob.rsplit(".", 1)[-1] == key]
    if elsewhere:
        return what, f"There is `{'`, `'.join(elsewhere[:3])}`."
    return what, f"Keys here: {', '.join(fields)}." if fields else ""


def _near(given: str, allowed: Sequence[str]) -> str:
    match = difflib.get_close_matches(given, allowed, n=1, cutoff=0.6)
    return f"Did you mean `{match[0]}`?" if match else ""


Sections: TypeAlias = tuple[type[BaseModel], ...]


def _follow(loc: KeyPath, root: object) -> tuple[KeyPath, type[BaseModel] | None, Sections]:
    """Walk from `root` along one of pydantic's paths, in which the type of a union's member is a
    step of its own.

    Returns:
        The path without such steps, the section that holds its last key (None in plain data),
        and the sections that may stand there.
    """
    path: list[str | int] = []
    holder: type[BaseModel] | None = None
    sections, keyed = sections_of(root), False
    for part in loc:
        if isinstance(part, int) or keyed:
            keyed = False
            path.append(part)
            continue
        tagged = _by_tag(sections) if len(sections) > 1 else {}
        if part in tagged:
            sections = (tagged[part],)
            continue
        path.append(part)
        holder = sections[0] if sections else None
        field = holder.model_fields.get(part) if holder else None
        sections = sections_of(field.annotation) if field else ()
        keyed = field is not None and bool(sections) and _is_mapping(field.annotation)
    return tuple(path), holder, sections


def sections_of(annotation: object) -> Sections:
    """Return the section classes inside an annotation, also of a list, mapping or union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(m for part in get_args(annotation) for m in sections_of(part))


def _is_mapping(annotation: object) -> bool:
    return get_origin(annotation) is dict or any(map(_is_mapping, get_args(annotation)))


def _by_tag(sections: Sections) -> dict[str, type[BaseModel]]:
    """Return the members of a union by the `type` that tells them apart."""
    fields = [(s.model_fields.get("type"), s) for s in sections]
    return {tag: s for f, s in fields if f is not None for tag in get_args(f.annotation)}


def all_knobs(
    model: type[BaseModel] = RunConfig, prefix: str = "", seen: set[type[BaseModel]] | None = None
) -> Iterator[str]:
    """Yield the path of every knob, lists of sections written as `sources[]`, members of a union
    as `grader<math>`; those are entered once, as graders are made of graders."""
    seen = set() if seen is None else seen
    for name, field in model.model_fields.items():
        sections = sections_of(field.annotation)
        if not sections:
            yield prefix + name
            continue
        tags = {s: tag for tag, s in _by_tag(sections).items()} if len(sections) > 1 else {}
        many = "" if field.annotation in sections else "[]"
        new = [s for s in sections if s not in seen]
        if not new:
            yield prefix + name
        seen.update(s for s in new if tags)
        for section in new:
            of = f"<{tags[section]}>" if tags else many
            yield from all_knobs(section, f"{prefix}{name}{of}.", seen)


def _hint(path: KeyPath, sections: Sections, given: JsonValue) -> str:
    if len(sections) != 1 or not isinstance(given, str):
        return ""
    if "use" in sections[0].model_fields:
        return f"Write it as `{path[-1]}: {{use: {given}}}`."
    return f"Keys here: {', '.join(sections[0].model_fields)}."


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
