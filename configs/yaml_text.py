"""YAML as recipes mean it: `1e-6` is a number, `off` is a word, and a key stands once.

PyYAML reads YAML 1.1, in which `wandb: off` is False and `lr: 1e-6` is text.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import yaml
from pydantic import JsonValue

from configs.errors import Problem

KeyPath: TypeAlias = tuple[str | int, ...]
"""Where a value lies: mapping keys and list indices from the top."""

_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_REPLACED = {"tag:yaml.org,2002:" + kind for kind in ("bool", "float", "int", "timestamp")}


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what YAML 1.1 or 1.2 would read as other than text."""


def _add_scalars(kind: Any) -> None:
    """Teach a loader or dumper which plain words are numbers and truth values."""
    tag = "tag:yaml.org,2002:"
    kind.add_implicit_resolver(f"{tag}bool", _BOOL, list("tTfF"))
    kind.add_implicit_resolver(f"{tag}int", _INT, list("-+0123456789"))
    kind.add_implicit_resolver(f"{tag}float", _FLOAT, list("-+0123456789."))


_add_scalars(_Loader)
_add_scalars(_Dumper)


@dataclass(slots=True, kw_only=True)
class Document:
    """A YAML file as plain data, with the line of each value."""

    name: str
    """File name, for messages."""
    data: JsonValue = None
    lines: dict[KeyPath, int] = field(default_factory=dict[KeyPath, int])
    """Line, from 1, at which each value begins; of keys for values of a mapping."""
    problems: list[Problem] = field(default_factory=list[Problem])

    def where(self, path: KeyPath, shown: str) -> str:
        """Return `shown (file:line)`, with the line of the nearest value that has one; the file
        and line alone where `shown` is empty."""
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path)
        at = f"{self.name}:{line}" if line else self.name
        return f"{shown} ({at})" if shown else at


def read_document(text: str, name: str) -> Document:
    """Parse one YAML document; what is wrong with it is in `problems`."""
    document = Document(name=name)
    loader: Any = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            document.data = _construct(loader, node, (), document, ())
    except yaml.YAMLError as error:
        document.problems.append(_syntax_problem(error, name))
    finally:
        loader.dispose()
    return document


def write_document(data: JsonValue) -> str:
    """Return block-style YAML that `read_document` reads back equal."""
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False
    )


def _construct(
    loader: Any, node: yaml.Node, path: KeyPath, document: Document, above: tuple[int, ...]
) -> JsonValue:
    """Build plain data from a node, noting lines and doubled keys."""
    document.lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in above:
        raise yaml.constructor.ConstructorError(
            None, None, "an alias that contains itself", node.start_mark
        )
    above = (*above, id(node))
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(loader, item, (*path, i), document, above)
            for i, item in enumerate(cast(list[yaml.Node], node.value))
        ]
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(loader, node, path, document, above)
    value: JsonValue = loader.construct_object(node)
    if isinstance(value, float) and not math.isfinite(value):
        document.problems.append(
            Problem(
                where=document.where(path, _shown(path)),
                what=f"is {value}, but every number must be finite",
            )
        )
    return value


def _construct_mapping(
    loader: Any,
    node: yaml.MappingNode,
    path: KeyPath,
    document: Document,
    above: tuple[int, ...],
) -> dict[str, JsonValue]:
    result: dict[str, JsonValue] = {}
    for key_node, value_node in cast(list[tuple[yaml.Node, yaml.Node]], node.value):
        merge = key_node.value == "<<"
        key = "<<" if merge else str(loader.construct_object(key_node))
        here = (*path, key)
        line = key_node.start_mark.line + 1
        if merge:
            document.problems.append(
                Problem(
                    where=f"{_shown(here)} ({document.name}:{line})",
                    what="a recipe is complete and inherits nothing, so it has no merge keys",
                    fix="Write the merged keys out.",
                )
            )
            continue
        if key in result:
            document.problems.append(
                Problem(
                    where=f"{_shown(here)} ({document.name}:{line})",
                    what=f"stands twice; first on line {document.lines[here]}",
                    fix="Remove one of the two.",
                )
            )
        document.lines[here] = line
        result[key] = _construct(loader, value_node, here, document, above)
    return result


def _shown(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def _syntax_problem(error: yaml.YAMLError, name: str) -> Problem:
    what, where = "is not YAML", name
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        said = ", ".join(s for s in (error.problem, error.context) if s)
        what = f"is not YAML: {said}"
        snippet = mark.get_snippet(indent=4, max_length=70) if mark else None
        if snippet:
            what += "\n" + snippet
    return Problem(where=where, what=what, fix="Check indentation, colons and quotes there.")
