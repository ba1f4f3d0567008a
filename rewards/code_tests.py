"""The `code_tests` grader: the model's code on the row's tests, one fresh process a test.

The code gets a test's input and nothing else; what it must give stays here and is compared here.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard, cast

from pydantic import JsonValue

from configs.errors import Problem
from configs.graders.code import CodeTestsGrader
from rewards.canary import CANARY_PASSED, wrong_solution
from rewards.code_assert import Expectation, Tolerance, Unsplit, split
from rewards.monitors.traits import in_slice
from rewards.sandbox.inside.values import NotPlain, canonical
from rewards.sandbox.jail import Sandbox
from rewards.sandbox.result import MB, Call, Command, Job, Limits, SandboxResult, Script, Verdict
from rewards.sandbox.shared import limits as shared_limits
from rewards.sandbox.shared import sandbox
from rewards.score import FailureKind, GradeFailed, Score
from rewards.subject import Subject

_BLOCK = re.compile(r"^(```+|~~~+)[^\n`]*\n(.*?)^\1[ \t]*$", re.DOTALL | re.MULTILINE)
_PROCESSES_OF_COMMANDS = 32
_SHOWN = 300
_BUDGET = 0.85
"""Share of the grading's time that tests may use; the rest is ours."""


@dataclass(frozen=True, kw_only=True)
class Test:
    """One test: what runs, and what tells whether it passed."""

    job: Job
    passes: Callable[[SandboxResult], bool]


def prepare_code_tests(cfg: CodeTestsGrader, where: str) -> Callable[[Subject], Score]:
    """Return the grader; its sandbox is warm before the first answer."""
    jail = sandbox(packages=cfg.packages)
    jail.start()
    limits = _limits(cfg, shared_limits())

    def grade(subject: Subject) -> Score:
        deadline = time.monotonic() + (cfg.timeout_s or 60.0) * _BUDGET
        text = subject.rollout.last_text
        code = extract_code(text, whole=cfg.extract == "whole")
        tests = read_tests(cfg, subject.item, code)
        score = _run(cfg, jail, limits, tests, deadline)
        if not in_slice(f"{subject.task.task_id}/{text}", cfg.canary):
            return score
        wrong = "" if cfg.command else wrong_solution(_functions(cfg, subject.item, tests))
        try:
            found = _run(cfg, jail, limits, read_tests(cfg, subject.item, wrong), deadline)
        except GradeFailed as failed:  # of the sandbox: the answer's own score stands
            return replace(score, notes={**score.notes, "canary_failed": failed.message})
        passed = {CANARY_PASSED: 1} if found.value == 1.0 else {}
        return replace(score, notes={**score.notes, **passed})

    return grade


def check_code_tests(cfg: CodeTestsGrader, where: str) -> list[Problem]:
    """Return what is wrong with the grader; the tests themselves stand in the rows."""
    problems: list[Problem] = []
    if cfg.command and cfg.function:
        what = "has `function` and `command`: a command is run on stdin and stdout alone"
        problems.append(Problem(where=where, what=what, fix="Leave one of them out."))
    if cfg.command and "/" in cfg.filename:
        what = f"{cfg.filename!r} is a path, must be the name of a file"
        problems.append(Problem(where=f"{where}.filename", what=what))
    return problems


def check_code_row(
    cfg: CodeTestsGrader, item: Mapping[str, JsonValue], where: str
) -> list[Problem]:
    """Return why the row's tests cannot be run; none of them is."""
    try:
        for test in read_tests(cfg, item, ""):
            test.job.request()
    except GradeFailed as failed:
        return [Problem(where=where, what=failed.message)]
    except NotPlain as error:
        return [Problem(where=where, what=f"a test has arguments that cannot be sent: {error}")]
    return []


def extract_code(text: str, *, whole: bool = False) -> str:
    """Return the last fenced block of the text, or all of it where there is none."""
    blocks = [] if whole else _BLOCK.findall(text)
    return blocks[-1][1] if blocks else text


def read_tests(cfg: CodeTestsGrader, item: Mapping[str, JsonValue], code: str) -> list[Test]:
    """Return the row's tests of the code.

    Raises:
        GradeFailed: the row has none, or one that is none of ours.
    """
    given = item.get(cfg.tests)
    if isinstance(given, str):
        try:
            given = cast(JsonValue, json.loads(given))
        except (ValueError, RecursionError):
            given = [given]  # asserts as one text
    if isinstance(given, dict):
        given = list(_columns(given))
    if not isinstance(given, list) or not given:
        raise _refused(f"the row has no tests in its field {cfg.tests!r}")
    function = _entry_point(cfg, item)
    return [test for one in given for test in _tests(cfg, one, code, function)]


