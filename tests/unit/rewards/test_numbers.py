"""Written numbers are read exactly, and nothing else is taken for one."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.math_answers import boxed
from rewards.numbers import equal_numbers, read_number

RATIONALS = st.fractions(-(10**9), 10**9, max_denominator=10**6)


def ways(x: Fraction) -> list[str]:
    """Return ways of writing a number."""
    sign, a, b = "-" if x < 0 else "", abs(x.numerator), x.denominator
    found = [f"{sign}\\frac{{{a}}}{{{b}}}", f"{sign}{a}/{b}", f"${sign}\\dfrac{{{a}}}{{{b}}}$"]
    found.append(f"x = {sign}{a}/{b}\\text{{ apples}}")
    if b == 1:
        found += [f"{sign}{a}", f"{sign}{a:,}", f"{sign}{a}.0", f"{sign}\\${a}", f"({sign}{a})"]
    if b > 1 and a > b:
        found.append(f"{sign}{a // b}\\frac{{{a % b}}}{{{b}}}")
        found.append(f"{sign}{a // b} {a % b}/{b}")
    return found


@settings(max_examples=200, deadline=None)
@given(RATIONALS)
def test_all_ways_of_writing_a_number_are_read_as_it(x: Fraction):
    for text in ways(x):
        read = read_number(text)
        assert read is not None and read.value == x, text
        percent = read_number(text.removesuffix("$").removesuffix("\\text{ apples}") + "\\%")
        if not text.startswith(("$", "(")) and "apples" not in text:
            assert percent is not None and percent.value == x / 100


@settings(max_examples=200, deadline=None)
@given(RATIONALS, RATIONALS)
def test_equality_is_symmetric_and_exact_without_a_point(x: Fraction, y: Fraction):
    a, b = read_number(ways(x)[0]), read_number(ways(y)[1])
    assert a is not None and b is not None
    assert equal_numbers(a, b, decimals=6, either=True) == (x == y)
    assert equal_numbers(b, a, decimals=6, either=True) == (x == y)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789.,-+/\\{}()$% frac^xe", max_size=24))
def test_no_text_breaks_the_reader(text: str):
    read = read_number(text)
    assert read is None or isinstance(read.value, Fraction)


NOT_ONE = r"""x|1, 2|1 2|1;2|3 or 4|1-2|1+2|2^3|3!|5x|5pi|1/0|--3|1..2|1/2/3|1:2|3\pm1|\sqrt{9}|
1e999|0x10|$3 5|3 apples and 4"""


@pytest.mark.parametrize("text", ["", *NOT_ONE.replace("\n", "").split("|")])
def test_what_is_not_one_number_is_none(text: str):
    assert read_number(text) is None


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="\\boxed{} 3", max_size=40))
def test_boxes_are_found_or_not_and_nothing_breaks(text: str):
    assert all(isinstance(inside, str) for inside in boxed(text))
    assert boxed(text + "\\boxed{7}")[-1:] == ["7"] or "\\boxed{" in text or "\\fbox{" in text
