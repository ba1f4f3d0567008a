"""How a source's reward parts become one objective, and how scores of steps reach their tokens."""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import Config, Name

Aggregate = Literal["last", "sum", "mean", "discounted"]


class CreditConfig(Config):
    """What becomes of the scores that a grader gives to stretches of the text (spans)."""

    aggregate: Aggregate | None = None
    """How they make the part's value; empty keeps the grader's own value and weighs them as
    `mean` does."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of `discounted` on each span, relative to the one before."""
    to: Literal["tokens", "rollout"] = "tokens"
    """`tokens`: a token answers for the spans that end at it or later; `rollout`: for all."""


class GateConfig(Config):
    """A part counts only where another one reaches a threshold: correctness first, then style."""

    part: Name
    """The part behind the gate."""
    needs: Name
    """The part that opens it, as it counts behind its own gates."""
    at_least: float = 1.0
    """Value of `needs` from which the gate is open."""
    otherwise: float = 0.0
    """Value of `part` where the gate is closed."""


class ObjectiveConfig(Config):
    """How a source's reward parts are combined."""

    combine: Literal["weighted_sum", "normalize_then_sum", "formula"] = "weighted_sum"
    """`weighted_sum`: the parts by weight; `normalize_then_sum` (GDPO): each part's advantages by
    weight, divided by their deviation over the step; `formula`: an expression over the parts."""
    formula: str = ""
    """The reward as an expression over the parts' names, for `formula`."""
    gates: tuple[GateConfig, ...] = ()
    """Which parts count only where others are good enough."""
