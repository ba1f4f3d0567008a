"""The trainer actor: one ZeRO rank of the policy, and the sending end of weight sync.

torch and DeepSpeed are imported when it starts: the driver imports this module too.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray

from actors.fetch import fetch_samples, fetch_stored, lay_out
from actors.ranks import RankActor, RankPlan
from actors.sync_plan import Manifest, SendReport, SyncInit
from configs.schema import RunConfig
from rollouts.packing import assemble
from rollouts.sample_files import rank_file, write_samples
from rollouts.types import F32, Ref, StepResult

if TYPE_CHECKING:
    from actors.sync_transport import WeightSender
    from trainer.engine import PolicyEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class LogprobGap:
    """|engine - trainer| logprob over the same sampled tokens under the same weights."""

    median: float
    largest: float
    num_tokens: int


class TrainerActor(RankActor["PolicyEngine"]):
    """One rank of the policy."""

    group = "trainer"

    def __init__(self, cfg: RunConfig, rank: int, world_size: int):
        super().__init__(cfg, rank, world_size)
        self._sender: WeightSender | None = None

    def _engine_class(self) -> "type[PolicyEngine]":
        from trainer.engine import PolicyEngine

        return PolicyEngine

    def _optimizer_steps(self) -> int:
        return self._cfg.policy_updates

    def train_step(self, plan: RankPlan) -> StepResult:
        """Fetch this rank's samples and train all mini-batches of a step."""
        from trainer.engine import Minibatch

        began = time.monotonic()
        rows = [p for m in plan.minibatches for p in m.grid[0]]
        stored = fetch_stored(rows, timeout_s=self._cfg.health.train_s)
        row, copy = divmod(self._rank, self._cfg.trainer.sequence_parallel)
        if plan.keep_in is not None and copy == 0:
            write_samples(plan.keep_in / rank_file(row), [s for own in stored for s in own])
        with_reference = self._cfg.needs_reference
        batches = iter([lay_out(own, with_reference=with_reference) for own in stored])
        minibatches = [
            Minibatch(
                micro_batches=tuple(next(batches) for _ in m.grid[0]),
                num_loss_tokens=m.num_loss_tokens,
                num_samples=m.num_samples,
            )
            for m in plan.minibatches
        ]
        fetched = time.monotonic()
        outcome = self.engine.train_step(plan.step, minibatches, plan.bounds)
        return self._trained(plan, outcome, fetch_s=fetched - began)

    def held_out(self, plan: RankPlan) -> dict[str, float]:
        """Return sums over the loss tokens of this rank's rows, and their `count`; trains
        nothing."""
        found: dict[str, float] = {"count": 0.0}
        for minibatch in plan.minibatches:
            stored = fetch_stored(minibatch.grid[0], timeout_s=self._cfg.health.train_s)
            batches = [lay_out(own) for own in stored]
            for batch, scores in zip(batches, self.engine.token_logprobs(batches), strict=True):
                for name, value in self._judged(scores[batch.loss_mask]).items():
                    found[name] = found.get(name, 0.0) + value
        self._progress += 1
        return found

    def _judged(self, logprobs: F32) -> dict[str, float]:
        """Return what loss tokens come to: -log policy."""
        return {"loss": -float(logprobs.sum(dtype=np.float64)), "count": float(len(logprobs))}

    def open_sync(self, init: SyncInit | None, manifest: Manifest) -> None:
        """Join the weight-sync group of a new generation, leaving the old one.

        Args:
            init: rank 0's place in the group; None on the other ranks, which only gather.
        """
        from actors.sync_transport import WeightSender

        if self._sender is not None:
            self._sender.close()
        self._sender = WeightSender(
            manifest, self.engine.gathered, init, in_place=self.engine.weights_stay
        )

    def device_uuid(self) -> str:
        """Return the UUID of this rank's GPU; empty on CPU."""
        import torch

        device = self.engine.device
        return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""

    def manifest(self) -> Manifest:
        """Name, shape and dtype of all tensors that travel, and the bucket size."""
        size = int(self._cfg.weight_sync.bucket_mib * 2**20)
        return Manifest.from_specs(self.engine.weight_specs(), bucket_bytes=size)

    def send_weights(self, version: int) -> SendReport | None:
        """Gather and send all weights; the other ranks only join the gathers and return None."""
        assert self._sender is not None, "open_sync() was not called"
        report = self._sender.send(version, self._cfg.weight_sync.checksum_tensors)
        self._progress += 1
        return report

    def write_policy(self, folder: Path) -> None:
        """Write all weights into a folder that the reference reads."""
        from trainer.reference_weights import write_policy

        specs, gathered = self.engine.weight_specs(), self.engine.gathered
        write_policy(specs, gathered, folder, writes=self._rank == 0)
        self._progress += 1

    def logprob_gap(self, probes: Sequence[Ref]) -> tuple[LogprobGap, ...]:
        """Score engines' own completions with this trainer's weights; all ranks do the same.

        Args:
            probes: a reference an engine, each to a tuple of TrainingSample.
        """
        gaps: list[LogprobGap] = []
        for samples in ray.get(list(probes), timeout=self._cfg.health.train_s):  # type: ignore[call-overload]
            batch = assemble(samples, None)
            (mine,) = self.engine.token_logprobs([batch])
            gap: F32 = np.abs(mine - batch.rollout_logprobs)[batch.loss_mask]
            gaps.append(
                LogprobGap(
                    median=float(np.median(gap)), largest=float(gap.max()), num_tokens=len(gap)
                )
            )
        return tuple(gaps)

    def sample_logprobs(self, plan: RankPlan) -> Ref:
        """Score this rank's samples; all ranks call it.

        Returns:
            A reference to (group id, rollout's index, logprobs [L]) of each sample.
        """
        found: list[tuple[str, int, F32]] = []
        for minibatch in plan.minibatches:
            plans = minibatch.grid[0]
            stored = fetch_stored(plans, timeout_s=self._cfg.health.train_s)
            batches = [lay_out(own) for own in stored]
            scores = self.engine.token_logprobs(batches)
            for own, batch, values in zip(plans, batches, scores, strict=True):
                samples = fetch_samples(own.samples, timeout_s=self._cfg.health.train_s)
                ends = batch.cu_seqlens.tolist()
                for sample, start, end in zip(samples, ends, ends[1:], strict=False):
                    found.append((sample.group_id, sample.index, values[start:end]))
        return ray.put(found)


class RewardTrainerActor(TrainerActor):
    """One data-parallel rank of a reward model under training."""

    def _engine_class(self) -> "type[PolicyEngine]":
        from trainer.reward_trainer import RewardModelEngine

        return RewardModelEngine

    def _judged(self, logprobs: F32) -> dict[str, float]:
        """Return what the scores of pairs come to: -log sigmoid of the margin, and who is right."""
        pairs = logprobs.astype(np.float64).reshape(-1, 2)
        margin = pairs[:, 0] - pairs[:, 1]
        return {
            "loss": float(np.logaddexp(0.0, -margin).sum()),
            "accuracy": float((margin > 0).sum()),
            "margin": float(margin.sum()),
            "count": float(len(margin)),
        }
