"""Graders that compare an answer with the truth, by a rule."""

from typing import Literal

from pydantic import JsonValue

from configs.graders.base import Grader


class FunctionGrader(Grader):
    """A Python function `(rollout, task, **args) -> float | Score`: a built-in name, or yours."""

    type: Literal["function"]
    """Kind of grader."""
    use: str
    """Built-in name, or `package.module:attribute` importable by every actor."""
    args: dict[str, JsonValue] = {}
    """Keyword arguments bound to it; checked against its signature before any actor starts."""


class FormatGrader(Grader):
    """Pay 1 if the whole answer matches a regular expression, else 0."""

    type: Literal["format"]
    """Kind of grader."""
    pattern: str
    """Regular expression of the whole answer; `.` matches newlines too."""
