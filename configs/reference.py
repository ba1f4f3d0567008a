"""The recipe reference as Markdown, made from the schema: `python -m configs.reference`."""

import sys
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from configs.base import Config
from configs.schema import RunConfig
from configs.sft import RewardModelRecipe, SftConfig

_HEAD = """# Recipe reference

Every knob of a recipe, its type, default and meaning. Made from the schema by
`python -m configs.reference > docs/recipe-reference.md`; a test keeps it true.

Override any of them on the command line: `--set trainer.optimizer.lr=1e-5`,
`--set sources.NAME.weight=2`. A run's sections begin with RunConfig, those of `braid sft` with
SftConfig, of `braid reward-model` with RewardModelRecipe, which share the others.
"""


def _sections(model: type[BaseModel], seen: dict[type[BaseModel], None]) -> None:
    """Collect `model` and the sections below it, in order of appearance."""
    if model in seen:
        return
    seen[model] = None
    for field in model.model_fields.values():
        for section in _models(field.annotation):
            _sections(section, seen)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _type(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if len(members := [p for p in parts if isinstance(p, type) and issubclass(p, Config)]) > 3:
        kind = f"{members[0].__bases__[0].__name__} by type"
        return kind + (" or empty" if NoneType in parts else "")
    if origin in (Union, UnionType):
        return " or ".join(_type(p) for p in parts)
    if origin is Literal:
        return " or ".join(repr(p) for p in parts)
    if parts:
        inside = ", ".join("..." if p is Ellipsis else _type(p) for p in parts)
        return f"{annotation.__origin__.__name__}[{inside}]"
    return "empty" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "*required*"
    if isinstance(field.default, BaseModel):
        changed = field.default.model_dump(mode="json", exclude_unset=True)
        return f"`{changed}`" if changed else "see below"
    return f"`{field.default!r}`"


def render() -> str:
    """Return the whole page."""
    seen: dict[type[BaseModel], None] = {}
    _sections(RunConfig, seen)
    _sections(SftConfig, seen)
    _sections(RewardModelRecipe, seen)
    lines = [_HEAD]
    for model in seen:
        lines += [f"## {model.__name__}", "", " ".join((model.__doc__ or "").split()), ""]
        lines += ["| Field | Type | Default | Meaning |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            meaning = " ".join((field.description or "").split()).replace("|", "\\|")
            row = (f"`{name}`", f"`{_type(field.annotation)}`", _default(field), meaning)
            lines.append("| " + " | ".join(row) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render())
