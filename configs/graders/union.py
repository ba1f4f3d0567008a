"""All graders that can be written as data, told apart by their `type`."""

from typing import Annotated

from pydantic import Field, TypeAdapter

from configs.graders.answers import FormatGrader, FunctionGrader
from configs.graders.judged import (
    LabelModelGrader,
    RewardModelGrader,
    RubricGrader,
    ScoreModelGrader,
)

GraderConfig = Annotated[
    FunctionGrader
    | FormatGrader
    | ScoreModelGrader
    | LabelModelGrader
    | RubricGrader
    | RewardModelGrader,
    Field(discriminator="type"),
]
"""A grader object of a recipe, or of a file of its own."""

GRADER: TypeAdapter[GraderConfig] = TypeAdapter(GraderConfig)
