"""All graders that can be written as data, told apart by their `type`."""

from typing import Annotated

from pydantic import Field, TypeAdapter

from configs.graders.answers import FormatGrader, FunctionGrader
from configs.graders.steps import SplitStepsGrader, StepsGrader

GraderConfig = Annotated[
    FunctionGrader | FormatGrader | SplitStepsGrader | StepsGrader,
    Field(discriminator="type"),
]
"""A grader object of a recipe, or of a file of its own."""

StepsGrader.model_rebuild(_types_namespace={"GraderConfig": GraderConfig})

GRADER: TypeAdapter[GraderConfig] = TypeAdapter(GraderConfig)
