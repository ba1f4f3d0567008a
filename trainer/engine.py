"""One rank of the training group: DeepSpeed around the policy.

What must hold:
- The loss of an optimizer step is sum / denominator, counted over all ranks before anything is
  sharded or masked. Each rank backs up its own sum times world_size / denominator, because
  DeepSpeed averages gradients over ranks; accumulation is 1 in DeepSpeed's eyes, so nothing else
  is divided.
- All ranks make the same calls with equally many micro-batches: every forward, backward and
  reduction may be a collective.
- No optimizer step happens on a non-finite loss or gradient, and all ranks learn of it together.
"""

import logging
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from pydantic import JsonValue
from torch import Tensor

from configs.deepspeed import deepspeed_config
from configs.schema import RunConfig
from rollouts.packing import apply_kl_to_advantages
from rollouts.types import F32, MicroBatch
from trainer import checkpoint
from trainer.batch import DeviceBatch, segments, to_device
from trainer.controls import Controls
from trainer.corrections import correction_weights
from trainer.errors import NonFiniteError, RatioError
from trainer.lora import add_adapter
from trainer.loss import LossInputs, LossOutput, sample_sum
from trainer.metrics import Metric, reduce_metrics
from trainer.model import PolicyModel, load_policy
from trainer.objectives import resolve_loss
from trainer.packing_check import check_packing
from trainer.schedule import lr_factor
from trainer.scorer import score_micro_batches
from trainer.sequence import share_rows
from trainer.summary import MinibatchMetrics, summary
from trainer.weights import PublishedWeights, WeightSpec
from trainer.zero3 import partitioned_loading

RATIO_TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Bound on |policy / proximal - 1| before the first update, where both passes run alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Minibatch:
    """This rank's share of one optimizer step."""

    micro_batches: tuple[MicroBatch, ...]
    """As many on every rank; empty ones fill up."""
    num_loss_tokens: int
    """Over all ranks."""
    num_samples: int
    """With loss tokens, over all ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """One training step, the same on every rank but for the seconds."""

    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    """This rank's, by phase: proximal, forward_backward, optimizer."""


