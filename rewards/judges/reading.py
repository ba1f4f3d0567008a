"""A verdict out of what a judge wrote: one JSON object, or none."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import cast

from pydantic import JsonValue

from rewards.judges.request import Unreadable

Verdict = Mapping[str, JsonValue]
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
_MAX_CHARS = 200_000


def read_object(text: str, required: Sequence[str]) -> Verdict:
    """Return the JSON object that `text` is, or that stands in it alone with all `required` keys.

    A judge that quotes a verdict from the text under judgement and then gives its own has written
    two: neither is taken.

    Raises:
        Unreadable: there is none, or more than one that differ.
    """
    if len(text) > _MAX_CHARS:
        raise Unreadable(f"the judge wrote {len(text)} characters")
    whole = _loads(text.strip())
    if whole is not None:
        return _complete(whole, required, text)
    found = [o for o in _objects(text) if all(key in o for key in required)]
    if not found:
        raise Unreadable(f"no JSON object with {', '.join(required)} in {_excerpt(text)}")
    if any(o != found[0] for o in found):
        raise Unreadable(f"{len(found)} verdicts that differ in {_excerpt(text)}")
    return found[0]


def number(verdict: Verdict, key: str) -> float:
    """Return a finite number; true and false are none.

    Raises:
        Unreadable: it is something else.
    """
    value = verdict[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable(f"`{key}` is {_excerpt(json.dumps(value))}, not a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise Unreadable(f"`{key}` is not a finite number")
    return float(value)


def _complete(verdict: Verdict, required: Sequence[str], text: str) -> Verdict:
    missing = [key for key in required if key not in verdict]
    if missing:
        raise Unreadable(f"{', '.join(missing)} missing in {_excerpt(text)}")
    return verdict


def _objects(text: str) -> list[Verdict]:
    """Return the outermost JSON objects in a text, those of code blocks among them."""
    for block in _FENCED.findall(text):
        only = _loads(block.strip())
        if only is not None:
            text = text.replace(block, json.dumps(only))
    found: list[Verdict] = []
    at = text.find("{")
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant, strict=False)
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
            found.append(cast(Verdict, value))
        except (ValueError, RecursionError):
            end = at + 1
        at = text.find("{", end)
    return found


def _loads(text: str) -> Verdict | None:
    try:
        value: object = json.loads(
            text, object_pairs_hook=_once, parse_constant=_no_constant, strict=False
        )
    except (ValueError, RecursionError):
        return None
    return cast(Verdict, value) if isinstance(value, dict) else None


def _once(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands twice")
    return made


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 120 else text[:117] + "...")
