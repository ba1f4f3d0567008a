"""The recipes of `braid sft` and `braid reward-model`. They share model, trainer, checkpoints and
logging with a run's, and `training_run` is that run as the trainer sees it."""

from typing import Literal, TypeAlias

from pydantic import JsonValue

from configs.algorithm import AlgorithmConfig, CorrectionConfig
from configs.base import Config, Name, NonNegativeInt, PositiveInt
from configs.data import DataConfig, Paths
from configs.engines import ModelConfig
from configs.plug import PlugConfig
from configs.schema import (
    BatchConfig,
    CheckpointConfig,
    HealthConfig,
    LoggingConfig,
    RunConfig,
    SourceConfig,
)
from configs.training import TrainerConfig


class RowsConfig(Config):
    """Rows to learn from: exactly one of jsonl and parquet."""

    jsonl: Paths | None = None
    """Path or glob of JSONL files, or a list of them."""
    parquet: Paths | None = None
    """Path or glob of Parquet files, or a list of them."""
    where: dict[str, JsonValue] = {}
    """Rows taken: column to a value, a list of values, or `{min:, max:}`; all must hold."""
    held_out: NonNegativeInt = 0
    """Rows held out for evaluation, chosen by hash of what comes before the first answer."""
    held_out_file: Paths | None = None
    """Held-out rows in files of their own, of the same kind and columns."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """What becomes of a row longer than model.max_model_len: the run ends and names it, or goes on
    without it and counts it in `rows/too_long`."""


class SftDataConfig(RowsConfig):
    """Rows of conversations."""

    messages: str = "messages"
    """Column with the conversation, a list of `role` and `content`; an assistant's message with
    `weight: 0` is read and not trained on."""
    train_on: Literal["all", "last"] = "all"
    """Assistant's messages that are trained on: every one, or each row's last."""


class PreferenceDataConfig(RowsConfig):
    """Rows of two answers, of which one is better."""

    chosen: str = "chosen"
    """Column with the better answer: a whole conversation of `role` and `content`, or its text."""
    rejected: str = "rejected"
    """Column with the other, written in the same way."""
    prompt: str = "prompt"
    """Column with what answers that are text reply to: text, or a list of messages."""


class SftBatchConfig(Config):
    """How much is trained on per step."""

    rows_per_step: PositiveInt = 32
    """Rows of one optimizer step."""
    max_tokens_per_microbatch: PositiveInt = 16384
    """Token budget (T) of one packed micro-batch on one rank."""
    packing: Literal["packed", "padded"] = "packed"
    """`packed`: segments in one row with segment-local positions; `padded`: one row a sample."""


class SftEvalConfig(Config):
    """Loss on the held-out rows; at the end always, where there are some."""

    every: NonNegativeInt = 0
    """Steps between evaluations; 0 for only those at start and end."""


class LessonsConfig(Config):
    """What `braid sft` and `braid reward-model` have in common."""

    name: Name
    """Name of the run; its default directory is `runs/<name>`."""
    seed: int = 1
    """Seed of the order of rows."""
    deterministic: bool = False
    """Have two runs of this recipe on like machines give the same metrics, bit for bit, at the cost
    of speed."""
    epochs: PositiveInt = 1
    """Times that each row is trained on."""
    num_steps: PositiveInt | None = None
    """Optimizer steps; empty takes as many as the epochs have."""
    ray_address: str | None = None
    """Cluster to join (`auto` or host:port); empty starts a private one on this machine."""
    allow_unauthenticated_ray: bool = False
    """Join a Ray cluster without token authentication, on which whoever reaches its ports can run
    code; refused otherwise."""
    model: ModelConfig
    """What is trained."""
    batch: SftBatchConfig = SftBatchConfig()
    """Batch arithmetic."""
    trainer: TrainerConfig = TrainerConfig()
    """Training group."""
    eval: SftEvalConfig = SftEvalConfig()
    """Held-out loss."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    logging: LoggingConfig = LoggingConfig()
    """Logs."""
    health: HealthConfig = HealthConfig()
    """Deadlines."""


class SftConfig(LessonsConfig):
    """A whole run of supervised fine-tuning."""

    type: Literal["sft"]
    """Tells this recipe from others."""
    data: SftDataConfig
    """What is imitated."""


class RewardModelRecipe(LessonsConfig):
    """A whole training of a reward model, by the Bradley-Terry loss."""

    type: Literal["reward_model"]
    """Tells this recipe from others."""
    data: PreferenceDataConfig
    """What is preferred."""


LessonRecipe: TypeAlias = SftConfig | RewardModelRecipe
AnyRecipe: TypeAlias = RunConfig | LessonRecipe
"""What a run directory may have been made by."""
_OBJECTIVES: dict[str, tuple[str, Literal["token_mean", "sequence_mean"]]] = {
    "sft": ("trainer.supervised:cross_entropy", "token_mean"),
    "reward_model": ("trainer.reward_trainer:bradley_terry", "sequence_mean"),
}
"""Type of recipe -> its loss, and what the sum is divided by: answer tokens, or pairs."""


def training_run(cfg: LessonRecipe, num_steps: int) -> RunConfig:
    """Return the run that trainer, placement and records see: the same sections, one source that
    nothing samples, and the recipe's loss."""
    loss, aggregation = _OBJECTIVES[cfg.type]
    return RunConfig(
        name=cfg.name,
        seed=cfg.seed,
        deterministic=cfg.deterministic,
        num_steps=num_steps,
        ray_address=cfg.ray_address,
        allow_unauthenticated_ray=cfg.allow_unauthenticated_ray,
        model=cfg.model,
        sources=(SourceConfig(name="rows", data=DataConfig(jsonl=("-",))),),
        batch=BatchConfig(
            groups_per_step=cfg.batch.rows_per_step,
            max_tokens_per_microbatch=cfg.batch.max_tokens_per_microbatch,
            packing=cfg.batch.packing,
        ),
        algorithm=AlgorithmConfig(
            loss=PlugConfig(use=loss),
            aggregation=aggregation,
            correction=CorrectionConfig(weight="none"),
        ),
        trainer=cfg.trainer,
        checkpoint=cfg.checkpoint,
        logging=cfg.logging,
        health=cfg.health,
    )
