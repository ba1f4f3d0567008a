"""Values as canonical text: two values are the same, exactly typed, when their texts are equal.

The jail writes what the tested code returned; the parent writes what it expects, and compares
bytes. It neither parses nor hashes what came out of the jail, so nothing there can be attacked.
"""

import json
import math

MAX_DEPTH = 64
"""Deepest nesting of a value."""
MAX_NODES = 200_000
"""Most parts of a value, counted each time they are reached."""
MAX_DIGITS = 4000
"""Most decimal digits of an integer."""


class NotPlain(Exception):
    """The value is none that can be compared: a subclass, NaN, too deep, too large."""


def canonical(value: object) -> str:
    """Return the canonical text of a value made of Python's own plain types.

    Raises:
        NotPlain: it is, or holds, anything else.
    """
    return _write(value, 0, [MAX_NODES])


def _write(value: object, depth: int, left: list[int]) -> str:
    left[0] -= 1
    if depth > MAX_DEPTH:
        raise NotPlain(f"nested deeper than {MAX_DEPTH}")
    if left[0] < 0:
        raise NotPlain(f"more than {MAX_NODES} parts")
    kind = type(value)
    if value is None or kind is bool:
        return json.dumps(value)
    if kind is int:
        assert isinstance(value, int)
        if value.bit_length() > MAX_DIGITS * 3.3:
            raise NotPlain(f"an integer of more than {MAX_DIGITS} digits")
        return str(value)
    if kind is float:
        assert isinstance(value, float)
        if math.isnan(value):
            raise NotPlain("NaN")
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return repr(value + 0.0)  # -0.0 + 0.0 is 0.0: they are equal
    if kind is str:
        return json.dumps(value)
    if isinstance(value, bytes) and kind is bytes:
        return '{"bytes":"' + value.hex() + '"}'
    if isinstance(value, complex) and kind is complex:
        parts = _write(value.real, depth + 1, left), _write(value.imag, depth + 1, left)
        return '{"complex":[' + ",".join(parts) + "]}"
    return _write_container(value, depth, left)


def _write_container(value: object, depth: int, left: list[int]) -> str:
    kind = type(value)
    if isinstance(value, list) and kind is list:
        return "[" + ",".join(_write(v, depth + 1, left) for v in value) + "]"
    if isinstance(value, tuple) and kind is tuple:
        return '{"tuple":[' + ",".join(_write(v, depth + 1, left) for v in value) + "]}"
    if isinstance(value, set | frozenset) and kind in (set, frozenset):
        parts = sorted(_write(v, depth + 1, left) for v in value)
        return '{"' + kind.__name__ + '":[' + ",".join(parts) + "]}"
    if isinstance(value, dict) and kind is dict:
        pairs = sorted(
            (_write(k, depth + 1, left), _write(v, depth + 1, left)) for k, v in value.items()
        )
        return '{"dict":[' + ",".join(f"[{k},{v}]" for k, v in pairs) + "]}"
    raise NotPlain(f"a {kind.__module__}.{kind.__qualname__}")


def read(text: str) -> object:
    """Return the value that `canonical` wrote. For texts of our own side alone."""
    return _read(json.loads(text))


def _read(data: object) -> object:
    if isinstance(data, list):
        return [_read(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, inner),) = data.items()
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "complex":
        return complex(*inner)
    if kind == "dict":
        return {_read(k): _read(v) for k, v in inner}
    made = {"tuple": tuple, "set": set, "frozenset": frozenset}[kind]
    return made(_read(item) for item in inner)
