"""Grader objects of the reinforcement fine-tuning API, as they are documented there."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator

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


def slug(name: str) -> str:
    """Return the identifier by which a formula calls a grader of that name."""
    return re.sub(r"\W+", "_", name.strip(), flags=re.ASCII).strip("_").lower()


def _by_key(given: object) -> object:
    """Take a list of graders, or one, for a mapping by the identifiers of their names."""
    if isinstance(given, Mapping) and isinstance(cast("Mapping[str, Any]", given).get("type"), str):
        given = [cast("Mapping[str, Any]", given)]
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        return cast(object, given)
    keyed: dict[str, object] = {}
    for i, grader in enumerate(cast("Sequence[Any]", given)):
        name = cast("Mapping[str, Any]", grader).get("name") if isinstance(grader, Mapping) else ""
        key = slug(str(name or "")) or f"grader_{i}"
        if key in keyed:
            raise ValueError(f"two graders of the list are called `{key}` in a formula; rename one")
        keyed[key] = grader
    return keyed


class MultiGrader(Grader):
    """Pay a formula of other graders' scores."""

    type: Literal["multi"]
    """Kind of grader."""
    graders: Annotated[dict[str, "GraderConfig"], BeforeValidator(_by_key)]
    """Graders by the names that the formula has for them; or a list, each by its `name`."""
    calculate_output: str
    """Formula: names, numbers, parentheses, + - * / ^, min max abs floor ceil exp sqrt log."""
