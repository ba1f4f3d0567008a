"""The code_tests grader: what it extracts, how it compares, what it pays, what it refuses."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from configs.graders.code import CodeTestsGrader
from rewards import code_tests
from rewards.canary import CANARY_PASSED
from rewards.code_assert import Tolerance
from rewards.code_tests import (
    check_code_row,
    check_code_tests,
    extract_code,
    near,
    prepare_code_tests,
    same_output,
)
from rewards.sandbox import shared
from rewards.sandbox.inside.values import canonical
from rewards.score import GradeFailed, Score
from rewards.subject import Subject

DOUBLE = "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone."
HALF_RIGHT = "```python\ndef double(x):\n    return 2 * x if x < 5 else 0\n```"


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    for made in shared.made():
        made.close()


def grade(
    text: str, tests: JsonValue, /, item: dict[str, JsonValue] | None = None, **cfg: Any
) -> Score:
    made = CodeTestsGrader.model_validate({"type": "code_tests", **cfg})
    row = {"tests": tests, **(item or {})}
    return prepare_code_tests(made, "g")(Subject.of_text(row, text))


ASSERTS = ["assert double(1) == 2", "assert double(9) == 18"]


def test_shares_and_all_or_nothing():
    assert grade(DOUBLE, ASSERTS).value == 1.0
    half = grade(HALF_RIGHT, ASSERTS)
    assert (half.value, half.notes) == (0.5, {"tests": ["passed", "wrong"]})
    whole = grade(HALF_RIGHT, [*reversed(ASSERTS), ASSERTS[0]], score="all")
    assert (whole.value, whole.notes) == (0.0, {"tests": ["wrong", "not run", "not run"]})


SHAPES: dict[str, JsonValue] = {
    "asserts": ASSERTS,
    "asserts in one text": "\n".join(ASSERTS),
    "json text": '[{"args": [1], "expected": 2}, {"args": [9], "expected": 18}]',
    "calls": [{"function": "double", "args": [1], "expected": 2}, {"args": [9], "expected": 18}],
    "columns": {"fn_name": "double", "inputs": [[1], [9]], "outputs": [2, 18]},
    "check": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(9) == 18\n",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_tests(shape: str):
    row: dict[str, JsonValue] = {"entry_point": "double"}
    assert grade(DOUBLE, SHAPES[shape], row).notes == {"tests": ["passed", "passed"]}
    assert grade(HALF_RIGHT, SHAPES[shape], row).notes == {"tests": ["passed", "wrong"]}


def test_programs_by_stdin_and_stdout():
    code = "```py\na, b = map(int, input().split())\nprint(a + b)\n```"
    rows: JsonValue = {"inputs": ["1 2\n", "3 4"], "outputs": ["3", "8\n"]}
    assert grade(code, rows).notes == {"tests": ["passed", "wrong"]}
    assert grade(code, [{"input": "1 2", "output": "3 \n\n"}]).value == 1.0
    assert grade(code, [{"input": "1 2", "output": "3"}], stdout="exact").value == 0.0


def test_another_language_by_its_command():
    code = "```awk\n{ print $1 * $2 }\n```"
    tests: JsonValue = [{"input": "6 7\n", "output": "42"}, {"input": "2 2\n", "output": "5"}]
    graded = grade(code, tests, command="awk -f main.awk", filename="main.awk")
    assert graded.notes == {"tests": ["passed", "wrong"]}


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("while True: pass", "timeout"),
        ("raise ValueError", "crash"),
        ("import os; os._exit(0)", "crash"),
        ("return bytearray(1 << 30)", "memory"),
        ("print('x' * 10 ** 7)", "output"),
        ("return float('nan')", "wrong"),
        ("return 2.0", "wrong"),
    ],
)
def test_what_the_code_does_is_a_score_and_no_failure(body: str, verdict: str):
    text = f"```python\ndef double(x):\n    {body}\n```"
    graded = grade(text, ASSERTS[:1], cpu_s=0.3 if verdict == "timeout" else 5, memory_mb=96)
    assert (graded.value, graded.notes["tests"]) == (0.0, [verdict])


def test_tests_end_with_their_time():
    text = "```python\ndef double(x):\n    while True: pass\n```"
    graded = grade(text, ASSERTS * 20, cpu_s=0.3, timeout_s=1.0)
    assert graded.value == 0.0
    verdicts = graded.notes["tests"]
    assert isinstance(verdicts, list)
    assert verdicts[0] == "timeout" and verdicts[-1] == "not run" and len(verdicts) == 40


def test_no_hack_is_taken_for_right():
    path = Path(__file__).parents[2] / "sandbox" / "hacks.py"
    spec = importlib.util.spec_from_file_location("sandbox_hacks", path)
    assert spec is not None and spec.loader is not None
    hacks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hacks)
    assert len(hacks.HACKS) >= 26
    tests: JsonValue = ["assert double(21) == 42"]
    for text in (hacks.HONEST, f"```\n{hacks.HONEST}```"):
        assert grade(text, tests).value == 1.0
    paid = {n: s for n, c in hacks.HACKS.items() if (s := grade(c, tests, extract="whole")).value}
    assert paid == {}


def test_how_the_first_test_failed_is_noted():
    raises = grade("def double(x):\n    return 1 / 0", ASSERTS)
    assert "test 1: " in raises.notes["why"] and "ZeroDivisionError" in raises.notes["why"]
    shell = {"command": "sh main", "filename": "main"}
    silent = grade("echo 2 2>&1", [{"input": "", "output": "1"}], **shell)
    assert silent.notes == {"tests": ["wrong"]}
    told = grade("no_such_command", [{"input": "", "output": "1"}], **shell)
    assert "no_such_command" in told.notes["why"]
    assert len(grade("raise ValueError('x' * 9999)", ASSERTS).notes["why"]) <= 320


UNSPLIT = "for i in range(3):\n    assert double(i) == 2 * i"


@pytest.mark.parametrize(
    ("tests", "settings", "passes"),
    [
        (ASSERTS, {}, False),
        ([{"function": "Solution.double", "args": [1], "expected": 2}], {}, False),
        (["assert double(1) != 3"], {}, False),
        ([{"input": "1", "output": "2"}], {}, False),
        ([{"input": "1", "output": "2"}, {"input": "0", "output": ""}], {}, False),
        ([{"input": "1", "output": ""}], {}, True),
        ([{"input": "1", "output": ""}], {"command": "sh main", "filename": "main"}, True),
        ([{"input": "1", "output": "1"}], {"command": "cat", "filename": "main"}, True),
        ([UNSPLIT], {"run_unsplit": True, "function": "double"}, True),
    ],
)
def test_a_known_wrong_solution_passes_only_tests_that_test_nothing(
    tests: JsonValue, settings: dict[str, Any], passes: bool
):
    plain = grade(DOUBLE, tests, canary=0, **settings)
    found = grade(DOUBLE, tests, canary=1, **settings)
    assert found.value == plain.value
    assert found.notes.get(CANARY_PASSED) == (1 if passes else None)
    assert CANARY_PASSED not in plain.notes


def test_a_share_of_answers_is_graded_beside_a_known_wrong_solution():
    empty: JsonValue = [{"input": "", "output": ""}]
    noted = [grade(f"pass  # {i}", empty, canary=0.3).notes for i in range(40)]
    assert 4 <= sum(CANARY_PASSED in notes for notes in noted) <= 22
    assert noted == [grade(f"pass  # {i}", empty, canary=0.3).notes for i in range(40)]


def test_a_sandbox_that_fails_beside_an_answer_costs_it_nothing(monkeypatch: pytest.MonkeyPatch):
    run = code_tests._run
    ran: list[int] = []

    def second_fails(*given: Any) -> Any:
        ran.append(1)
        if len(ran) == 2:
            raise GradeFailed("python_grader_server_error", "the sandbox failed: no memory")
        return run(*given)

    monkeypatch.setattr(code_tests, "_run", second_fails)
    found = grade(DOUBLE, ASSERTS, canary=1)
    assert (len(ran), found.value) == (2, 1.0)
    assert "no memory" in str(found.notes["canary_failed"])


def test_tampering_is_noted():
    text = "```python\nimport gc\ndef double(x):\n    gc.get_objects()\n    return 2 * x\n```"
    assert grade(text, ASSERTS[:1]).notes["tampering"] == ["gc.get_objects"]


@pytest.mark.parametrize(
    ("tests", "what"),
    [
        (None, "no tests"),
        ([], "no tests"),
        ([3], "must be an object"),
        ([{"input": "1"}], "must have"),
        ([{"input": ["1"], "output": "2"}], "the input of a test"),
        ([{"input": "1", "output": None}], "the output of a test"),
        ([{"args": 1, "expected": 2, "function": "f"}], "list `args`"),
        ([{"args": [1], "expected": 2}], "a function to call"),
        ({"inputs": [1], "outputs": []}, "1 inputs and 0 outputs"),
        ({"inputs": 1}, "lists"),
        (["for i in range(3): assert double(i) == 2 * i"], "does not split"),
    ],
)
def test_tests_that_are_none_are_invalid_never_zero(tests: JsonValue, what: str):
    with pytest.raises(GradeFailed, match=what) as failed:
        grade(DOUBLE, tests)
    assert failed.value.kind == "invalid_variable_error"
    cfg = CodeTestsGrader(type="code_tests")
    (problem,) = check_code_row(cfg, {"tests": tests}, "rows:1")
    assert problem.where == "rows:1"
    assert check_code_row(cfg, {"tests": ASSERTS}, "rows:1") == []


def test_what_does_not_split_runs_where_the_recipe_says_so():
    tests: JsonValue = ["for i in range(3):\n    assert double(i) == 2 * i"]
    assert grade(DOUBLE, tests, run_unsplit=True).value == 1.0
    wrong = "```\ndef double(x):\n    return 3 * x\n```"
    assert grade(wrong, tests, run_unsplit=True).value == 0.0


def test_floats_tuples_and_inequality():
    third = "```\ndef third(x):\n    return (x / 3, [x])\n```"
    tests: JsonValue = [{"function": "third", "args": [1], "expected": [0.3333, [1]]}]
    assert grade(third, tests).value == 0.0
    assert grade(third, tests, tuples_as_lists=True).value == 0.0
    assert grade(third, tests, tuples_as_lists=True, tolerance=1e-3).value == 1.0
    assert grade(DOUBLE, ["assert double(1) != 3", "assert double(1) != 2"]).value == 0.5
    assert grade(DOUBLE, ["assert abs(double(0.1) - 0.2) < 1e-6"]).value == 1.0


@pytest.mark.parametrize(
    ("value", "test", "right"),
    [
        ("0.0", "abs(f() - 100) < 1", False),
        ("99.5", "abs(f() - 100) < 1", True),
        ("1.5e6", "abs(f() - 1e6) < 0.5", False),
        ("100.3", "math.isclose(f(), 200.0, abs_tol=0.5)", False),
        ("199.6", "math.isclose(f(), 200.0, abs_tol=0.5)", True),
        ("199.6", "math.isclose(f(), 200.0)", False),
        ("101.0", "math.isclose(f(), 100.0, rel_tol=0.02)", True),
        ("0.01", "math.isclose(f(), 0.0, rel_tol=0.02)", False),
        ("2", "abs(f() - 2.0) < 1e-6", True),
        ("2", "math.isclose(f(), 2.0)", True),
        ("2", "f() == 2.0", False),
        ("True", "abs(f() - 1) < 1e-6", False),
        ("10 ** 2000", "abs(f() - 1.5) < 1", False),
        ("'2.0'", "abs(f() - 2) < 1", False),
        ("float('inf')", "abs(f() - 2) < 1", False),
    ],
)
def test_a_tolerance_is_the_one_that_the_test_says(value: str, test: str, right: bool):
    code = f"def f():\n    return {value}\n"
    assert grade(code, [f"import math\nassert {test}"], extract="whole").value == right


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na\n```\nthen\n```\nb\n```", "b\n"),
        ("no fence", "no fence"),
        ("~~~\nx\n~~~", "x\n"),
        ("````md\n```\ninner\n```\n````", "```\ninner\n```\n"),
        ("```python\nnot closed", "```python\nnot closed"),
        ("```c++\nint x;\n```", "int x;\n"),
    ],
)
def test_extraction(text: str, code: str):
    assert extract_code(text) == code


def test_output_by_words_and_lines():
    assert same_output("1 2\n3", b"1  2 3\n", how="tokens")
    assert same_output("0.5", b"0.50001", how="tokens", tolerance=1e-3)
    assert not same_output("0.5", b"nan", how="tokens", tolerance=1e-3)
    assert same_output("a\nb", b"a \nb\n\n", how="lines")
    assert not same_output("a\nb", b"a\n\nb", how="lines")
    assert not same_output("", b"\xff", how="lines")


def test_near_survives_hostile_texts():
    expected = canonical([0.5, {"a": (1, 2.0)}])
    bounds = Tolerance(relative=1e-3, absolute=1e-3)
    assert near(expected, canonical([0.5001, {"a": (1, 2.0)}]).encode(), bounds)
    for hostile in (b"[" * 10**6, b"1" * 10**5, b"\xff", b"[NaN]", b"{}", b"[0.5]", b""):
        assert not near(expected, hostile, bounds)
        assert not near("0.5", hostile, bounds, typed=False)


def test_a_command_calls_no_functions():
    cfg = CodeTestsGrader(type="code_tests", command="cat", function="f", filename="a/b")
    assert [p.where for p in check_code_tests(cfg, "g")] == ["g", "g.filename"]


def test_the_recipe_of_code_pays_its_own_solutions_and_nothing_else():
    recipes = Path(__file__).parents[3] / "configs" / "recipes"
    lines = (recipes / "data" / "functions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 20
    for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
        assert grade(f"```python\n{row['answer']}```", row["tests"]).value == 1.0, row
        assert grade(f"```python\n{other['answer']}```", row["tests"]).value < 1.0, row
        assert grade("I cannot.", row["tests"]).value == 0.0


@pytest.mark.parametrize(
    "test",
    [
        "def check(f, g):\n    assert f(1) == 2",
        f"assert abs(double(1) - 1{'0' * 400}) < 1",
        "assert double(1) == float('nan')",
        f"assert double(1) == {'[' * 80}{']' * 80}",
        "assert double([0] * 300000) == 1",
        {"args": [float("nan")], "expected": 1, "function": "f"},
        {"args": [1], "expected": float("nan"), "function": "f"},
    ],
)
def test_a_row_whose_test_cannot_be_run_is_a_problem_of_the_row(test: JsonValue):
    cfg = CodeTestsGrader(type="code_tests")
    assert len(check_code_row(cfg, {"tests": [test], "entry_point": "double"}, "w")) == 1
