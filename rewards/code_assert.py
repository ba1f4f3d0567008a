"""Asserts taken apart: which call, and which value it must give. Read by `ast`, never run.

The call goes into the sandbox, the value stays here. What does not split so is refused.
"""

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

_WRAPPERS = """
    sorted set list tuple frozenset dict len sum min max abs round str int float bool repr
"""
WRAPPERS = frozenset(_WRAPPERS.split())
"""Built-in functions that may stand around the call; they run with it, in the sandbox."""
_MAX_BITS, _MAX_LENGTH = 1 << 14, 1 << 20


class Unsplit(Exception):
    """The text is no assert that splits into a call and a value."""


class Tolerance(NamedTuple):
    """How far two numbers may be apart: by a share of the larger one, or by so much."""

    relative: float
    absolute: float


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """One call and what must come out."""

    function: str
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    expected: object
    wrappers: tuple[tuple[str, tuple[object, ...]], ...] = ()
    """Name and further arguments of the functions around the call, innermost first."""
    tolerance: Tolerance | None = None
    """Of a test that asks for a number near another one, of whatever type; empty asks for the very
    value."""
    equal: bool = True
    """False where the value must differ (`!=`)."""


def split(text: str, *, entry_point: str = "") -> list[Expectation]:
    """Return what a test's text asserts, in order.

    Args:
        entry_point: what `candidate` means in the function `check(candidate)`.

    Raises:
        Unsplit: some statement in it is none of ours; the message names it.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unsplit(f"not Python: {error}") from error
    found = list(_statements(tree.body, entry_point, {}))
    if not found:
        raise Unsplit("asserts nothing")
    return found


def _statements(
    body: Sequence[ast.stmt], entry_point: str, names: Mapping[str, str]
) -> Iterator[Expectation]:
    for node in body:
        if isinstance(node, ast.Assert):
            yield _assertion(node.test, names)
        elif isinstance(node, ast.FunctionDef) and node.name == "check" and entry_point:
            parameters = [a.arg for a in node.args.args] or ["candidate"]
            if len(parameters) > 1:
                raise Unsplit(f"line {node.lineno}: `check` takes more than the function")
            (parameter,) = parameters
            yield from _statements(node.body, entry_point, {**names, parameter: entry_point})
        elif not _says_nothing(node):
            raise Unsplit(f"line {node.lineno}: {ast.unparse(node)[:200]}")


def _says_nothing(node: ast.stmt) -> bool:
    """Whether a statement has no part in what is asserted: docstrings, imports, `check(f)`,
    METADATA."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Pass):
        return True
    if isinstance(node, ast.Assign):
        return all(isinstance(t, ast.Name) and t.id == "METADATA" for t in node.targets)
    if not isinstance(node, ast.Expr):
        return False
    value = node.value
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id == "check"
    return isinstance(value, ast.Constant)


def _assertion(test: ast.expr, names: Mapping[str, str]) -> Expectation:
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return _value(test.operand, False, names)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _comparison(test.left, test.ops[0], test.comparators[0], names)
    if isinstance(test, ast.Call) and ast.unparse(test.func) in ("math.isclose", "isclose"):
        return _isclose(test, names)
    return _value(test, True, names)


def _comparison(
    left: ast.expr, op: ast.cmpop, right: ast.expr, names: Mapping[str, str]
) -> Expectation:
    if isinstance(op, ast.Lt | ast.LtE):
        return _within(left, right, names)
    if not isinstance(op, ast.Eq | ast.Is | ast.NotEq):
        raise Unsplit(f"compares with {type(op).__name__}: {ast.unparse(left)[:100]}")
    if isinstance(op, ast.Is) and not (
        isinstance(right, ast.Constant) and (right.value is None or isinstance(right.value, bool))
    ):
        raise Unsplit("`is` with anything but None, True and False")
    equal = not isinstance(op, ast.NotEq)
    try:
        return replace(_value(left, constant(right), names), equal=equal)
    except Unsplit:
        return replace(_value(right, constant(left), names), equal=equal)


def _within(left: ast.expr, right: ast.expr, names: Mapping[str, str]) -> Expectation:
    """Split `abs(f(x) - 1.5) < 1e-6`."""
    match left:
        case ast.Call(func=ast.Name(id="abs"), args=[ast.BinOp(op=ast.Sub()) as difference]):
            tolerance = Tolerance(relative=0.0, absolute=_bound(right))
            try:
                found = _value(difference.left, _number(constant(difference.right)), names)
            except Unsplit:
                found = _value(difference.right, _number(constant(difference.left)), names)
            return replace(found, tolerance=tolerance)
        case _:
            raise Unsplit(f"`<` without abs(call - number): {ast.unparse(left)[:100]}")


