"""What a model is, and what runs it: sections shared by the policy, its engines and the judges."""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import BeforeValidator

from configs.base import (
    Config,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    matching,
)


def _pin(value: object) -> object:
    if value is False:
        return None
    if value is True:
        raise ValueError(
            "is true, which trusts whatever is there when it is loaded; pin what you read: the "
            "commit of the hub repository (40 hex digits), or sha256:... of a folder's Python files"
        )
    return value


CodePin = Annotated[
    Annotated[
        str,
        matching(
            r"^([0-9a-f]{40}|sha256:[0-9a-f]{64})$",
            "a pin is a commit of 40 hex digits, or sha256: and 64 hex digits",
        ),
    ]
    | None,
    BeforeValidator(_pin),
]
"""What of a model's own Python was read, and may run."""


class ModelConfig(Config):
    """A language model: the policy at the start of the run, or a judge."""

    path: str
    """Folder or hub name of a Hugging Face causal LM with tokenizer and chat template."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Numbers of the forward pass, in trainer, reference and engine alike."""
    fp32_head: bool = False
    """Multiply by the output head in float32 whatever `dtype` is, in trainer, reference and engine
    alike: their logprobs come closer (arXiv:2506.13585)."""
    max_model_len: PositiveInt = 4096
    """Most tokens of one sequence, prompt and completion together."""
    trust_remote_code: CodePin = None
    """Pin of the model's own Python, which then runs: the commit of its hub repository, or
    `sha256:...` of a folder's Python files; empty runs none."""


class ActorsConfig(Config):
    """How many actors a group has and what each one needs."""

    count: PositiveInt = 1
    """Actors in the group; for the trainer, its ranks."""
    cpus: NonNegativeFloat = 0.5
    """CPU cores reserved by each actor."""
    gpus: NonNegativeFloat = 0.0
    """GPUs reserved by each actor; a fraction shares a GPU with a colocated group."""
    labels: dict[str, str] = {}
    """Ray node labels that the actors' nodes must carry."""
    colocate_with: Literal["trainer", "rollout", "reference", "critic", "reward"] | None = None
    """Put actor i into the bundle of actor i of that group, so that both share its devices."""


class RolloutConfig(Config):
    """The generation engines (vLLM)."""

    actors: ActorsConfig = ActorsConfig()
    """Engines, and what each one reserves (all GPUs of its TP x PP ranks)."""
    tensor_parallel: PositiveInt = 1
    """Ranks that share each layer of one engine."""
    pipeline_parallel: PositiveInt = 1
    """Stages of layers of one engine."""
    max_num_seqs: PositiveInt = 256
    """Most sequences that one engine decodes at once."""
    gpu_memory_utilization: Fraction = 0.85
    """Share of each GPU that an engine may take."""
    kv_cache_gib: PositiveInt = 1
    """KV cache of each engine on CPU, GiB."""
    enforce_eager: bool = False
    """Skip CUDA graphs and compilation (always so on CPU)."""
    start_attempts: PositiveInt = 3
    """Times a failing engine start is tried."""
    no_progress_s: PositiveFloat = 120.0
    """Seconds without a new token, while requests wait, after which an engine is called dead."""


class EngineRun(Protocol):
    """What an engine needs to know of its run; a RunConfig is one."""

    @property
    def model(self) -> ModelConfig:
        """What it runs."""
        ...

    @property
    def rollout(self) -> RolloutConfig:
        """How."""
        ...

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether equal requests must get equal answers, bit for bit."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The same of an engine that is not the policy's."""

    model: ModelConfig
    rollout: RolloutConfig
    seed: int
    deterministic: bool = False
