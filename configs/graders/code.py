"""Graders that run code: the recipe's own on what the model wrote, and the model's on tests."""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from configs.graders.base import Grader


class PythonGrader(Grader):
    """A Python function `grade(sample, item) -> float`, run in the sandbox on every answer."""

    type: Literal["python"]
    """Kind of grader."""
    source: str
    """Python that defines `grade`; less than 256 kB."""
    image_tag: str | None = None
    """Accepted and not used: the packages are those installed here."""
    timeout_s: Annotated[float, Field(gt=0, le=120)] | None = 120.0
    """Seconds that grading one answer may take."""


class CodeTestsGrader(Grader):
    """Run the code that the model wrote on the row's tests, each in a process of its own."""

    type: Literal["code_tests"]
    """Kind of grader."""
    tests: str = "tests"
    """Field of the row that holds the tests: a list of `{input, output}`, of
    `{args, expected, function}`, or of `assert f(1) == 2`."""
    function: str = ""
    """Function, or `Class.method`, that tests without one of their own call; empty takes the row's
    `entry_point`."""
    extract: Literal["last_block", "whole"] = "last_block"
    """Where the code stands: in the last fenced block (the whole answer if there is none), or
    the whole answer."""
    score: Literal["share", "all"] = "share"
    """`share` pays the share of tests passed, `all` 1 for all of them and 0 otherwise."""
    stdout: Literal["lines", "tokens", "exact"] = "lines"
    """How output is compared: by lines without trailing blanks, by words, or byte by byte."""
    tolerance: NonNegativeFloat = 0.0
    """Relative and absolute difference allowed between floats, in values and in words."""
    tuples_as_lists: bool = False
    """Take a tuple for the list of its members; for tests that come from JSON."""
    command: str = ""
    """Shell command that runs the code of another language, e.g. `gcc -O1 -o p main.c && ./p`;
    empty runs Python."""
    filename: str = "solution.py"
    """File that the command finds the code in."""
    packages: bool = False
    """Let the code import the packages that are installed here."""
    run_unsplit: bool = False
    """Run asserts that cannot be split into a call and a value inside the tested process, where a
    solution can forge their outcome; False refuses them."""
    canary: Fraction = 0.01
    """Share of answers, chosen by a hash, beside which a known-wrong solution is run on the same
    tests. One that passes them all raises the alarm `canary`; it never changes a score."""
    cpu_s: PositiveFloat | None = None
    """CPU seconds of one test; empty takes `reward.sandbox.cpu_s`."""
    memory_mb: PositiveInt | None = None
    """Memory of one test; empty takes `reward.sandbox.memory_mb`."""
    timeout_s: PositiveFloat | None = 60.0
    """Seconds for all tests of one answer; those that are not reached fail."""
