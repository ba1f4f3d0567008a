"""Values as canonical text: two values are the same, exactly typed, when their texts are equal.

The jail writes what the tested code returned; the parent writes what it expects, and compares
bytes. It neither parses nor hashes what came out of the jail, so nothing there can be attacked.
"""

import json
import math
from collections.abc import Iterable
from typing import Any, cast

MAX_DEPTH = 64
"""Deepest nesting of a value."""
MAX_NODES = 200_000
"""Most parts of a value, counted each time they are reached."""
MAX_DIGITS = 4000
"""Most decimal digits of an integer."""


class NotPlain(Exception):
    """The value is none that can be compared: a subclass, NaN, too deep, too large."""


def canonical(value: object, *, tuples_as_lists: bool = False) -> str:
    """Return the canonical text of a value made of Python's own plain types.

    Args:
        tuples_as_lists: write a tuple as the list of its members.

    Raises:
        NotPlain: it is, or holds, anything else.
    """
    return _Writer(tuples_as_lists).write(value, 0)


class _Writer:
    def __init__(self, tuples_as_lists: bool):
        self._left = MAX_NODES
        self._tuple = "[{}]" if tuples_as_lists else '{{"tuple":[{}]}}'

    def write(self, value: object, depth: int) -> str:
        self._left -= 1
        if depth > MAX_DEPTH:
            raise NotPlain(f"nested deeper than {MAX_DEPTH}")
        if self._left < 0:
            raise NotPlain(f"more than {MAX_NODES} parts")
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return json.dumps(value)
        if isinstance(value, int) and kind is int:
            if value.bit_length() > MAX_DIGITS * 3.3:
                raise NotPlain(f"an integer of more than {MAX_DIGITS} digits")
            return str(value)
        if isinstance(value, float) and kind is float:
            return _float(value)
        if isinstance(value, bytes) and kind is bytes:
            return '{"bytes":"' + value.hex() + '"}'
        if isinstance(value, complex) and kind is complex:
            return f'{{"complex":[{_float(value.real)},{_float(value.imag)}]}}'
        return self._container(value, depth + 1)

    def _container(self, value: object, depth: int) -> str:
        kind = type(value)
        if kind is list:
            return f"[{','.join(self._all(value, depth))}]"
        if kind is tuple:
            return self._tuple.format(",".join(self._all(value, depth)))
        if kind in (set, frozenset):
            parts = ",".join(sorted(self._all(value, depth)))
            return f'{{"{kind.__name__}":[{parts}]}}'
        if kind is dict:
            given = cast("dict[object, object]", value)
            pairs = sorted(
                f"[{self.write(k, depth)},{self.write(v, depth)}]" for k, v in given.items()
            )
            return f'{{"dict":[{",".join(pairs)}]}}'
        raise NotPlain(f"a {kind.__module__}.{kind.__qualname__}")

    def _all(self, values: object, depth: int) -> list[str]:
        return [self.write(v, depth) for v in cast("Iterable[object]", values)]


def _float(value: float) -> str:
    if math.isnan(value):
        raise NotPlain("NaN")
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value + 0.0)  # -0.0 + 0.0 is 0.0: they are equal


def read(text: str) -> object:
    """Return the value that `canonical` wrote. For texts of our own side alone."""
    return _read(json.loads(text))


def _read(data: object) -> object:
    if isinstance(data, list):
        return [_read(item) for item in cast("list[object]", data)]
    if not isinstance(data, dict):
        return data
    ((kind, inner),) = cast("dict[str, Any]", data).items()
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "complex":
        return complex(*inner)
    if kind == "dict":
        return {_read(k): _read(v) for k, v in inner}
    made = {"tuple": tuple, "set": set, "frozenset": frozenset}[kind]
    return made(_read(item) for item in inner)