def _isclose(test: ast.Call, names: Mapping[str, str]) -> Expectation:
    if len(test.args) != 2:
        raise Unsplit("isclose without two numbers")
    given = {_keyword(k): _bound(k.value) for k in test.keywords}
    if unknown := set(given) - {"rel_tol", "abs_tol"}:
        raise Unsplit(f"isclose with {', '.join(sorted(unknown))}")
    tolerance = Tolerance(given.get("rel_tol", 1e-9), given.get("abs_tol", 0.0))
    try:
        found = _value(test.args[0], _number(constant(test.args[1])), names)
    except Unsplit:
        found = _value(test.args[1], _number(constant(test.args[0])), names)
    return replace(found, tolerance=tolerance)


def _value(node: ast.expr, expected: object, names: Mapping[str, str]) -> Expectation:
    """Split a call, with pure functions around it or not."""
    if not isinstance(node, ast.Call):
        raise Unsplit(f"no call: {ast.unparse(node)[:100]}")
    function = ast.unparse(node.func)
    if function in WRAPPERS and node.args and isinstance(node.args[0], ast.Call):
        if node.keywords:
            raise Unsplit(f"{function} with keywords")
        inner = _value(node.args[0], expected, names)
        further = tuple(constant(a) for a in node.args[1:])
        return replace(inner, wrappers=(*inner.wrappers, (function, further)))
    if function in WRAPPERS or any(isinstance(a, ast.Starred) for a in node.args):
        raise Unsplit(f"calls {function[:100]}")
    return Expectation(
        function=names.get(function, _target(node.func)),
        args=tuple(constant(a) for a in node.args),
        kwargs={_keyword(k): constant(k.value) for k in node.keywords},
        expected=expected,
    )


def _keyword(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise Unsplit("**arguments")
    return keyword.arg


def _target(func: ast.expr) -> str:
    """Return `f`, or `Class.method` for `Class().method`."""
    match func:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Call(func=ast.Name(id=owner), args=[], keywords=[]), attr=a):
            return f"{owner}.{a}"
        case _:
            raise Unsplit(f"calls {ast.unparse(func)[:100]}")


def _bound(node: ast.expr) -> float:
    """Return how far apart two numbers may be."""
    value = _number(constant(node))
    if not 0 <= value < math.inf:
        raise Unsplit(f"{value:g} is no tolerance")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Unsplit(f"{value!r:.100} is not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise Unsplit(str(error)) from error


_BINARY: Mapping[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "truediv",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
}
_MAKERS: Mapping[str, Callable[..., object]] = {
    "set": set, "frozenset": frozenset, "list": list, "tuple": tuple, "dict": dict, "float": float,
}  # fmt: skip


def constant(node: ast.expr) -> object:
    """Return the value of an expression of constants.

    Raises:
        Unsplit: it is none, or too large.
    """
    match node:
        case ast.Constant(value=value):
            if value is Ellipsis:
                raise Unsplit("...")
            return value
        case ast.List(elts=parts):
            return [constant(p) for p in parts]
        case ast.Tuple(elts=parts):
            return tuple(constant(p) for p in parts)
        case ast.Set(elts=parts):
            return _made(set, [constant(p) for p in parts])
        case ast.Dict(keys=keys, values=values) if None not in keys:
            pairs = zip(cast("list[ast.expr]", keys), values, strict=True)
            return _made(dict, [(constant(k), constant(v)) for k, v in pairs])
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            value = constant(inner)
            if isinstance(value, int | float | complex):
                return -value
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return constant(inner)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _binary(op, constant(left), constant(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _MAKERS:
            return _made(_MAKERS[name], *(constant(a) for a in args))
        case _:
            pass
    raise Unsplit(f"no constant: {ast.unparse(node)[:100]}")


def _made(make: Callable[..., object], *values: object) -> object:
    try:
        return make(*values)
    except (TypeError, ValueError, OverflowError) as error:
        raise Unsplit(str(error)) from error


def _binary(op: ast.operator, left: object, right: object) -> object:
    """Compute with constants, none of them large."""
    if isinstance(op, ast.Mult):
        for one, other in ((left, right), (right, left)):
            if isinstance(one, str | bytes | list | tuple):
                times = other if isinstance(other, int) else 0
                if len(cast("Sequence[object]", one)) * times > _MAX_LENGTH:
                    raise Unsplit("a sequence too long")
    if isinstance(op, ast.Pow) and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * max(right, 1) > _MAX_BITS:
            raise Unsplit("an integer too large")
    elif isinstance(op, ast.Mod) and not isinstance(left, int | float):
        raise Unsplit("formatting")
    try:
        compute = cast("Callable[..., object]", getattr(operator, _BINARY[type(op)]))
        value = compute(left, right)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise Unsplit(str(error)) from error
    if isinstance(value, float) and math.isnan(value):
        raise Unsplit("NaN")
    return value
