"""The critic actor: one ZeRO rank of the critic, which scores a step's samples and learns.

It keeps nothing of a step between scoring and training: what it said lies in the object store.
torch and DeepSpeed are imported when it starts: the driver imports this module too.
"""

import time
from itertools import pairwise
from typing import TYPE_CHECKING

import ray

from actors.fetch import CriticSamples, fetch_for_critic, fetch_value_batches
from actors.ranks import RankActor, RankPlan
from rollouts.gae import estimate_values, moments
from rollouts.packing import assemble
from rollouts.types import F32, MicroBatchPlan, StepResult
from rollouts.values import ValueScores, ValueTargets

if TYPE_CHECKING:
    from trainer.critic import CriticEngine


class CriticActor(RankActor["CriticEngine"]):
    """One rank of the critic."""

    group = "critic"

    def _engine_class(self) -> "type[CriticEngine]":
        from trainer.critic import CriticEngine

        return CriticEngine

    def _optimizer_steps(self) -> int:
        return self._cfg.num_steps * self._cfg.batch.updates

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
        return self._trained(plan, outcome, fetch_s=fetched - began)
