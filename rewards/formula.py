"""Formulas over scores: identifiers, numbers, parentheses, `+ - * / ^` and a few functions.

The grammar is that of `calculate_output` of RFT graders: `^` is the power, binds tighter than a
sign before it (`-2^2` is -4) and to the right. Python's parser orders the text after every name
and number was replaced by one of ours, so nothing of Python besides these operators can be said.
"""

import ast
import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from configs.errors import ConfigError, Problem
from rewards.score import FailureKind, GradeFailed

Formula = Callable[[Mapping[str, float]], float]
"""Score of named scores; raises GradeFailed where the result is no finite real number."""

MAX_CHARS, MAX_TOKENS, MAX_DEPTH = 4000, 1000, 200
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|"
    r"(?P<sign>[-+*/^(),]))",
    re.ASCII,
)
_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], object]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
_SIGNS: Mapping[type[ast.unaryop], Callable[[float], float]] = {
    ast.USub: lambda a: -a,
    ast.UAdd: lambda a: a,
}
_ONE: Mapping[str, Callable[[float], float]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_MANY: Mapping[str, Callable[[Sequence[float]], float]] = {"min": min, "max": max}
FUNCTIONS = (*_MANY, *_ONE)

_Step = Callable[[Mapping[str, float], list[float]], object]
"""One operation on the stack of a formula that is being computed."""


class _BadFormula(Exception):
    def __init__(self, what: str, fix: str = ""):
        self.what, self.fix = what, fix
        super().__init__(what)


def compile_formula(text: str, names: Collection[str], *, where: str = "formula") -> Formula:
    """Return the formula as a function of scores by name.

    Args:
        names: identifiers that it may use.
        where: field path for the error message.

    Raises:
        ConfigError: it is not a formula, is too long, or uses a name that there is not.
    """
    try:
        steps = _compile(text, names)
    except _BadFormula as error:
        problem = Problem(where=where, what=f"{text[:200]!r} {error.what}", fix=error.fix)
        raise ConfigError(problem) from None

    def compute(scores: Mapping[str, float]) -> float:
        stack: list[float] = []
        try:
            for step in steps:
                stack.append(_real(step(scores, stack)))
        except (ArithmeticError, ValueError) as error:  # 1/0, log(0), exp(1000)
            shown = {name: scores[name] for name in names if name in scores}
            why = f"{text[:200]!r} of {shown}: {error}"
            raise GradeFailed(FailureKind.FORMULA, why) from None
        return stack[0]

    return compute


def is_identifier(name: str) -> bool:
    """Whether a formula can name it."""
    return re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is not None


def _real(value: object) -> float:
    """Return a finite real result, or raise ArithmeticError."""
    if isinstance(value, complex):
        raise ArithmeticError("a root of a negative number")
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ArithmeticError("the result is beyond all numbers")
    return number


def _compile(text: str, names: Collection[str]) -> list[_Step]:
    if len(text) > MAX_CHARS:
        raise _BadFormula(f"has {len(text)} characters; at most {MAX_CHARS} are allowed")
    stands_for: dict[str, float | str] = {}
    source = " ".join(_tokens(text, stands_for))
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else "it is nested too deep"
        raise _BadFormula(f"is not a formula: {why}") from None
    steps: list[_Step] = []
    _walk(tree, steps, stands_for, names, 0)
    return steps


def _tokens(text: str, stands_for: dict[str, float | str]) -> list[str]:
    """Split the text, with an identifier of ours for each number and name."""
    tokens: list[str] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            rest = text[at:].lstrip()
            fix = "It has names, numbers, parentheses, + - * / ^ and functions."
            raise _BadFormula(f"is not a formula: it has {rest[0]!r}", fix)
        at = match.end()
        if match["sign"]:
            tokens.append("**" if match["sign"] == "^" else match["sign"])
            continue
        tokens.append(f"_{len(stands_for)}")
        stands_for[tokens[-1]] = match["name"] or float(match["number"])
    if not tokens:
        raise _BadFormula("is empty")
    if len(tokens) > MAX_TOKENS:
        raise _BadFormula(f"has {len(tokens)} terms and signs; at most {MAX_TOKENS} are allowed")
    return tokens


def _walk(
    node: ast.expr,
    steps: list[_Step],
    stands_for: Mapping[str, float | str],
    names: Collection[str],
    depth: int,
) -> None:
    """Append the steps that compute a node, its operands before it."""
    if depth > MAX_DEPTH:
        raise _BadFormula(f"is nested deeper than {MAX_DEPTH}")
    operands = _operands(node)
    for operand in operands:
        _walk(operand, steps, stands_for, names, depth + 1)
    match node:
        case ast.Name(id=ours):
            steps.append(_leaf(stands_for[ours], names))
        case ast.UnaryOp(op=op) if type(op) in _SIGNS:
            sign = _SIGNS[type(op)]
            steps.append(lambda _, stack: sign(stack.pop()))
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            combine = _OPERATORS[type(op)]
            steps.append(lambda _, stack: _combine(combine, stack))
        case ast.Call(func=ast.Name(id=ours), args=args, keywords=[]):
            steps.append(_function(stands_for[ours], len(args)))
        case _:
            raise _BadFormula("is not a formula: it is not one value")


def _operands(node: ast.expr) -> list[ast.expr]:
    match node:
        case ast.UnaryOp(operand=operand):
            return [operand]
        case ast.BinOp(left=left, right=right):
            return [left, right]
        case ast.Call(args=args):
            return args
        case _:
            return []


def _combine(combine: Callable[[float, float], object], stack: list[float]) -> object:
    right, left = stack.pop(), stack.pop()
    return combine(left, right)


def _leaf(meant: float | str, names: Collection[str]) -> _Step:
    if not isinstance(meant, str):
        if not math.isfinite(meant):
            raise _BadFormula("has a number beyond all numbers")
        return lambda scores, stack: meant
    if meant not in names:
        near = difflib.get_close_matches(meant, list(names), n=1, cutoff=0.5)
        there = f"Names are: {', '.join(names) or 'none'}."
        fix = f"Did you mean `{near[0]}`?" if near else there
        if meant in FUNCTIONS:
            fix = f"`{meant}` is a function: write {meant}(...)."
        raise _BadFormula(f"uses `{meant}`, which there is not", fix)
    return lambda scores, stack: scores[meant]


def _function(meant: float | str, arguments: int) -> _Step:
    if isinstance(meant, str) and meant in _MANY and arguments >= 1:
        many = _MANY[meant]
        return lambda _, stack: many([stack.pop() for _ in range(arguments)])
    if isinstance(meant, str) and meant in _ONE:
        if arguments != 1:
            raise _BadFormula(f"gives `{meant}` {arguments} values; it takes 1")
        one = _ONE[meant]
        return lambda _, stack: one(stack.pop())
    if isinstance(meant, str) and meant in _MANY:
        raise _BadFormula(f"gives `{meant}` no values")
    raise _BadFormula(
        f"calls `{meant}`, which is no function", f"Functions are: {', '.join(FUNCTIONS)}."
    )
