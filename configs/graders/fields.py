"""How the fields of a structured answer are compared with the true ones."""

from typing import Annotated, Any, Literal

from pydantic import Field

from configs.base import Config, Fraction, NonNegativeFloat
from configs.graders.rft import TextMetric


class Comparison(Config):
    """What every comparison of a field has."""

    weight: NonNegativeFloat = 1.0
    """Weight of the field among its neighbours."""
    optional: bool = False
    """Whether a row without this field leaves it out of the score; else such a row is an error."""


class ExactField(Comparison):
    """1 if both are equal in kind and value, else 0; 3 and 3.0 are equal, 1 and true are not."""

    type: Literal["exact"]
    """Kind of comparison."""
    ignore_case: bool = False
    """Compare texts in any case."""
    strip: bool = True
    """Compare texts without the white space around them."""


class NumberField(Comparison):
    """1 if a number is near enough, else 0; `scale` gives part credit."""

    type: Literal["number"]
    """Kind of comparison."""
    abs: NonNegativeFloat = 0.0
    """Largest difference that is right."""
    rel: NonNegativeFloat = 1e-9
    """Largest difference that is right, as a share of the true number's size."""
    scale: NonNegativeFloat = 0.0
    """Beyond what is right, the score falls to 0 over this difference; 0 for no part credit."""
    from_text: bool = True
    """Read a number out of a text that is one: `"1,200.50"`, `"$5"`."""


class TextField(Comparison):
    """How alike two texts are, 0 to 1."""

    type: Literal["text"]
    """Kind of comparison."""
    metric: TextMetric = "fuzzy_match"
    """As in `text_similarity`."""
    ignore_case: bool = True
    """Compare in lower case."""
    threshold: Fraction = 0.0
    """Likeness below this is paid 0."""


class DateField(Comparison):
    """1 if both are the same day, else 0."""

    type: Literal["date"]
    """Kind of comparison."""
    formats: tuple[str, ...] = ("%Y-%m-%d",)
    """Ways of writing it that are read, as in strptime; ISO times are cut to their day."""


class _SeveralConfig(Comparison):
    """What both comparisons of several values have."""

    items: "FieldConfig | None" = None
    """How one item is compared; empty goes by what the true item is."""
    score: Literal["f1", "precision", "recall"] = "f1"
    """What is paid: how much of the answer is true, how much of the truth is there, or both."""
    partial: bool = True
    """Whether an item that is partly right counts in part; else only where its score is 1."""


class SetField(_SeveralConfig):
    """Values without order or repetition, by F1; items are matched one to one as well as can be."""

    type: Literal["set"]
    """Kind of comparison."""


class ListField(_SeveralConfig):
    """Values with repetition, by F1."""

    type: Literal["list"]
    """Kind of comparison."""
    ordered: bool = True
    """Match items in order (as the longest common subsequence does); else as a set's."""


class ObjectField(Comparison):
    """Fields inside a field."""

    type: Literal["object"]
    """Kind of comparison."""
    fields: "Fields" = {}
    """Comparison of each field inside; empty takes those of the true value."""
    extra: Literal["ignore", "penalize"] = "ignore"
    """Fields of the answer that the truth has not: ignored, or each a wrong field of weight 1."""


FieldConfig = Annotated[
    ExactField | NumberField | TextField | DateField | SetField | ListField | ObjectField,
    Field(discriminator="type"),
]
"""How one field is compared: its `type`, or a mapping with it."""
Fields = dict[str, FieldConfig]

_NAMES: dict[str, Any] = {"FieldConfig": FieldConfig, "Fields": Fields}
for _model in (SetField, ListField, ObjectField):
    _model.model_rebuild(_types_namespace=_NAMES)
