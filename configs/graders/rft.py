"""Grader objects of the reinforcement fine-tuning API, as they are documented there."""

from typing import TYPE_CHECKING, ClassVar, Literal

from configs.graders.base import Grader

if TYPE_CHECKING:
    from configs.graders.union import GraderConfig

TextMetric = Literal[
    "fuzzy_match",
    "bleu",
    "gleu",
    "meteor",
    "cosine",
    "rouge_1",
    "rouge_2",
    "rouge_3",
    "rouge_4",
    "rouge_5",
    "rouge_l",
]


class StringCheckGrader(Grader):
    """Pay 1 if two texts compare as asked, else 0."""

    templates: ClassVar[tuple[str, ...]] = ("input", "reference")

    type: Literal["string_check"]
    """Kind of grader."""
    input: str
    """What is looked at, e.g. `{{ sample.output_text }}`."""
    reference: str
    """What it is compared with, e.g. `{{ item.answer }}`."""
    operation: Literal["eq", "ne", "neq", "like", "ilike"]
    """`eq`: equal; `ne` or `neq`: not equal; `like`: contains; `ilike`: contains, in any case."""


class TextSimilarityGrader(Grader):
    """Pay how alike two texts are, 0 to 1."""

    templates: ClassVar[tuple[str, ...]] = ("input", "reference")

    type: Literal["text_similarity"]
    """Kind of grader."""
    input: str
    """What is looked at, e.g. `{{ sample.output_text }}`."""
    reference: str
    """What it is compared with, e.g. `{{ item.answer }}`."""
    evaluation_metric: TextMetric
    """How alike: `cosine` is of word counts, `meteor` without synonyms (docs/graders.md)."""
    pass_threshold: float | None = None
    """Belongs to evaluations of the API; taken and without effect on the reward."""


class MultiGrader(Grader):
    """Pay a formula of other graders' scores."""

    type: Literal["multi"]
    """Kind of grader."""
    graders: dict[str, "GraderConfig"]
    """Graders by the names that the formula has for them; or a list, each by its `name`."""
    calculate_output: str
    """Formula: names, numbers, parentheses, + - * / ^, min max abs floor ceil exp sqrt log."""
