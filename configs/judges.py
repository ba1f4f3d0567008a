"""Judges and reward models of a run: declared here by name, or not reachable at all."""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import (
    Config,
    EnvName,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    matching,
)
from configs.engines import ActorsConfig, ModelConfig, RolloutConfig

JudgeName = Annotated[
    str,
    matching(
        r"^[A-Za-z0-9][A-Za-z0-9_.:/-]*$",
        "a judge's name has letters, digits, `_`, `.`, `:`, `/` and `-`, and starts with a letter "
        "or digit",
    ),
]
"""As graders write it under `model`, e.g. `gpt-4o-2024-08-06` or `org/model`."""


class EndpointConfig(Config):
    """An OpenAI-compatible server. Declaring it is what allows the run to call it."""

    base_url: Annotated[
        str,
        matching(
            r"^https?://[^\s@?#]+$",
            "an address starts with http:// or https:// and holds no user, key or query",
        ),
    ]
    """Address up to and with the version, e.g. `https://api.example.com/v1`; holds no secret."""
    model: str
    """Model asked for there."""
    api_key_env: EnvName | None = None
    """NAME of the environment variable that holds the key; empty sends none."""
    private: bool = False
    """Let the address lead to this machine or a private network; no other may be called there."""
    structured: Literal["auto", "json_schema", "text"] = "auto"
    """`json_schema` asks for constrained output; `text` reads a JSON object out of the text; `auto`
    falls back to the second where the server refuses the first."""


class JudgeEnginesConfig(RolloutConfig):
    """A group of vLLM engines of our own; weight sync never touches it."""

    model: ModelConfig
    """The judging model."""
    max_chars: PositiveInt = 400
    """Longest text in one place of a verdict; keeps a rambling judge within its tokens."""


class PriceConfig(Config):
    """What tokens cost, in any one currency, by million."""

    prompt: NonNegativeFloat = 0.0
    """Of prompt tokens."""
    completion: NonNegativeFloat = 0.0
    """Of completion tokens."""


class JudgeCacheConfig(Config):
    """Verdicts kept by what was asked."""

    entries: NonNegativeInt = 20000
    """Most verdicts kept in memory by each reward actor; 0 keeps none."""
    folder: str | None = None
    """Folder in which they also outlive the run, e.g. `runs/NAME/judges`; empty for none."""


class CalibrationConfig(Config):
    """How well the judge must agree with people before training starts."""

    anchors: str
    """JSONL of human-labelled answers: `item`, `sample`, `label`."""
    part: str
    """Reward part whose grader is calibrated: `SOURCE/PART`."""
    min_kappa: Annotated[float, Field(ge=-1, le=1)]
    """Least weighted kappa between judge and people; below it the run does not start."""


class JudgeConfig(Config):
    """One judge: exactly one of `endpoint` and `engines`."""

    endpoint: EndpointConfig | None = None
    """An OpenAI-compatible server."""
    engines: JudgeEnginesConfig | None = None
    """vLLM engines of the run's own."""
    concurrency: PositiveInt = 64
    """Most requests in flight at once, over all reward actors."""
    timeout_s: PositiveFloat = 60.0
    """Seconds that one try may take."""
    deadline_s: PositiveFloat = 300.0
    """Seconds that one verdict may take, tries and pauses between them together."""
    retries: NonNegativeInt = 4
    """Tries beyond the first, after a failed, refused or unreadable one."""
    backoff_s: PositiveFloat = 0.5
    """Pause before the first retry; it doubles from try to try, with jitter."""
    max_backoff_s: PositiveFloat = 30.0
    """Longest pause, also of one that the server asks for."""
    max_tokens: PositiveInt = 1024
    """Most completion tokens of a verdict, where the grader does not say."""
    cache: JudgeCacheConfig = JudgeCacheConfig()
    """Verdicts kept by what was asked."""
    price: PriceConfig = PriceConfig()
    """What tokens cost."""
    calibration: CalibrationConfig | None = None
    """How well it must agree with people."""


class RewardModelConfig(Config):
    """A Hugging Face sequence classifier in an actor group of its own."""

    model: ModelConfig
    """Its folder, numbers and longest conversation."""
    actors: ActorsConfig = ActorsConfig()
    """Its actors, a copy of the model each."""
    label: NonNegativeInt = 0
    """Which of the head's outputs is the score."""
    max_tokens_per_batch: PositiveInt = 16384
    """Padded tokens of one forward pass."""
    timeout_s: PositiveFloat = 60.0
    """Seconds that scoring one answer may take."""


Judges = dict[JudgeName, JudgeConfig]
RewardModels = dict[Name, RewardModelConfig]


class JudgesFile(Config):
    """A file for the command line, with the same sections as a recipe."""

    judges: Judges = {}
    """Judges that graders may name, by that name."""
    reward_models: RewardModels = {}
    """Reward models that graders may name, by that name."""
