"""Graders that look at reasoning step by step."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from configs.base import Config, Fraction, PositiveInt
from configs.graders.base import Grader

if TYPE_CHECKING:
    from configs.graders.union import GraderConfig


class StepSplit(Config):
    """Where an answer's steps are."""

    by: Literal["lines", "numbered", "tags", "sentences", "regex"] = "lines"
    """Lines that are not blank; parts that begin with `1.` or `1)`; `<step>...</step>`; sentences;
    or the matches of `pattern`."""
    pattern: str = ""
    """Regular expression of one step, for `regex`; its first group, if it has one, is the step."""
    until: str = ""
    """Regular expression of where the steps end and the answer begins; empty for the text's end."""
    max_steps: PositiveInt = 64
    """Steps that are verified; any beyond them count as wrong."""


class SplitStepsGrader(StepSplit, Grader):
    """Find the steps of an answer; its score is how many there are."""

    type: Literal["split_steps"]
    """Kind of grader."""


class StepsGrader(Grader):
    """Have each step of the reasoning verified: by a rule, or by a judge."""

    type: Literal["steps"]
    """Kind of grader."""
    split: StepSplit = StepSplit()
    """Where the steps are."""
    verify: "GraderConfig"
    """Scores one step from 0 to 1: `sample.output_text` is the step, `sample.steps` those up to it,
    `sample.answer_text` the whole answer."""
    right_at: Fraction = 0.5
    """Score from which a step is right."""
    aggregate: Literal["min", "first_error", "mean", "last"] = "min"
    """What the steps' scores come to: the worst; the mean with all that follows a wrong step at 0;
    the mean; or the last. Under `min` no further step can raise it."""
    outcome: "GraderConfig | None" = None
    """Scores the whole answer from 0 to 1; the value is then both, by `outcome_share`."""
    outcome_share: Annotated[float, Field(gt=0.5, lt=1)] = 0.7
    """Weight of the outcome: above a half, so that no wrong answer beats a right one."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        default: object = type(self).model_fields["outcome_share"].default
        if self.outcome is None and self.outcome_share != default:
            raise ValueError("`outcome_share` belongs to `outcome`, which is empty")
        return self

    @property
    def graders(self) -> dict[str, "GraderConfig"]:
        """The graders that it is made of, by the names of their paths."""
        split = SplitStepsGrader(type="split_steps", **self.split.model_dump())
        found: dict[str, GraderConfig] = {"split": split, "verify": self.verify}
        return found if self.outcome is None else {**found, "outcome": self.outcome}
