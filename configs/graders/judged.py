"""Graders that ask a model: a judge by its words, or a reward model by its number."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from configs.base import Config, PositiveInt
from configs.graders.base import Grader

Range = tuple[float, float]
Block = dict[str, JsonValue]
Content = str | Block | tuple[str | Block, ...]


class InputMessage(Config):
    """One message to the judge; texts in it are templates."""

    role: Literal["user", "assistant", "system", "developer"]
    """Who speaks."""
    content: Content
    """Text, a content block, or a list of them."""
    type: Literal["message"] = "message"
    """As RFT objects may have it."""


class JudgeSamplingParams(Config):
    """How the verdict is drawn; what is left out is the judge's own default."""

    seed: int | None = None
    """Seed; further votes count on from it."""
    temperature: Annotated[float, Field(ge=0)] | None = None
    """Softmax temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of probability that is drawn from."""
    max_completions_tokens: PositiveInt | None = None
    """Most completion tokens, as RFT spells it."""
    max_completion_tokens: PositiveInt | None = None
    """The same, as all else spells it."""
    reasoning_effort: str | None = None
    """For judges that reason: `low`, `medium`, `high`."""

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if self.max_completions_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("has `max_completions_tokens` and `max_completion_tokens`; give one")
        return self

    @property
    def max_tokens(self) -> int | None:
        """The limit, however it is spelt."""
        return self.max_completions_tokens or self.max_completion_tokens


class JudgedGrader(Grader):
    """What all graders have that ask a judge."""

    model: str
    """Name under `judges`."""
    sampling_params: JudgeSamplingParams = JudgeSamplingParams()
    """How the verdict is drawn."""
    votes: Annotated[int, Field(ge=1, le=100)] = 1
    """Verdicts asked for, each with a seed of its own."""
    explain: bool = True
    """Have the judge write its reasons before its verdict."""
    fence: bool = True
    """Mark the answer as data that gives the judge no orders; false sends templates as RFT does."""


class PairConfig(Config):
    """An answer beside a reference. The grader's texts name them `{{ pair.first }}` and
    `{{ pair.second }}`."""

    reference: str
    """Template of the text that the answer is compared with."""
    swap: bool = True
    """Ask in both orders and take the mean, so that the judge's taste for a place cancels out."""


class ScoreModelGrader(JudgedGrader):
    """A number from a judge, kept within a range."""

    templates: ClassVar[tuple[str, ...]] = ("input", "pair")

    type: Literal["score_model"]
    """Kind of grader."""
    input: Annotated[tuple[InputMessage, ...], Field(min_length=1)]
    """What the judge is told."""
    range: Range = (0.0, 1.0)
    """Lowest and highest score; what lies outside is moved to the nearer one."""
    combine: Literal["mean", "median"] = "mean"
    """How votes become one."""
    pair: PairConfig | None = None
    """The reference beside which the answer is shown; the score is then that of the first text,
    and is turned round where the answer comes second."""


class LabelModelGrader(JudgedGrader):
    """A label from a judge: 1 for a passing one, else 0."""

    templates: ClassVar[tuple[str, ...]] = ("input", "pair")

    type: Literal["label_model"]
    """Kind of grader."""
    input: Annotated[tuple[InputMessage, ...], Field(min_length=1)]
    """What the judge is told."""
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    """Labels that it may give."""
    passing_labels: Annotated[tuple[str, ...], Field(min_length=1)]
    """Those that pass."""
    combine: Literal["mean", "majority"] = "majority"
    """How votes become one: the share that pass, or the label given most often."""
    pair: PairConfig | None = None
    """The reference beside which the answer is shown."""
    mirror: dict[str, str] = {}
    """Label -> what it means where the answer comes second, e.g. `{A: B, B: A}`."""


class Criterion(Config):
    """One thing to look for in an answer."""

    criterion: str
    """What is true of an answer that meets it."""
    points: float
    """Its weight; negative for a fault."""
    tags: tuple[str, ...] = ()
    """Groups that it is reported under."""
    name: str = ""
    """Name among the reward's parts; empty keeps it out of them."""


class RubricGrader(JudgedGrader):
    """Weighted criteria, judged one by one."""

    templates: ClassVar[tuple[str, ...]] = ("question", "reference")

    type: Literal["rubric"]
    """Kind of grader."""
    criteria: Annotated[tuple[Criterion, ...], Field(min_length=1)] | str
    """The criteria, or a template of a field that holds them, e.g. `{{ item.rubrics }}`."""
    question: str = ""
    """Template of what was asked; empty takes the task's own messages."""
    reference: str = ""
    """Template of a reference answer shown to the judge; empty shows none."""
    mode: Literal["each", "together"] = "each"
    """`each` asks once for each criterion, `together` for all at once: cheaper, less careful."""
    normalise: Literal["positive_points", "abs", "sum"] = "positive_points"
    """What the points of met criteria are divided by: the positive points (HealthBench), the sum of
    all absolute points, or nothing."""
    clip: Range | None = None
    """Bounds of one answer's score; empty leaves a negative one negative, as HealthBench does."""


class RewardModelGrader(Grader):
    """The number that a sequence classifier gives the conversation."""

    type: Literal["reward_model"]
    """Kind of grader."""
    model: str
    """Name under `reward_models`."""
    transform: Literal["none", "sigmoid"] = "none"
    """Applied to the model's number."""
    scale: float = 1.0
    """Factor, after the transform."""
    offset: float = 0.0
    """Added last."""
