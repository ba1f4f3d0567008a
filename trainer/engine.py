"""One rank of the training group: the policy under ZeRO (`trainer.zero_engine`)."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from configs.schema import RunConfig
from rollouts.packing import apply_kl_to_advantages
from rollouts.types import F32, MicroBatch, UpdateBounds
from trainer.batch import DeviceBatch, segments, to_device
from trainer.controls import Controls
from trainer.corrections import correction_weights
from trainer.epochs import plan_passes
from trainer.errors import RatioError
from trainer.lora import add_adapter
from trainer.loss import LossInputs, LossOutput, sample_sum
from trainer.metrics import Metric, reduce_metrics
from trainer.model import PolicyModel, load_policy
from trainer.objectives import resolve_loss
from trainer.packing_check import check_packing
from trainer.scorer import score_micro_batches
from trainer.sequence import share_rows
from trainer.summary import MinibatchMetrics, summary
from trainer.weights import PublishedWeights, WeightSpec
from trainer.zero_engine import Recompute, StepOutcome, ZeroEngine

__all__ = ["RATIO_TOLERANCE", "Minibatch", "PolicyEngine", "StepOutcome", "WeightSpec"]

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


class PolicyEngine(ZeroEngine[PolicyModel]):
    """The policy under ZeRO: trains, scores, hands out weights, saves and loads."""

    phases: ClassVar[tuple[str, ...]] = ("proximal", "forward_backward", "optimizer")

    def __init__(self, cfg: RunConfig, *, rank: int, world_size: int, total_optimizer_steps: int):
        super().__init__(
            cfg, rank=rank, world_size=world_size, total_optimizer_steps=total_optimizer_steps
        )
        self._copies = cfg.trainer.sequence_parallel  # ranks with the same micro-batches
        self._loss = resolve_loss(cfg.algorithm.loss)
        self._controls = Controls.start(cfg.algorithm)
        check_packing(self._engine, self.model, self.device)
        if cfg.trainer.sequence_parallel > 1:
            share_rows(self._engine, self.model, cfg.trainer.sequence_parallel, self.device)
        self._published = PublishedWeights(
            self.model.network, partitioned=cfg.trainer.zero_stage == 3
        )

    def _load(self, recompute: Recompute) -> PolicyModel:
        return load_policy(
            self.cfg.model,
            packing=self.cfg.batch.packing,
            logprob_chunk=self.cfg.trainer.logprob_chunk,
            gradient_checkpointing=recompute,
        )

    def _adapt(self, model: PolicyModel) -> None:
        if self.cfg.trainer.lora is not None:
            add_adapter(model.network, self.cfg.trainer.lora, seed=self.cfg.seed)

    # Training

    def train_step(
        self, step: int, minibatches: Sequence[Minibatch], bounds: UpdateBounds | None = None
    ) -> StepOutcome:
        """Train on one step's minibatches, in order, in further epochs in another one; those beyond
        the bounds leave no trace.

        With several updates, proximal logprobs of all minibatches are computed before the first and
        frozen; the first one's ratio must then be 1 (RatioError). Raises NonFiniteError.
        """
        if not minibatches:
            raise ValueError(f"step {step} has no minibatches")
        self._begin(step, bounds)
        epochs = self.cfg.batch.epochs_per_step
        passes = plan_passes(len(minibatches), epochs=epochs, seed=self.cfg.seed, step=step)
        proximal: list[list[F32]] | None = None
        if len(passes.order) > 1:
            with self._timed("proximal"):
                proximal = [self.token_logprobs(m.micro_batches) for m in minibatches]
        done: list[MinibatchMetrics] = []
        for n, i in enumerate(passes.order):
            frozen = None if proximal is None else proximal[i]
            tolerance = RATIO_TOLERANCE[self.cfg.model.dtype] if n == 0 else math.inf
            done.append(self.train_minibatch(minibatches[i], frozen, tolerance))
        metrics = summary(done, epochs=epochs)
        algorithm = self.cfg.algorithm
        if algorithm.kl.target is not None:
            metrics["kl_scale"] = self._controls.kl_scale
        if algorithm.entropy.coef > 0 or algorithm.entropy.target is not None:
            metrics["entropy_coef"] = self._controls.bonus(algorithm)
        if not metrics["non_finite"]:
            self._controls.follow(algorithm, metrics)
        return StepOutcome(metrics=metrics, seconds=dict(self._seconds))

    def train_minibatch(
        self,
        minibatch: Minibatch,
        proximal: Sequence[F32] | None,
        ratio_tolerance: float = math.inf,
    ) -> MinibatchMetrics:
        """Do one optimizer step.

        Where `algorithm.kl.placement` is `reward`, the KL is taken from the advantages here.

        Args:
            proximal: [T] for each micro-batch; None takes the policy's own, so the ratio is 1.
            ratio_tolerance: how far from 1 a ratio may be before the step is refused.
        """
        micro_batches = minibatch.micro_batches
        if minibatch.num_loss_tokens < 1 or minibatch.num_samples < 1 or not micro_batches:
            raise ValueError(
                f"nothing to train on: {minibatch.num_loss_tokens} loss tokens of "
                f"{minibatch.num_samples} samples in {len(micro_batches)} micro-batches"
            )
        denominator = self._denominator(minibatch)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        deviation = torch.zeros((), dtype=torch.float64, device=self.device)
        parts: list[Mapping[str, Metric]] = []
        with self._timed("forward_backward"):
            for i, batch in enumerate(micro_batches):
                x, out = self._forward(batch, None if proximal is None else proximal[i])
                self._backward(out.total, denominator, last=i == len(micro_batches) - 1)
                loss += out.total.detach().double() / denominator / self._copies
                deviation = torch.maximum(deviation, _deviation(x))
                parts.append({**Controls.followed(self.cfg.algorithm, x), **out.metrics})
            total, worst = self._agree(loss, deviation, ratio_tolerance)
        with self._timed("optimizer"):
            update = self._optimizer_step(total)
        return MinibatchMetrics(
            loss=total,
            denominator=denominator,
            grad_norm=update.grad_norm,
            lr=update.lr,
            applied=update.applied,
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
        losses, deviations = self._share(loss, deviation)
        total, worst = self._sum_losses(losses), max(deviations)
        if math.isnan(total):
            return math.nan, math.nan
        if not worst <= tolerance:
            raise RatioError(step=self._step, deviation=worst, tolerance=tolerance)
        return total, worst

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
        if self.rank == 0:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._controls.save(Path(folder))
        super().save(folder)

    def load(self, folder: str | Path) -> None:
        """Set weights, optimizer, schedule, controls and generators from `folder`. A collective."""
        super().load(folder)
        self._controls = Controls.load(Path(folder))


def _deviation(x: LossInputs) -> Tensor:
    gap = torch.where(x.loss_mask, x.policy_logprobs.detach() - x.proximal_logprobs, 0.0)
    return torch.expm1(gap.double()).abs().max()
