"""What every section of the recipe is made of."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]


PATTERN_WORDS: dict[str, str] = {}
"""Pattern of a text field -> what it allows, as messages say it."""


def matching(pattern: str, words: str) -> Any:
    """Return the field of a text that matches `pattern`, which messages put in `words`."""
    PATTERN_WORDS[pattern] = words
    return Field(pattern=pattern)


Name = Annotated[
    str,
    matching(
        r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        "a name has letters, digits, `_`, `.` and `-`, and starts with a letter or digit",
    ),
]
EnvName = Annotated[
    str,
    matching(
        r"^[A-Za-z_][A-Za-z0-9_]*$",
        "a variable has letters, digits and `_`, and starts with no digit",
    ),
]


class Config(BaseModel):
    """Base of every section: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