def _columns(given: Mapping[str, JsonValue]) -> Iterator[JsonValue]:
    """Yield the tests of `{inputs: [...], outputs: [...], fn_name: ...}`."""
    inputs, outputs = given.get("inputs"), given.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise _refused("an object of tests needs the lists `inputs` and `outputs`")
    if len(inputs) != len(outputs):
        raise _refused(f"{len(inputs)} inputs and {len(outputs)} outputs")
    name = given.get("fn_name")
    for one, other in zip(inputs, outputs, strict=True):
        if name:
            yield {"function": name, "args": one, "expected": other}
        else:
            yield {"input": one, "output": other}


def _tests(cfg: CodeTestsGrader, given: JsonValue, code: str, function: str) -> Iterator[Test]:
    if isinstance(given, str):
        yield from _asserts(cfg, given, code, function)
    elif not isinstance(given, dict):
        raise _refused(f"a test is {given!r:.100}, must be an object or an assert")
    elif "output" in given:
        yield _of_streams(cfg, _stream(given, "input"), _stream(given, "output"), code)
    elif "expected" in given:
        args, kwargs = given.get("args", []), given.get("kwargs", {})
        called = str(given.get("function") or function)
        if not isinstance(args, list) or not isinstance(kwargs, dict) or not called:
            raise _refused("a test with `expected` needs a list `args` and a function to call")
        expectation = Expectation(
            function=called, args=tuple(args), kwargs=kwargs, expected=given["expected"]
        )
        yield _of_call(cfg, expectation, code)
    else:
        raise _refused(f"a test has {sorted(given)}, must have `output` or `expected`")


def _stream(given: Mapping[str, JsonValue], name: str) -> str:
    """Return the text of stdin, empty where there is none, or of stdout; a number is its digits."""
    value = given.get(name, "")
    if name == "input" and value is None:
        return ""
    if value is None or isinstance(value, list | dict):
        raise _refused(f"the {name} of a test is {value!r:.100}, must be a text")
    return str(value)


def _asserts(cfg: CodeTestsGrader, text: str, code: str, function: str) -> Iterator[Test]:
    try:
        expectations = split(text, entry_point=function)
    except Unsplit as error:
        if not cfg.run_unsplit:
            why = f"a test does not split into a call and a value ({error})"
            fix = "write it as {args, expected}, or set run_unsplit and take forged outcomes"
            raise _refused(f"{why}; {fix}") from error
        yield _unsplit(cfg, text, code, function)
        return
    for expectation in expectations:
        yield _of_call(cfg, expectation, code)


def _of_call(cfg: CodeTestsGrader, given: Expectation, code: str) -> Test:
    if cfg.command:
        raise _refused("a command is tested on stdin and stdout; the row has calls")
    job = Call(
        code=code,
        function=given.function,
        args=given.args,
        kwargs=given.kwargs,
        wrappers=given.wrappers,
        tuples_as_lists=cfg.tuples_as_lists,
    )
    own = given.tolerance or Tolerance(0.0, 0.0)
    tolerance = Tolerance(*(max(bound, cfg.tolerance) for bound in own))
    try:
        expected = canonical(given.expected, tuples_as_lists=cfg.tuples_as_lists)
    except NotPlain as error:
        raise _refused(f"a test has a value that cannot be compared: {error}") from None

    def passes(result: SandboxResult) -> bool:
        if result.verdict is not Verdict.OK or result.value is None:
            return False
        same = result.value == expected.encode()
        if not same and any(tolerance):
            same = near(expected, result.value, tolerance, typed=given.tolerance is None)
        return same is given.equal

    return Test(job=job, passes=passes)


def _of_streams(cfg: CodeTestsGrader, stdin: str, expected: str, code: str) -> Test:
    job: Job = Script(code=code, stdin=stdin)
    if cfg.command:
        job = Command(command=cfg.command, files={cfg.filename: code}, stdin=stdin)

    def passes(result: SandboxResult) -> bool:
        same = same_output(expected, result.stdout, how=cfg.stdout, tolerance=cfg.tolerance)
        return result.verdict is Verdict.OK and same

    return Test(job=job, passes=passes)


def _unsplit(cfg: CodeTestsGrader, text: str, code: str, function: str) -> Test:
    """Run the asserts beside the code, which can make them pass; the recipe asked for it."""
    body = "\n".join(f"    {line}" for line in text.splitlines())
    check = f"    check({function})\n" if re.search(r"^def check\(", text, re.MULTILINE) else ""
    program = f"{code}\n\ndef _braid_tests():\n{body}\n{check}    return True\n"
    return Test(job=Call(code=program, function="_braid_tests"), passes=lambda r: r.equals(True))


