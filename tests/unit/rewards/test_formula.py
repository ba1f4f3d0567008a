"""Formulas mean what school mathematics says, and nothing else can be said in them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import ConfigError
from rewards.formula import compile_formula
from rewards.score import GradeFailed

NAMES = {"a": 3.0, "b": 0.25, "lambda": 2.0, "max": 7.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2*a^2", 18),
        ("-2^2", -4),
        ("(-2)^2", 4),
        ("2^3^2", 512),
        ("2^-1", 0.5),
        ("-a^2*2", -18),
        ("8/4/2", 1),
        ("1-2-3", -4),
        ("2+3*4", 14),
        ("+a - -b", 3.25),
        (".5e1 + 1.", 6),
        ("  a\n+\tb ", 3.25),
        ("min(a, b, 1)", 0.25),
        ("max(a)", 3),
        ("max(max, 1)", 7),
        ("lambda * 2", 4),
        ("abs(-a) + floor(2.7) + ceil(2.1)", 8),
        ("floor(-0.5)", -1),
        ("sqrt(9) + exp(0) + log(1)", 4),
        ("0.7*a + 0.3*b", 2.175),
    ],
)
def test_it_means_what_mathematics_says(text: str, value: float):
    assert compile_formula(text, NAMES)(NAMES) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a +",
        "(a",
        "a)",
        "a b",
        "2a",
        "2(3)",
        "a(3)",
        "(a)(3)",
        "a**2",
        "a//2",
        "a % 2",
        "a < b",
        "a if b else a",
        "a and b",
        "not a",
        "lambda: 1",
        "a, b",
        "()",
        "min()",
        "abs(a, b)",
        "min(*a)",
        "log(a, b=2)",
        "a.b",
        "a[0]",
        "[a]",
        "'a'",
        "0x10 y",
        "1_000",
        "a := 3",
        "a; b",
        "a # b",
        "__import__('os')",
        "eval(a)",
        "exp",
        "nope",
        "1e999",
        "а",  # a Cyrillic look-alike
        "a" * 5000,
        "(" * 300 + "a" + ")" * 300,
        "-" * 900 + "a",
        "a" + "+a" * 600,
    ],
)
def test_anything_else_is_refused(text: str):
    with pytest.raises(ConfigError) as caught:
        compile_formula(text, NAMES, where="here")
    assert caught.value.problems[0].where == "here"


@pytest.mark.parametrize(
    "text",
    [
        "1/0",
        "a/(a-a)",
        "0^-1",
        "(-8)^(1/3)",
        "10^400",
        "1e308*10-1e308*10",
        "exp(1000)",
        "log(0)",
        "log(-1)",
        "sqrt(-1)",
        "9^9^9^9",
        "1/(1e308*10)",
    ],
)
def test_what_is_no_number_fails_and_is_not_a_score(text: str):
    formula = compile_formula(text, NAMES)
    with pytest.raises(GradeFailed) as caught:
        formula(NAMES)
    assert caught.value.kind == "formula_parse_error"


def test_the_near_name_is_told():
    with pytest.raises(ConfigError, match="Did you mean `accuracy`"):
        compile_formula("accurcy", ["accuracy", "style"])


Tree = tuple[str, float | None]
"""A formula and its value, None where there is none."""


def _binary(sign: str, left: Tree, right: Tree) -> Tree:
    text = f"({left[0]}) {sign} ({right[0]})"
    if left[1] is None or right[1] is None:
        return text, None
    try:
        match sign:
            case "+":
                value = left[1] + right[1]
            case "-":
                value = left[1] - right[1]
            case "*":
                value = left[1] * right[1]
            case "/":
                value = left[1] / right[1]
            case _:
                value = math.pow(left[1], right[1])
    except (ValueError, ArithmeticError):
        return text, None
    return text, value if math.isfinite(value) else None


LEAF = st.one_of(
    st.sampled_from(sorted(NAMES.items())).map(lambda item: (item[0], item[1])),
    st.floats(0, 1e6).map(lambda x: (repr(x), x)),
)
TREES = st.recursive(
    LEAF,
    lambda below: st.one_of(
        st.builds(_binary, st.sampled_from("+-*/^"), below, below),
        below.map(lambda t: (f"-({t[0]})", None if t[1] is None else -t[1])),
        st.tuples(below, below).map(
            lambda p: (
                f"max({p[0][0]}, {p[1][0]})",
                None if p[0][1] is None or p[1][1] is None else max(p[0][1], p[1][1]),
            )
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(TREES)
def test_it_agrees_with_a_reference(tree: Tree):
    text, value = tree
    formula = compile_formula(text, NAMES)
    if value is None:
        with pytest.raises(GradeFailed):
            formula(NAMES)
    else:
        assert formula(NAMES) == pytest.approx(value, rel=1e-9, abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab12.()+-*/^, minsqrtlog\n\"'[]{}:=_", max_size=40))
def test_no_text_does_worse_than_be_refused(text: str):
    try:
        formula = compile_formula(text, NAMES)
    except ConfigError:
        return
    try:
        assert math.isfinite(formula(NAMES))
    except GradeFailed as failed:
        assert failed.kind == "formula_parse_error"
