"""All graders that can be written as data, told apart by their `type`."""

from typing import Annotated

from pydantic import Field, TypeAdapter

from configs.graders.answers import FormatGrader, FunctionGrader

GraderConfig = Annotated[FunctionGrader | FormatGrader, Field(discriminator="type")]
"""A grader object of a recipe, or of a file of its own."""

GRADER: TypeAdapter[GraderConfig] = TypeAdapter(GraderConfig)
