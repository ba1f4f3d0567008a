"""One rank of the critic under ZeRO: says values, and learns returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from configs.schema import RunConfig
from rollouts.types import F32, MicroBatch, UpdateBounds
from rollouts.values import ValueBatch
from trainer.batch import to_device
from trainer.critic_model import CriticModel, check_vocabulary, load_critic
from trainer.epochs import plan_passes
from trainer.metrics import Mean, Metric, Reduced, reduce_metrics
from trainer.packing_check import keep_apart
from trainer.update import Update
from trainer.zero_engine import Recompute, StepOutcome, ZeroEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueMinibatch:
    """This rank's share of one optimizer step."""

    batches: tuple[ValueBatch, ...]
    """As many on every rank; empty ones fill up."""
    num_loss_tokens: int
    """Over all ranks."""


class CriticEngine(ZeroEngine[CriticModel]):
    """The critic under ZeRO.

    Args:
        cfg: of the run; its `critic` section takes the place of `trainer`.
    """

    prefix: ClassVar[str] = "critic's "

    def __init__(self, cfg: RunConfig, *, rank: int, world_size: int, total_optimizer_steps: int):
        self._policy = cfg.model
        super().__init__(
            cfg.of_critic,
            rank=rank,
            world_size=world_size,
            total_optimizer_steps=total_optimizer_steps,
        )
        keep_apart(self._trace, self.model, self.device)

    def _trace(self, ids: Tensor, positions: Tensor, bounds: Tensor) -> Tensor:
        everywhere = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        traced: Tensor = self._engine(ids, positions, bounds, everywhere, traced=True)
        return traced

    def _load(self, recompute: Recompute) -> CriticModel:
        own = self.cfg.critic.path is not None
        if own:
            check_vocabulary(self._policy, self.cfg.model)
        return load_critic(
            self.cfg.model,
            packing=self.cfg.batch.packing,
            gradient_checkpointing=recompute,
            where="critic.path" if own else "model.path",
        )

    @torch.no_grad()
    def values(self, micro_batches: Sequence[MicroBatch]) -> list[F32]:
        """Say the values of each micro-batch's loss tokens, with the weights as they are: [T], 0
        elsewhere. Under ZeRO-3 a collective: give equally many micro-batches on every rank."""
        return [
            self._values(batch)[: len(batch.token_ids)].cpu().numpy().astype(np.float32)
            for batch in micro_batches
        ]

    def train_step(
        self, step: int, minibatches: Sequence[ValueMinibatch], bounds: UpdateBounds | None = None
    ) -> StepOutcome:
        """Train on one step's minibatches, in the policy's order. Raises NonFiniteError.

        Args:
            bounds: the policy's, of which the critic heeds `skip_non_finite` alone.
        """
        if not minibatches:
            raise ValueError(f"step {step} has no minibatches")
        skips = bounds is not None and bounds.skip_non_finite
        self._begin(step, UpdateBounds(skip_non_finite=skips))
        epochs = self.cfg.batch.epochs_per_step
        passes = plan_passes(len(minibatches), epochs=epochs, seed=self.cfg.seed, step=step)
        done = list[Update]()
        merged: dict[str, Reduced] = {}
        for i in passes.order:
            update, stats = self._train_minibatch(minibatches[i])
            done.append(update)
            for name, stat in stats.items():
                merged[name] = merged[name].merge(stat) if name in merged else stat
        found = {n: s.result for n, s in merged.items() if s.result is not None}
        metrics = {
            "grad_norm": sum(u.grad_norm for u in done) / len(done),
            "lr": done[-1].lr,
            "non_finite": float(sum(not u.applied for u in done)),
            "loss_tokens": float(sum(m.num_loss_tokens for m in minibatches)),
            **_shown(found),
        }
        return StepOutcome(metrics=metrics, seconds=dict(self._seconds))

    def _train_minibatch(self, minibatch: ValueMinibatch) -> tuple[Update, Mapping[str, Reduced]]:
        if minibatch.num_loss_tokens < 1 or not minibatch.batches:
            raise ValueError(f"nothing to train on: {minibatch.num_loss_tokens} loss tokens")
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        parts: list[Mapping[str, Metric]] = []
        with self._timed("forward_backward"):
            for i, batch in enumerate(minibatch.batches):
                total, metrics = self._loss(batch)
                last = i == len(minibatch.batches) - 1
                self._backward(total, minibatch.num_loss_tokens, last=last)
                loss += total.detach().double() / minibatch.num_loss_tokens
                parts.append(metrics)
            (losses,) = self._share(loss)
            total_loss = self._sum_losses(losses)
        with self._timed("optimizer"):
            update = self._optimizer_step(total_loss)
        return update, reduce_metrics(parts, self.device)

    def _values(self, batch: MicroBatch) -> Tensor:
        b = to_device(batch, self.device)
        values: Tensor = self._engine(b.token_ids, b.positions, b.cu_seqlens, b.loss_mask)
        return values

    def _loss(self, batch: ValueBatch) -> tuple[Tensor, Mapping[str, Metric]]:
        values = self._values(batch.tokens)

        def stream(array: F32) -> Tensor:
            # an empty micro-batch is one dummy token outside the loss
            return torch.from_numpy(array if len(array) else np.zeros(1, np.float32)).to(values)

        mask = torch.zeros(len(values), dtype=torch.bool, device=values.device)
        if len(batch.tokens.token_ids):
            mask = torch.from_numpy(batch.tokens.loss_mask).to(values.device)
        return value_loss(
            values,
            before=stream(batch.values),
            returns=stream(batch.returns),
            mask=mask,
            clip=self.cfg.critic.value_clip,
        )


def value_loss(
    values: Tensor, *, before: Tensor, returns: Tensor, mask: Tensor, clip: float | None
) -> tuple[Tensor, dict[str, Metric]]:
    """Return the SUM of the value loss over the masked tokens, and metrics; all inputs [T].

    Per token max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2, the clipped value loss of
    PPO's reference implementation (arXiv:1707.06347; arXiv:2005.12729, section 3): a value that
    moved further towards its return than c teaches no more in this step.
    """
    error = (values - returns).square()
    held = error
    if clip is not None:
        near = before + (values - before).clamp(-clip, clip)
        held = (near - returns).square()
    per_token = torch.where(mask, 0.5 * torch.maximum(error, held), 0.0)
    gap = returns - before
    metrics: dict[str, Metric] = {
        "loss": Mean(per_token, mask),
        "clip_fraction": Mean(held > error, mask),
        "value": Mean(before, mask),
        "return": Mean(returns, mask),
        "return_square": Mean(returns.double().square(), mask),
        "gap": Mean(gap, mask),
        "gap_square": Mean(gap.double().square(), mask),
    }
    return per_token.sum(), metrics


def _shown(found: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics to log: in place of second moments, the share of the returns' variance
    that the values before the step explained, 1 - Var(R - V) / Var(R); not there where returns do
    not vary."""
    shown = {n: found[n] for n in ("loss", "clip_fraction", "value", "return")}
    spread = found["return_square"] - found["return"] ** 2
    left = found["gap_square"] - found["gap"] ** 2
    if spread > 1e-12 * max(1.0, found["return_square"]):
        shown["explained_variance"] = 1 - left / spread
    return shown
