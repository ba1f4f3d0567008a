"""The training side: reference, optimizer, ZeRO, and how weights leave it."""

from typing import Literal

from configs.base import (
    Config,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from configs.engines import ActorsConfig
from configs.lora import LoraConfig
from configs.refresh import RefreshConfig


class ReferenceConfig(Config):
    """The reference policy; started only where some KL coefficient is above 0."""

    actors: ActorsConfig = ActorsConfig()
    """Reference actors."""
    path: str | None = None
    """Its model; empty takes `model.path`."""
    refresh: RefreshConfig | None = None
    """How it follows the policy; empty leaves it frozen."""


class OptimizerConfig(Config):
    """AdamW and its schedule."""

    lr: PositiveFloat = 1e-6
    """Learning rate after warm-up."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay rates of the moments."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps over which the rate rises linearly from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the rate after warm-up, reaching `min_lr_ratio` at the last step."""
    min_lr_ratio: Fraction = 0.0
    """Share of `lr` left at the end of a decay."""
    max_grad_norm: PositiveFloat = 1.0
    """Global norm to which gradients are clipped."""


class NvmeConfig(Config):
    """Offload to a local NVMe disk (ZeRO-Infinity, arXiv:2104.07857)."""

    path: str
    """Folder on the disk, the same on every node; each rank writes files of its own there."""
    buffers: PositiveInt = 4
    """Buffers of pinned memory that optimizer states go through."""
    block_kib: PositiveInt = 1024
    """Size of one read or write."""
    queue_depth: PositiveInt = 8
    """Reads and writes that a disk is given at once."""
    threads: PositiveInt = 1
    """Threads a rank for them."""


class TrainerConfig(Config):
    """The training group (DeepSpeed ZeRO)."""

    actors: ActorsConfig = ActorsConfig()
    """Ranks; `count` is the data-parallel size times `sequence_parallel`."""
    sequence_parallel: PositiveInt = 1
    """Ranks that share each packed row, for samples too long for one (Ulysses)."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What is partitioned: 0 nothing, 1 optimizer, 2 and gradients, 3 and parameters."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and its schedule."""
    lora: LoraConfig | None = None
    """Train low-rank adapters alone; empty trains all weights. Engines get merged weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    logprob_chunk: PositiveInt = 1024
    """Tokens whose logits [chunk, V] are held at once."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What ZeRO keeps in CPU memory: the optimizer (stage 1 on), and parameters (stage 3)."""
    nvme: NvmeConfig | None = None
    """Disk that takes the place of CPU memory for what is offloaded (stage 3)."""
    collective_timeout_s: PositiveFloat = 600.0
    """Seconds after which a collective among trainer ranks fails."""

    @property
    def data_parallel(self) -> int:
        """Rows of a plan: ranks, or groups of them that share a row."""
        return self.actors.count // self.sequence_parallel


class WeightSyncConfig(Config):
    """How new weights reach the engines, and how that is checked."""

    backend: Literal["auto", "gloo", "nccl"] = "auto"
    """Collective backend; `auto` is nccl where rank 0 and every engine worker have a GPU each."""
    transport: Literal["auto", "broadcast", "shared"] = "auto"
    """`shared`: CUDA IPC or shared memory, for engines on the trainer's device; `auto` chooses."""
    bucket_mib: PositiveFloat = 256.0
    """Size of one of the two buffers through which tensors travel."""
    timeout_s: PositiveFloat = 120.0
    """Seconds that one sync may take; a silent peer is then killed and named."""
    verify_every: NonNegativeInt = 10
    """Syncs between logprob agreement checks; 0 checks only at start and after a restart."""
    verify_samples: PositiveInt = 4
    """Completions that each engine samples for an agreement check."""
    max_logprob_gap_median: PositiveFloat = 0.02
    """Bound on the median |engine - trainer| logprob over the sampled tokens."""
    max_logprob_gap_max: PositiveFloat = 3.0
    """Bound on the largest |engine - trainer| logprob; in bfloat16 a rare token may differ by 1."""
    checksum_tensors: NonNegativeInt = 8
    """Tensors, drawn anew each sync, whose content is compared as loaded; 0 for none."""
