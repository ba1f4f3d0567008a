"""Asserts taken apart without running them."""

import pytest

from rewards.code_assert import Expectation, Unsplit, constant, split


def one(text: str, entry_point: str = "") -> Expectation:
    (found,) = split(text, entry_point=entry_point)
    return found


@pytest.mark.parametrize(
    ("text", "function", "args", "expected"),
    [
        ("assert f(1) == 2", "f", (1,), 2),
        ("assert 2 == f(1)", "f", (1,), 2),
        ("assert f([1, -2], 'x') == {'a': (1.5, None)}", "f", ([1, -2], "x"), {"a": (1.5, None)}),
        ("assert f() is None", "f", (), None),
        ("assert f(3) is True", "f", (3,), True),
        ("assert f(3)", "f", (3,), True),
        ("assert not f(3)", "f", (3,), False),
        ("assert Solution().add(1, 2) == 3", "Solution.add", (1, 2), 3),
        ("assert f([0] * 3) == 2 ** 10 - 1", "f", ([0, 0, 0],), 1023),
        ("assert f(set()) == {1, 2}", "f", (set(),), {1, 2}),
        ("assert f('a') == 'b', 'message'", "f", ("a",), "b"),
        ("import math\nassert f(float('inf')) == 1", "f", (float("inf"),), 1),
    ],
)
def test_a_call_and_its_value(text: str, function: str, args: object, expected: object):
    found = one(text)
    assert (found.function, found.args, found.expected) == (function, args, expected)


def test_keywords_and_wrappers():
    found = one("assert round(sum(f(1, key=[2])), 2) == 0.5")
    assert found.kwargs == {"key": [2]}
    assert found.wrappers == (("sum", ()), ("round", (2,)))


def test_unequal_and_near():
    assert not one("assert f(1) != 2").equal
    assert one("assert f(1) == 0.5").tolerance is None
    for text, tolerance in (
        ("assert abs(f(1) - 0.5) < 1e-3", (0, 1e-3)),
        ("assert abs(0.5 - f(1)) <= 1e-3", (0, 1e-3)),
        ("assert math.isclose(f(1), 0.5)", (1e-9, 0)),
        ("assert math.isclose(f(1), 0.5, rel_tol=1e-3)", (1e-3, 0)),
        ("assert isclose(0.5, f(1), rel_tol=0, abs_tol=2)", (0, 2)),
    ):
        found = one(text)
        assert (found.expected, found.tolerance) == (0.5, tolerance)


def test_a_check_function_of_humaneval():
    text = (
        "METADATA = {'author': 'x'}\n\n\ndef check(candidate):\n"
        '    """Docs."""\n    assert candidate(1) == 2\n    assert candidate(2) == 4\n\ncheck(f)\n'
    )
    found = split(text, entry_point="double")
    assert [(e.function, e.args, e.expected) for e in found] == [
        ("double", (1,), 2),
        ("double", (2,), 4),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "x = f(1)\nassert x == 2",
        "assert f(1) == g(2)",
        "assert f(__import__('os').system('touch /tmp/x')) == 2",
        "for i in range(3): assert f(i) == i",
        "assert all(f(i) == i for i in range(3))",
        "assert f(1) in (1, 2)",
        "assert f(1) < 2",
        "assert f(x) == 1",
        "assert f(*[1]) == 1",
        "assert f(**{'a': 1}) == 1",
        "assert f(10 ** 10 ** 10) == 1",
        "assert f('a' * 10 ** 9) == 1",
        "assert len([1]) == 1",
        "assert a.b.c(1) == 1",
        "assert f(1) is 5",
        "print('no asserts')",
        "",
        "assert f(1) ==",
        "(" * 5000,
        "assert f(lambda: 1) == 1",
        "assert f(f'{1}') == 1",
        "assert f({[1]: 2}) == 1",
        "assert abs(f(1) - 2) < -1",
        "assert abs(f(1) - 2) < float('inf')",
        "assert isclose(f(1), 2, abs_tol=-1)",
        "assert isclose(f(1), 2, tolerance=1)",
        "assert isclose(f(1), 2, **{'abs_tol': 1})",
    ],
)
def test_what_does_not_split_is_refused(text: str):
    with pytest.raises(Unsplit):
        split(text)


def test_constants_are_bounded():
    import ast

    def value(text: str) -> object:
        return constant(ast.parse(text, mode="eval").body)

    assert value("[1, (2, {3: {4}})]") == [1, (2, {3: {4}})]
    for text in ("2 ** 100000", "[0] * 10 ** 7", "'%d' % 3", "...", "1 / 0", "float('nan') + 1"):
        with pytest.raises(Unsplit):
            value(text)