class PolicyEngine:
    """The policy under ZeRO: trains, scores, hands out weights, saves and loads.

    torch.distributed must be initialised by the caller, at world size 1 too.
    """

    def __init__(self, cfg: RunConfig, *, rank: int, world_size: int, total_optimizer_steps: int):
        if not dist.is_initialized():
            raise RuntimeError("initialise torch.distributed before building a PolicyEngine")
        if (dist.get_rank(), dist.get_world_size()) != (rank, world_size):
            raise ValueError(f"{rank=}, {world_size=} differ from torch.distributed's")
        self.cfg = cfg
        self.rank, self.world_size = rank, world_size
        self._copies = cfg.trainer.sequence_parallel  # ranks with the same micro-batches
        self._loss = resolve_loss(cfg.algorithm.loss)
        self._controls = Controls.start(cfg.algorithm)
        kind: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
        settings = deepspeed_config(cfg, device=kind)
        # DeepSpeed reads these; each Ray actor sees its own GPU as number 0.
        os.environ.setdefault("RANK", str(rank))
        os.environ.setdefault("WORLD_SIZE", str(world_size))
        os.environ.setdefault("LOCAL_RANK", "0")
        _quieten()
        model = self._load_model(settings)
        schedule = lr_factor(cfg.trainer.optimizer, total_steps=total_optimizer_steps)
        self._engine, _, _, self._scheduler = deepspeed.initialize(
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            lr_scheduler=lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, schedule),
            config=settings,
        )
        self.device = torch.device(self._engine.device)
        check_packing(self._engine, self.model, self.device)
        if cfg.trainer.sequence_parallel > 1:
            size = cfg.trainer.sequence_parallel
            share_rows(self._engine, self.model, size, self.device)
        self._step = 0
        self._published = PublishedWeights(
            self.model.network, partitioned=cfg.trainer.zero_stage == 3
        )
        self._seconds = {"proximal": 0.0, "forward_backward": 0.0, "optimizer": 0.0}

    def _load_model(self, settings: dict[str, JsonValue]) -> PolicyModel:
        """Load the policy; under ZeRO-3 each tensor is partitioned as it is read."""
        stage3 = self.cfg.trainer.zero_stage == 3
        recompute: Literal["off", "reentrant", "non_reentrant"] = "off"
        if self.cfg.trainer.gradient_checkpointing:
            # Non-reentrant recomputation sees ZeRO-3's released parameters as changed tensors.
            recompute = "reentrant" if stage3 else "non_reentrant"
        with partitioned_loading(settings) if stage3 else nullcontext():
            model = load_policy(
                self.cfg.model,
                packing=self.cfg.batch.packing,
                logprob_chunk=self.cfg.trainer.logprob_chunk,
                gradient_checkpointing=recompute,
            )
        if self.cfg.trainer.lora is not None:
            add_adapter(model.network, self.cfg.trainer.lora, seed=self.cfg.seed)
        return model

    @property
    def model(self) -> PolicyModel:
        """The policy network, its parameters partitioned under ZeRO-3."""
        module: PolicyModel = self._engine.module
        return module

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps done since the run began, resumes included."""
        return int(self._engine.global_steps)

    # Training

    def train_step(self, step: int, minibatches: Sequence[Minibatch]) -> StepOutcome:
        """Train on one step's minibatches, in order.

        With several, proximal logprobs of all of them are computed before the first update and
        frozen; the first one's ratio must then be 1 (RatioError). Raises NonFiniteError.
        """
        if not minibatches:
            raise ValueError(f"step {step} has no minibatches")
        self._step = step
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        proximal: list[list[F32]] | None = None
        if len(minibatches) > 1:
            with self._timed("proximal"):
                proximal = [self.token_logprobs(m.micro_batches) for m in minibatches]
        done: list[MinibatchMetrics] = []
        for i, minibatch in enumerate(minibatches):
            frozen = None if proximal is None else proximal[i]
            tolerance = RATIO_TOLERANCE[self.cfg.model.dtype] if i == 0 else math.inf
            done.append(self._train_minibatch(minibatch, frozen, tolerance))
        metrics = summary(done)
        algorithm = self.cfg.algorithm
        if algorithm.kl.target is not None:
            metrics["kl_scale"] = self._controls.kl_scale
        if algorithm.entropy.coef > 0 or algorithm.entropy.target is not None:
            metrics["entropy_coef"] = self._controls.bonus(algorithm)
        self._controls.follow(algorithm, metrics)
        return StepOutcome(metrics=metrics, seconds=dict(self._seconds))

    def train_minibatch(
        self, minibatch: Minibatch, proximal: Sequence[F32] | None
    ) -> MinibatchMetrics:
        """Do one optimizer step.

        Where `algorithm.kl.placement` is `reward`, the KL is taken from the advantages here.

        Args:
            proximal: [T] for each micro-batch; None takes the policy's own, so the ratio is 1.
        """
        return self._train_minibatch(minibatch, proximal, math.inf)

    def _train_minibatch(
        self, minibatch: Minibatch, proximal: Sequence[F32] | None, ratio_tolerance: float
    ) -> MinibatchMetrics:
        micro_batches = minibatch.micro_batches
        if minibatch.num_loss_tokens < 1 or minibatch.num_samples < 1 or not micro_batches:
            raise ValueError(
                f"nothing to train on: {minibatch.num_loss_tokens} loss tokens of "
                f"{minibatch.num_samples} samples in {len(micro_batches)} micro-batches"
            )
        denominator = self._denominator(minibatch)
        lr = float(self._engine.get_lr()[0])
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        deviation = torch.zeros((), dtype=torch.float64, device=self.device)
        parts: list[Mapping[str, Metric]] = []
        with self._timed("forward_backward"):
            for i, batch in enumerate(micro_batches):
                last = i == len(micro_batches) - 1
                self._engine.set_gradient_accumulation_boundary(last)
                x, out = self._forward(batch, None if proximal is None else proximal[i])
                scale = self.world_size / denominator
                self._engine.backward(out.total * scale, scale_wrt_gas=False)
                loss += out.total.detach().double() / denominator / self._copies
                deviation = torch.maximum(deviation, _deviation(x))
                parts.append(out.metrics)
            total, worst = self._agree(loss, deviation, ratio_tolerance)
        with self._timed("optimizer"):
            grad_norm = self._optimizer_step()
        return MinibatchMetrics(
            loss=total,
            denominator=denominator,
            grad_norm=grad_norm,
            lr=lr,
            ratio_max_deviation=worst,
            num_loss_tokens=minibatch.num_loss_tokens,
            stats=reduce_metrics(parts, self.device, copies=self._copies),
        )

    def _denominator(self, minibatch: Minibatch) -> int:
        """What the loss's sum over all ranks is divided by."""
        aggregation = self.cfg.algorithm.aggregation
        if aggregation == "token_mean":
            return minibatch.num_loss_tokens
        if aggregation == "sequence_mean":
            return minibatch.num_samples
        return minibatch.num_samples * self.cfg.constant_tokens

    def _forward(self, batch: MicroBatch, proximal: F32 | None) -> tuple[LossInputs, LossOutput]:
        algorithm = self.cfg.algorithm
        kl = algorithm.kl
        batch = replace(batch, kl_coef=batch.kl_coef * np.float32(self._controls.kl_scale))
        if kl.placement == "reward":
            batch = apply_kl_to_advantages(batch, estimator=kl.estimator)
        b: DeviceBatch = to_device(batch, self.device)
        logprobs, entropy = self._engine(
            b.token_ids, b.positions, b.cu_seqlens, b.temperature, b.loss_mask
        )
        if proximal is None or len(batch.token_ids) == 0:
            frozen = logprobs.detach()
        else:
            frozen = torch.from_numpy(np.asarray(proximal, np.float32)).to(self.device)
        x = self._loss_inputs(b, logprobs, entropy, frozen)
        out = self._loss(x)
        if out.total.requires_grad:
            return x, out
        # A loss that used no token leaves no graph: anchor it, so that backward still runs.
        anchored = out.total + 0.0 * x.policy_logprobs.sum()
        return x, LossOutput(total=anchored, metrics=out.metrics)

    def _loss_inputs(
        self, b: DeviceBatch, logprobs: Tensor, entropy: Tensor, proximal: Tensor
    ) -> LossInputs:
        algorithm = self.cfg.algorithm
        segment = segments(b.cu_seqlens)
        weight = b.loss_weight
        if algorithm.aggregation == "sequence_mean":
            tokens = sample_sum(torch.ones_like(weight), b.loss_mask, segment)
            weight = weight / tokens.clamp(min=1)
        return LossInputs(
            policy_logprobs=logprobs,
            proximal_logprobs=proximal,
            rollout_logprobs=b.rollout_logprobs,
            ref_logprobs=b.ref_logprobs,
            advantages=b.advantages,
            loss_mask=b.loss_mask,
            segment=segment,
            loss_weight=weight,
            correction=correction_weights(
                algorithm.correction,
                policy=logprobs,
                proximal=proximal,
                rollout=b.rollout_logprobs,
                advantages=b.advantages,
                mask=b.loss_mask,
                segment=segment,
            ),
            kl_coef=b.kl_coef,
            clip_low=b.clip_low,
            clip_high=b.clip_high,
            entropy=entropy,
            entropy_coef=self._controls.bonus(algorithm),
            kl_estimator=algorithm.kl.estimator,
            kl_in_loss=algorithm.kl.placement == "loss",
        ).filled()

    def _agree(self, loss: Tensor, deviation: Tensor, tolerance: float) -> tuple[float, float]:
        """Share every rank's loss and ratio; raise on all ranks if one is out of bounds."""
        mine = torch.stack([loss, deviation])
        shared = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(shared, mine)
        losses, deviations = torch.stack(shared).t().tolist()
        for rank, value in enumerate(losses):
            if not math.isfinite(value):
                raise NonFiniteError(what="loss", step=self._step, rank=rank, value=value)
        worst = max(deviations)
        if not worst <= tolerance:
            raise RatioError(step=self._step, deviation=worst, tolerance=tolerance)
        return math.fsum(losses), worst

    def _optimizer_step(self) -> float:
        """Clip and update; return the norm before clipping. NonFiniteError leaves weights alone.

        DeepSpeed's wrapped optimizers skip the update on every rank when the reduced norm is not
        finite. A bare optimizer (stage 0 in fp32) has no such guard, so its norm is taken first.
        """
        bare = self.cfg.trainer.zero_stage == 0 and self.cfg.model.dtype == "float32"
        norm = math.nan
        if bare:
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])))
            if not math.isfinite(norm):
                raise NonFiniteError(what="grad norm", step=self._step, rank=None, value=norm)
        self._engine.step()
        if not bare:
            norm = float(self._engine.get_global_grad_norm())
        if not self._engine.was_step_applied() or not math.isfinite(norm):
            raise NonFiniteError(what="grad norm", step=self._step, rank=None, value=norm)
        return norm

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seconds[phase] += time.perf_counter() - start

    # Scoring

    def token_logprobs(self, micro_batches: Sequence[MicroBatch]) -> list[F32]:
        """Score each micro-batch's loss tokens with the weights as they are: [T], 0 elsewhere.

        Under ZeRO-3 a collective: give equally many micro-batches on every rank.
        """
        return score_micro_batches(self._engine, micro_batches, self.device)

    # Weights

    def weight_specs(self) -> tuple[WeightSpec, ...]:
        """List all weights in Hugging Face names, a tied parameter once, in a fixed order."""
        return self._published.specs()

    @property
    def weights_stay(self) -> bool:
        """Whether what `gathered` gave lies unchanged in its place until the next update."""
        return self.cfg.trainer.zero_stage < 3 and not self._published.adapted

    def gathered(self, names: Sequence[str]) -> AbstractContextManager[dict[str, Tensor]]:
        """Give the named weights in full, adapters merged, on this rank's device.

        Under ZeRO-3 a collective; the tensors die with the context, which never nests.
        """
        return self._published.gathered(names)

    # Checkpoints

    def save(self, folder: str | Path) -> None:
        """Write this rank's part of a checkpoint into `folder`. A collective."""
        checkpoint.save(self._engine, self.cfg, Path(folder), self._controls)

    def load(self, folder: str | Path) -> None:
        """Set weights, optimizer, schedule and generators from `folder`. A collective."""
        self._controls = checkpoint.load(self._engine, self.cfg, Path(folder))


def _quieten() -> None:
    """Keep DeepSpeed's running commentary out of the log; its warnings stay."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # torch deprecates what DeepSpeed calls in every reduction.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger"
    )


def _deviation(x: LossInputs) -> Tensor:
    gap = torch.where(x.loss_mask, x.policy_logprobs.detach() - x.proximal_logprobs, 0.0)
    return torch.expm1(gap.double()).abs().max()
