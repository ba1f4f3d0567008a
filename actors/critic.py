"""The critic actor: one ZeRO rank of the critic, which scores a step's samples and learns.

It keeps nothing of a step between scoring and training: what it said lies in the object store.
torch and DeepSpeed are imported when it starts: the driver imports this module too.
"""

import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from actors.fetch import CriticSamples, fetch_for_critic, fetch_value_batches
from actors.heartbeat import Heartbeat, beat
from actors.ranks import join_ranks
from actors.trainer import RankPlan
from configs.redact import guard_output
from configs.schema import RunConfig
from rollouts.gae import estimate_values, moments
from rollouts.packing import assemble
from rollouts.types import F32, MicroBatchPlan, StepResult
from rollouts.values import ValueScores, ValueTargets

if TYPE_CHECKING:
    from trainer.critic import CriticEngine


class CriticActor:
    """One data-parallel rank. Heartbeats run in a thread of their own."""

    def __init__(self, cfg: RunConfig, rank: int, world_size: int):
        guard_output()
        self._cfg, self._rank, self._world = cfg, rank, world_size
        self._engine: CriticEngine | None = None
        self._progress = 0

    @property
    def engine(self) -> "CriticEngine":
        """The ZeRO engine; only after `start`."""
        assert self._engine is not None, "start() was not called"
        return self._engine

    def start(self, store_host: str, store_port: int) -> Heartbeat:
        """Join the other ranks through the run's store and build the engine."""
        from trainer.critic import CriticEngine
        from trainer.determinism import make_deterministic

        if self._cfg.deterministic:
            make_deterministic()
        join_ranks(
            "critic",
            (store_host, store_port),
            rank=self._rank,
            world_size=self._world,
            timeout_s=self._cfg.trainer.collective_timeout_s,
        )
        self._engine = CriticEngine(
            self._cfg,
            rank=self._rank,
            world_size=self._world,
            total_optimizer_steps=self._cfg.num_steps * self._cfg.batch.updates,
        )
        return beat(self._progress)

    def score(self, plan: RankPlan) -> tuple[ValueScores | None, ...]:
        """Score this rank's micro-batches and make advantages of the values.

        Returns:
            One a micro-batch, in order; None where no sample needs values. The arrays stay in this
            node's object store; the driver gets references and moments alone.
        """
        rows = [p for m in plan.minibatches for p in m.grid[0]]
        fetched = fetch_for_critic(rows, timeout_s=self._cfg.health.train_s)
        batches = [assemble(own.samples, None) for own in fetched]
        values = self.engine.values(batches)
        self._progress += 1
        return tuple(
            self._credit(row, own, [said[a:b] for a, b in pairwise(batch.cu_seqlens)])
            if own.places
            else None
            for row, own, batch, said in zip(rows, fetched, batches, values, strict=True)
        )

    def _credit(self, plan: MicroBatchPlan, own: CriticSamples, values: list[F32]) -> ValueScores:
        advantages: list[F32 | None] = [None] * len(plan.samples)
        targets: list[ValueTargets | None] = [None] * len(plan.samples)
        figures: list[tuple[float, float] | None] = [None] * len(plan.samples)
        estimator = self._cfg.algorithm.kl.estimator
        known = zip(own.places, own.samples, own.ref_logprobs, values, strict=True)
        for place, sample, reference, said in known:
            mine, targets[place] = estimate_values(sample, said, reference, estimator)
            advantages[place], figures[place] = mine, moments(mine, sample)
        return ValueScores(
            advantages=ray.put(tuple(advantages)),
            targets=ray.put(tuple(targets)),
            moments=tuple(figures),
        )

    def train_step(self, plan: RankPlan) -> StepResult:
        """Fetch this rank's samples and train all mini-batches of a step."""
        from trainer.critic import ValueMinibatch

        began = time.monotonic()
        rows = [p for m in plan.minibatches for p in m.grid[0]]
        batches = iter(fetch_value_batches(rows, timeout_s=self._cfg.health.train_s))
        minibatches = [
            ValueMinibatch(
                batches=tuple(next(batches) for _ in m.grid[0]), num_loss_tokens=m.num_loss_tokens
            )
            for m in plan.minibatches
        ]
        fetched = time.monotonic()
        outcome = self.engine.train_step(plan.step, minibatches, plan.bounds)
        self._progress += 1
        return StepResult(
            policy_version=plan.step,
            metrics=outcome.metrics,
            seconds={"fetch": fetched - began, **outcome.seconds},
        )

    def save(self, folder: Path) -> None:
        """Write this rank's part of a checkpoint."""
        self.engine.save(folder)

    def load(self, folder: Path) -> None:
        """Restore this rank from a checkpoint."""
        self.engine.load(folder)

    @ray.method(concurrency_group="control")
    def heartbeat(self) -> Heartbeat:
        """Answer that the actor lives."""
        return beat(self._progress)
