"""Graders that compare an answer with the truth, or with what is asked of its form, by a rule."""

from typing import ClassVar, Literal, Self

from pydantic import JsonValue, model_validator

from configs.base import Name, NonNegativeInt, PositiveInt
from configs.graders.base import Grader
from configs.graders.fields import Fields


class FunctionGrader(Grader):
    """A Python function `(rollout, task, **args) -> float | Score`: a built-in name, or yours."""

    type: Literal["function"]
    """Kind of grader."""
    use: str
    """Built-in name, or `package.module:attribute` importable by every actor."""
    args: dict[str, JsonValue] = {}
    """Keyword arguments bound to it; checked against its signature before any actor starts."""


class ReasoningGymGrader(Grader):
    """Score the answer with the reasoning-gym dataset that made the task."""

    type: Literal["reasoning_gym"]
    """Kind of grader."""
    binary: bool = True
    """Pay 1 for a full score and 0 for less; false pays the dataset's partial score."""
    extract: Literal["all", "tag"] = "all"
    """`all`: the whole last text; `tag`: what the last <answer>...</answer> holds."""


class FormatGrader(Grader):
    """Pay 1 if the whole answer has the form asked for, else 0; all that is given must hold."""

    type: Literal["format"]
    """Kind of grader."""
    pattern: str | None = None
    """Regular expression of the whole answer; `.` matches newlines too."""
    tags: tuple[Name, ...] = ()
    """Tags in order, e.g. [think, answer]: each once, none inside another, no text between."""
    json_schema: dict[str, JsonValue] | None = None
    """The whole answer is JSON that this schema allows."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.pattern is None and not self.tags and self.json_schema is None:
            raise ValueError("asks for no form: give `pattern`, `tags` or `json_schema`")
        return self


class LengthGrader(Grader):
    """Shape by length: a constant inside the bounds, falling evenly to another beyond them.

    With `unit: tokens` and the defaults this is DAPO's soft overlong punishment
    (arXiv:2503.14476): 0 up to `max - buffer`, down to -1 at `max`.
    """

    type: Literal["length"]
    """Kind of grader."""
    unit: Literal["tokens", "chars"] = "tokens"
    """What is counted: tokens that the policy sampled in all turns, or characters of the last."""
    max: PositiveInt | None = None
    """Longest answer: beyond it `outside` is paid, with a `buffer` also at it; empty for any."""
    buffer: NonNegativeInt = 0
    """Over so many before `max` the payment falls."""
    min: NonNegativeInt = 0
    """Shortest answer: below it `outside` is paid, with a `min_buffer` also at it; 0 for any."""
    min_buffer: NonNegativeInt = 0
    """Over so many after `min` the payment rises."""
    inside: float = 0.0
    """Paid between the bounds."""
    outside: float = -1.0
    """Paid beyond them."""

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.max is None and self.min == 0:
            raise ValueError("has no bound: give `max` or `min`")
        if self.max is not None and self.min + self.min_buffer > self.max - self.buffer:
            raise ValueError(
                f"leaves no length inside: min + min_buffer = {self.min + self.min_buffer}, "
                f"max - buffer = {self.max - self.buffer}"
            )
        return self


class MathGrader(Grader):
    """Pay 1 if the answer is mathematically equal to the truth, else 0.

    Written numbers are compared by a reader of ours, all else by math-verify.
    """

    templates: ClassVar[tuple[str, ...]] = ("input", "reference")

    type: Literal["math"]
    """Kind of grader."""
    input: str = "{{ sample.output_text }}"
    """Where the answer is looked for."""
    reference: str = "{{ item.answer }}"
    """The truth: LaTeX or plain, in \\boxed{} or after #### or neither."""
    extract: Literal["boxed", "tag", "last_line", "whole"] = "boxed"
    """What of the input is the answer: `boxed`, what \\boxed{} holds; `tag`, what <tag></tag>."""
    tag: Name = "answer"
    """Tag for `extract: tag`."""
    several: Literal["last", "agree", "join"] = "last"
    """Of several boxes or tags the last counts, all must be right, or all are one set."""
    units: Literal["ignore", "match"] = "ignore"
    """Unit after a number: left out, or the same where the truth has one."""
    percent: Literal["either", "value"] = "either"
    """`value`: 50% is 0.5 alone; `either`: beside 0.5, 50% and 50 are the same."""
    decimals: NonNegativeInt = 6
    """Decimals (of small numbers: digits) to which numbers with a decimal point must agree."""
    unevaluated: bool = False
    """Take `3*4` for a truth that is the number 12; off, as repeating the question would pass."""
    max_chars: PositiveInt = 400
    """Longest answer that is read; a longer one is wrong."""


class JsonFieldsGrader(Grader):
    """Pay how many fields of a structured answer are right, by weight, 0 to 1."""

    templates: ClassVar[tuple[str, ...]] = ("input", "reference")

    type: Literal["json_fields"]
    """Kind of grader."""
    input: str = "{{ sample.output_text }}"
    """The structured answer: JSON, or text with JSON in it."""
    reference: str = "{{ item.answer }}"
    """The truth: a JSON object, or text that is one."""
    extract: Literal["whole", "block", "last"] = "whole"
    """Where the JSON stands: the whole text, its last ``` block, or its last object."""
    fields: Fields = {}
    """Comparison of each field; empty takes the truth's fields, compared by their kind."""
    extra: Literal["ignore", "penalize"] = "ignore"
    """Fields of the answer that the truth has not: ignored, or each a wrong field of weight 1."""
    total: Literal["mean", "all"] = "mean"
    """The weighted mean of the fields' scores, or 1 where all are 1 and else 0."""
    json_schema: dict[str, JsonValue] | None = None
    """Schema that the answer must satisfy, or it is paid 0."""
    on_parse_error: Literal["zero", "invalid"] = "zero"
    """An answer without JSON: the policy's fault, so 0; `invalid` leaves it out of training."""
