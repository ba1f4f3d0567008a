"""Secrets that lie in a recipe, where run directories, trackers and manifests would copy them."""

import re
from collections.abc import Iterator, Mapping
from typing import cast

from pydantic import BaseModel

from configs.errors import Problem
from configs.redact import SHAPES, known_secrets
from configs.schema import dump

_LEAST = 12
"""A shorter value of a variable may be a word that the recipe uses for itself."""
_FIELD = re.compile(
    r"(?:^|_)(?:api_?key|access_?key|secret|password|passwd|auth_?token|bearer)$", re.I
)
"""Names of plugs' arguments whose values would be secrets."""


def check_secrets(cfg: BaseModel) -> Iterator[Problem]:
    """Yield each text of the recipe that is a secret, or looks like one; never the text itself."""
    known = _known()
    for where, key, text in _texts(dump(cfg), ""):
        if found := _kind(key, text, known):
            yield Problem(
                where=where,
                what=f"holds what is {found}; a recipe is copied into run directories, trackers "
                "and manifests",
                fix="Take it out, revoke it if the file was shared, and name an environment "
                "variable instead (`api_key_env` of a judge; `os.environ` in code of your own).",
            )


def is_secret(text: str) -> bool:
    """Return whether a text holds a secret that is known here, or what looks like one."""
    return _kind("", text, _known()) is not None


def _known() -> dict[str, str]:
    return {value: name for value, name in known_secrets().items() if len(value) >= _LEAST}


def _kind(key: str, text: str, known: Mapping[str, str]) -> str | None:
    for value, name in known.items():
        if value in text:
            return f"the value of {name}"
    for words, shape in SHAPES.items():
        if shape.search(text):
            return f"{words}, by its looks"
    if _FIELD.search(key) and len(text) >= _LEAST and not text.isupper() and " " not in text:
        return "a secret, by the name of its field"
    return None


def _texts(value: object, where: str, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield field path, last key and text of everything written in the recipe; items of lists by
    name."""
    if isinstance(value, str):
        yield where, key, value
    elif isinstance(value, Mapping):
        for name, below in cast(Mapping[str, object], value).items():
            shown = "(key)" if any(s.search(name) for s in SHAPES.values()) else name
            at = f"{where}.{shown}" if where else shown
            yield at, "", name
            yield from _texts(below, at, name)
    elif isinstance(value, list | tuple):
        for i, below in enumerate(cast("list[object]", value)):
            own = cast("dict[str, object]", below).get("name") if isinstance(below, dict) else None
            name = own if isinstance(own, str) else str(i)
            yield from _texts(cast(object, below), f"{where}.{name}", key)
