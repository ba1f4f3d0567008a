"""The `python` grader of reinforcement fine-tuning: `grade(sample, item)`, run in the sandbox."""

import ast
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator

from pydantic import JsonValue

from configs.errors import Problem
from configs.graders.code import PythonGrader
from rewards.sandbox.result import MB, Grade, Limits, SandboxResult, Verdict
from rewards.sandbox.shared import sandbox
from rewards.score import FailureKind, GradeFailed, Score
from rewards.subject import Subject

_MAX_SOURCE = 256 * 1000
_NUMBER = re.compile(rb"-?\d+(\.\d+)?(e[+-]?\d+)?")
_MARGIN_S = 2.0
"""The sandbox ends the grader before the pool ends the worker, and says why."""


def prepare_python(cfg: PythonGrader, where: str) -> Callable[[Subject], Score]:
    """Return the grader, its imports loaded before the first answer."""
    jail = sandbox(packages=True, preload=tuple(_imports(ast.parse(cfg.source))))
    jail.start()
    seconds = cfg.timeout_s or 120.0
    wall = max(seconds - _MARGIN_S, seconds / 2)
    limits = Limits(
        cpu_s=2 * wall,  # two cores
        wall_s=wall,
        memory=2048 * MB,
        disk=1024 * MB,
        file_size=1024 * MB,
        files=4096,
    )

    def grade(subject: Subject) -> Score:
        job = Grade(source=cfg.source, sample=subject.sample, item=subject.item)
        return _score(jail.run(job, limits))

    return grade


def check_python(cfg: PythonGrader, where: str) -> list[Problem]:
    """Return what is wrong with the source; it is read, not run."""
    at = f"{where}.source"
    size = len(cfg.source.encode())
    if size >= _MAX_SOURCE:
        return [Problem(where=at, what=f"has {size} bytes, must have less than {_MAX_SOURCE}")]
    try:
        tree = ast.parse(cfg.source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return [Problem(where=at, what=f"is not Python: {error}")]
    problems = list(_signature(tree, at))
    for name in sorted({name.partition(".")[0] for name in _imports(tree)}):
        if name not in sys.stdlib_module_names and importlib.util.find_spec(name) is None:
            what = f"imports {name!r}, which is not installed"
            problems.append(Problem(where=at, what=what, fix=f"Install {name!r} on every node."))
    return problems


def _signature(tree: ast.Module, at: str) -> Iterator[Problem]:
    """Yield what is wrong with how `grade` is defined."""
    named = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = [n for n in named if n.name == "grade"]
    if not found:
        if not any(_binds_grade(node) for node in tree.body):
            what = "defines no `grade`"
            yield Problem(where=at, what=what, fix="Write `def grade(sample, item) -> float:`.")
        return
    given = found[-1].args
    count = len(given.posonlyargs) + len(given.args)
    required = count - len(given.defaults)
    takes_two = required <= 2 and (count >= 2 or given.vararg is not None)
    if isinstance(found[-1], ast.AsyncFunctionDef):
        yield Problem(where=at, what="`grade` is `async def`", fix="Write it as `def`.")
    elif not takes_two:
        what = f"`grade` takes {count} arguments, is called with two dicts: sample, item"
        yield Problem(where=at, what=what, fix="Write `def grade(sample, item) -> float:`.")


def _binds_grade(node: ast.stmt) -> bool:
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    names |= {a.asname or a.name for n in ast.walk(node) if isinstance(n, ast.ImportFrom)
              for a in n.names}  # fmt: skip
    return "grade" in names


def _imports(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted name of every module that the source imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _score(result: SandboxResult) -> Score:
    """Return the grader's number, or why there is none."""
    if result.verdict is Verdict.SANDBOX_ERROR:
        raise GradeFailed(FailureKind.SANDBOX, f"the sandbox failed: {result.error}")
    if result.verdict is not Verdict.OK or result.value is None:
        raise GradeFailed(FailureKind.PYTHON, f"{result.verdict}: {result.error}")
    if not _NUMBER.fullmatch(result.value) or len(result.value) > 400:
        shown = result.value[:100].decode(errors="replace")
        raise GradeFailed(FailureKind.PYTHON, f"grade returned {shown}, must be a finite float")
    notes: dict[str, JsonValue] = {}
    if result.attempts:
        notes["tampering"] = list(result.attempts)
    return Score(value=float(result.value), notes=notes)
