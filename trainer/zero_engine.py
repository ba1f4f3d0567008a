"""One rank of a model under DeepSpeed's ZeRO: what the policy's and the critic's engine share.

What must hold:
- The loss of an optimizer step is sum / denominator, counted over all ranks before anything is
  sharded or masked. Each rank backs up its own sum times world_size / denominator, because
  DeepSpeed averages gradients over ranks; accumulation is 1 in DeepSpeed's eyes, so nothing else
  is divided.
- All ranks make the same calls with equally many micro-batches: every forward, backward and
  reduction may be a collective.
- No optimizer step happens on a non-finite loss or gradient, nor beyond the step's bounds, and all
  ranks learn of it together.
"""

import logging
import math
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeAlias, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from pydantic import JsonValue
from torch import Tensor, nn

from configs.deepspeed import deepspeed_config
from configs.schema import RunConfig
from rollouts.types import UpdateBounds
from trainer import checkpoint
from trainer.build_lock import build_under_lock
from trainer.errors import NonFiniteError
from trainer.schedule import lr_factor
from trainer.update import Update, refuses_loss, take_step
from trainer.zero3 import partitioned_loading

M = TypeVar("M", bound=nn.Module)
Recompute: TypeAlias = Literal["off", "reentrant", "non_reentrant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """One training step, the same on every rank but for the seconds."""

    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    """This rank's, by phase."""


class ZeroEngine(ABC, Generic[M]):
    """A model under ZeRO, as `cfg.model` and `cfg.trainer` say.

    torch.distributed must be initialised by the caller, at world size 1 too.
    """

    phases: ClassVar[tuple[str, ...]] = ("forward_backward", "optimizer")
    prefix: ClassVar[str] = ""
    """Put before what an error is about."""

    def __init__(self, cfg: RunConfig, *, rank: int, world_size: int, total_optimizer_steps: int):
        if not dist.is_initialized():
            raise RuntimeError("initialise torch.distributed before building an engine")
        if (dist.get_rank(), dist.get_world_size()) != (rank, world_size):
            raise ValueError(f"{rank=}, {world_size=} differ from torch.distributed's")
        self.cfg = cfg
        self.rank, self.world_size = rank, world_size
        kind: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
        settings = deepspeed_config(cfg, device=kind)
        # DeepSpeed reads these; each Ray actor sees its own GPU as number 0.
        os.environ.setdefault("RANK", str(rank))
        os.environ.setdefault("WORLD_SIZE", str(world_size))
        os.environ.setdefault("LOCAL_RANK", "0")
        _quieten()
        build_under_lock()
        model = self._load_model(settings)
        schedule = lr_factor(cfg.trainer.optimizer, total_steps=total_optimizer_steps)
        initialize: Any = deepspeed.initialize  # whose types are narrower than what it takes
        self._engine, _, _, self._scheduler = initialize(
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            lr_scheduler=lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, schedule),
            config=settings,
        )
        self.device = torch.device(self._engine.device)
        self._step = 0
        self._bounds = UpdateBounds()
        self._seconds = dict.fromkeys(self.phases, 0.0)

    def _load_model(self, settings: dict[str, JsonValue]) -> M:
        """Load the model; under ZeRO-3 each tensor is partitioned as it is read."""
        stage3 = self.cfg.trainer.zero_stage == 3
        recompute: Recompute = "off"
        if self.cfg.trainer.gradient_checkpointing:
            # Non-reentrant recomputation sees ZeRO-3's released parameters as changed tensors.
            recompute = "reentrant" if stage3 else "non_reentrant"
        with partitioned_loading(settings) if stage3 else nullcontext():
            model = self._load(recompute)
        self._adapt(model)
        return model

    @abstractmethod
    def _load(self, recompute: Recompute) -> M:
        """Load the model of `cfg.model`."""

    def _adapt(self, model: M) -> None:
        """Change the loaded model before DeepSpeed takes it."""

    @property
    def model(self) -> M:
        """The network, its parameters partitioned under ZeRO-3."""
        module: M = self._engine.module
        return module

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps done since the run began, resumes included."""
        return int(self._engine.global_steps)

    @property
    def _lr(self) -> float:
        """Rate of the next optimizer step."""
        return float(self._engine.get_lr()[0])

    def _begin(self, step: int, bounds: UpdateBounds | None = None) -> None:
        """Note the training step that begins, and its bounds, and start its times at 0."""
        self._step, self._bounds = step, bounds or UpdateBounds()
        self._seconds = dict.fromkeys(self.phases, 0.0)

    def _backward(self, total: Tensor, denominator: int, *, last: bool) -> None:
        """Back up one micro-batch's sum.

        Args:
            last: whether it is the last one before the optimizer step.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(total * (self.world_size / denominator), scale_wrt_gas=False)

    def _share(self, *mine: Tensor) -> list[list[float]]:
        """Return every rank's numbers, a list a number, by rank. A collective."""
        packed = torch.stack(mine)
        shared = [torch.empty_like(packed) for _ in range(self.world_size)]
        dist.all_gather(shared, packed)
        rows: list[list[float]] = torch.stack(shared).t().tolist()
        return rows

    def _sum_losses(self, losses: list[float]) -> float:
        """Add up the ranks' losses. Where one is not finite: NonFiniteError on all ranks, or NaN
        where the bounds have the update skipped."""
        for rank, value in enumerate(losses):
            if not math.isfinite(value):
                if self._bounds.skip_non_finite:
                    return math.nan
                raise NonFiniteError(
                    what=f"{self.prefix}loss", step=self._step, rank=rank, value=value
                )
        return math.fsum(losses)

    def _optimizer_step(self, loss: float) -> Update:
        """Clip and update, where the bounds allow it. NonFiniteError leaves weights alone.

        DeepSpeed's wrapped optimizers skip the update on every rank when the reduced norm is not
        finite. A bare optimizer (stage 0 in fp32) has no such guard, so its norm is taken first.
        """
        bounds = self._bounds
        bare = self.cfg.trainer.zero_stage == 0 and self.cfg.model.dtype == "float32"
        refused = refuses_loss(bounds, loss)
        update = take_step(self._engine, bounds, refused=refused, bare=bare)
        norm = update.grad_norm
        if not math.isfinite(norm) and not bounds.skip_non_finite:
            what = f"{self.prefix}grad norm"
            raise NonFiniteError(what=what, step=self._step, rank=None, value=norm)
        return update

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds[phase] += time.perf_counter() - start

    def save(self, folder: str | Path) -> None:
        """Write this rank's part of a checkpoint into `folder`. A collective."""
        checkpoint.save(self._engine, self.cfg, Path(folder))

    def load(self, folder: str | Path) -> None:
        """Set weights, optimizer, schedule and generators from `folder`. A collective."""
        checkpoint.load(self._engine, self.cfg, Path(folder))


def _quieten() -> None:
    """Keep DeepSpeed's running commentary out of the log; its warnings stay."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # torch deprecates what DeepSpeed calls in every reduction.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger"
    )
