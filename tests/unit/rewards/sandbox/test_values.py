"""Canonical texts: equal exactly where values are equal and of the same types throughout."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.sandbox.inside.values import NotPlain, canonical, read

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans(), inner, max_size=4)
        | st.sets(st.integers() | st.text(), max_size=4)
        | st.frozensets(st.integers() | st.text(), max_size=4)
    ),
    max_leaves=12,
)


def typed(value: object) -> object:
    """Return the value with its type beside every part."""
    if isinstance(value, list | tuple):
        return type(value), [typed(v) for v in value]
    if isinstance(value, set | frozenset):
        return type(value), {(type(v), v) for v in value}
    if isinstance(value, dict):
        return dict, {(type(k), k): typed(v) for k, v in value.items()}
    return type(value), value


@given(plain, plain)
def test_equal_texts_are_equal_values(a: object, b: object):
    assert (canonical(a) == canonical(b)) == (typed(a) == typed(b))


@given(plain)
def test_what_is_written_is_read_back(value: object):
    assert typed(read(canonical(value))) == typed(value)


@given(plain)
def test_order_does_not_matter(value: object):
    again = pickle.loads(pickle.dumps(value))
    if isinstance(again, dict):
        again = dict(reversed(list(again.items())))
    assert canonical(again) == canonical(value)


@pytest.mark.parametrize(
    ("a", "b"),
    [(1, True), (1, 1.0), ([1], (1,)), ({1}, frozenset({1})), ("1", 1), (0, False), (None, False)],
)
def test_what_python_calls_equal_or_alike_differs(a: object, b: object):
    assert canonical(a) != canonical(b)


def test_minus_zero_is_zero():
    assert canonical(-0.0) == canonical(0.0) != canonical(0)


def test_a_tuple_may_pass_for_a_list():
    assert canonical((1, [(2,)]), tuples_as_lists=True) == canonical([1, [[2]]])


class _Int(int):
    pass


def _deep(levels: int) -> list[object]:
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return value


def _wide() -> list[object]:
    value: list[object] = [0]
    for _ in range(30):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value",
    [math.nan, [math.nan], _Int(1), object(), _deep(200), _wide(), 1 << 10**6, range(3), iter([])],
    ids=["nan", "nan inside", "subclass", "object", "deep", "wide", "huge", "range", "iterator"],
)
def test_what_is_not_plain_is_refused(value: object):
    with pytest.raises(NotPlain):
        canonical(value)
