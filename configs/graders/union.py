"""All graders that can be written as data, told apart by their `type`."""

from typing import Annotated

from pydantic import Field, TypeAdapter

from configs.graders.answers import (
    FormatGrader,
    FunctionGrader,
    JsonFieldsGrader,
    LengthGrader,
    MathGrader,
    ReasoningGymGrader,
)
from configs.graders.code import CodeTestsGrader, PythonGrader
from configs.graders.judged import (
    LabelModelGrader,
    RewardModelGrader,
    RubricGrader,
    ScoreModelGrader,
)
from configs.graders.rft import MultiGrader, StringCheckGrader, TextSimilarityGrader

GraderConfig = Annotated[
    FunctionGrader
    | FormatGrader
    | StringCheckGrader
    | TextSimilarityGrader
    | MultiGrader
    | MathGrader
    | JsonFieldsGrader
    | LengthGrader
    | ReasoningGymGrader
    | ScoreModelGrader
    | LabelModelGrader
    | RubricGrader
    | RewardModelGrader
    | PythonGrader
    | CodeTestsGrader,
    Field(discriminator="type"),
]
"""A grader object of a recipe, or of a file of its own."""

MultiGrader.model_rebuild(_types_namespace={"GraderConfig": GraderConfig})

GRADER: TypeAdapter[GraderConfig] = TypeAdapter(GraderConfig)