def same_output(expected: str, stdout: bytes, *, how: str, tolerance: float = 0.0) -> bool:
    """Return whether a program printed what it should have."""
    if how == "exact":
        return stdout == expected.encode("utf-8", "surrogatepass")
    got = stdout.decode("utf-8", "replace")
    if how == "lines":
        return _lines(expected) == _lines(got)
    ours, theirs = expected.split(), got.split()
    return len(ours) == len(theirs) and all(
        a == b or (tolerance > 0 and _near_words(a, b, Tolerance(tolerance, tolerance)))
        for a, b in zip(ours, theirs, strict=True)
    )


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _near_words(expected: str, got: str, tolerance: Tolerance) -> bool:
    try:
        return _close(float(expected), float(got), tolerance)
    except ValueError:
        return False


def near(expected: str, got: bytes, tolerance: Tolerance, *, typed: bool = True) -> bool:
    """Return whether two canonical texts are the same but for floats within the tolerance.

    Args:
        typed: an integer is near no float; False compares any two numbers.
    """
    try:
        theirs = cast(JsonValue, json.loads(got))
    except (ValueError, RecursionError):
        return False
    ours = cast(JsonValue, json.loads(expected))
    if not typed and _is_number(ours) and _is_number(theirs):
        return _close(ours, theirs, tolerance)
    return _near(ours, theirs, tolerance)


def _near(ours: JsonValue, theirs: JsonValue, tolerance: Tolerance) -> bool:
    """Walk as deep as what is expected, whatever came."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, float) and isinstance(theirs, float):
        return _close(ours, theirs, tolerance)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(
            _near(a, b, tolerance) for a, b in zip(ours, theirs, strict=True)
        )
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(
            _near(ours[key], theirs[key], tolerance) for key in ours
        )
    return ours == theirs


def _is_number(value: JsonValue) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(ours: float, theirs: float, tolerance: Tolerance) -> bool:
    relative, absolute = tolerance
    try:
        return math.isclose(ours, theirs, rel_tol=relative, abs_tol=absolute)
    except OverflowError:  # an integer beyond every float
        return False


def _limits(cfg: CodeTestsGrader, shared: Limits) -> Limits:
    cpu = cfg.cpu_s or shared.cpu_s
    return replace(
        shared,
        cpu_s=cpu,
        wall_s=2 * cpu + 1,
        memory=cfg.memory_mb * MB if cfg.memory_mb else shared.memory,
        processes=max(shared.processes, _PROCESSES_OF_COMMANDS if cfg.command else 1),
    )


def _functions(
    cfg: CodeTestsGrader, item: Mapping[str, JsonValue], tests: Sequence[Test]
) -> Iterator[str]:
    """Yield the names that tests call in the tested code."""
    if named := _entry_point(cfg, item):
        yield named
    for test in tests:
        if isinstance(test.job, Call):
            yield test.job.function


def _entry_point(cfg: CodeTestsGrader, item: Mapping[str, JsonValue]) -> str:
    return cfg.function or str(item.get("entry_point") or "")


def _run(
    cfg: CodeTestsGrader, jail: Sandbox, limits: Limits, tests: Sequence[Test], deadline: float
) -> Score:
    """Run the tests until `deadline`, on the monotonic clock; those that are not reached fail."""
    verdicts: list[JsonValue] = []
    attempts: set[str] = set()
    passed, why = 0, ""
    for test in tests:
        left = deadline - time.monotonic()
        if left <= 0 or (cfg.score == "all" and passed < len(verdicts)):
            verdicts += ["not run"] * (len(tests) - len(verdicts))
            break
        result = jail.run(test.job, replace(limits, wall_s=min(limits.wall_s, left)))
        if result.verdict is Verdict.SANDBOX_ERROR:
            raise GradeFailed(FailureKind.SANDBOX, f"the sandbox failed: {result.error}")
        good = test.passes(result)
        passed += good
        attempts.update(result.attempts)
        failed = Verdict.WRONG if result.verdict is Verdict.OK else result.verdict
        verdicts.append("passed" if good else str(failed))
        if not good and not why and failed is not Verdict.WRONG:
            why = f"test {len(verdicts)}: {_why(result)}"
    share = passed / len(tests)
    notes: dict[str, JsonValue] = {"tests": verdicts}
    if why:
        notes["why"] = why
    if attempts:
        notes["tampering"] = [*sorted(attempts)]
    return Score(value=share if cfg.score == "share" else float(share == 1.0), notes=notes)


def _why(result: SandboxResult) -> str:
    """Return how a run failed, for people: the limit, the exception, or what a compiler said."""
    said = result.stderr.decode(errors="replace").strip()
    said = said if said and said not in result.error else ""
    return ": ".join(filter(None, (result.error.strip(), said)))[:_SHOWN]


def _refused(message: str) -> GradeFailed:
    return GradeFailed(FailureKind.INVALID_VARIABLE, message)
