"""The four groups of actors, with typed methods. All waiting goes through the supervisor."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from ray.actor import ActorHandle

from actors.lessons import EncodedRows
from actors.rollout import EngineInfo, ReceiveReport
from actors.supervisor import Member, Supervisor
from actors.sync_plan import Manifest, SendReport, SyncInit
from actors.trainer import LogprobGap, RankPlan
from configs.schema import HealthConfig
from rewards.judges.meter import add_up
from rollouts.conversations import Lesson
from rollouts.types import (
    GeneratedGroup,
    GroupRequest,
    GroupSummary,
    MicroBatchPlan,
    Ref,
    StepResult,
    TrainBatch,
)

Call: TypeAlias = Callable[[ActorHandle, int], Awaitable[Any]]
"""Calls one actor, given its handle and number; Ray's handles know no types, these groups do."""


class _Group:
    """Members of one role and how to call them."""

    def __init__(self, members: Sequence[Member], supervisor: Supervisor, health: HealthConfig):
        self.members = tuple(members)
        self._supervisor = supervisor
        self._health = health
        self._load = [0] * len(members)

    async def _least_busy(self, call: Call, *, weight: int, doing: str, timeout_s: float) -> Any:
        """Call the member with the least weight in flight."""
        at = min(range(len(self._load)), key=self._load.__getitem__)
        self._load[at] += weight
        try:
            return await self._one(at, call, doing=doing, timeout_s=timeout_s)
        finally:
            self._load[at] -= weight

    async def _one(self, at: int, call: Call, *, doing: str, timeout_s: float) -> Any:
        """Call member number `at`."""
        member = self.members[at]
        answer = call(member.handle, at)
        return await self._supervisor.call(member, answer, doing=doing, timeout_s=timeout_s)

    async def _each(self, call: Call, *, doing: str, timeout_s: float) -> tuple[Any, ...]:
        """Call every member at once; the first failure is raised."""
        calls = [
            self._one(at, call, doing=doing, timeout_s=timeout_s) for at in range(len(self.members))
        ]
        return tuple(await asyncio.gather(*calls))


class RolloutFleet(_Group):
    """The generation engines."""

    infos: tuple[EngineInfo, ...] = ()

    async def generate(self, request: GroupRequest) -> GeneratedGroup:
        """Have the engine with the fewest sequences in flight sample one group."""
        return await self._least_busy(
            lambda engine, _: engine.generate.remote(request),
            weight=request.group_size,
            doing=f"generate {request.group_id}",
            timeout_s=self._health.generate_s,
        )

    async def sample_probe(self, requests: Sequence[GroupRequest]) -> tuple[Ref, ...]:
        """Have every engine sample the same prompts; a reference an engine."""
        return await self._each(
            lambda engine, _: engine.sample_probe.remote(tuple(requests)),
            doing="sample for the agreement check",
            timeout_s=self._health.generate_s,
        )

    async def open_sync(
        self, inits: Sequence[SyncInit], manifest: Manifest, *, timeout_s: float
    ) -> None:
        """Join every engine to a new generation of the weight-sync group."""
        await self._each(
            lambda engine, i: engine.open_sync.remote(inits[i], manifest),
            doing="join weight sync",
            timeout_s=timeout_s,
        )

    async def pause(self, *, timeout_s: float) -> None:
        """Hold all requests where they are."""
        await self._each(lambda e, _: e.pause.remote(), doing="pause", timeout_s=timeout_s)

    async def receive(
        self, version: int, manifest_hash: str, *, timeout_s: float
    ) -> tuple[ReceiveReport, ...]:
        """Receive and load weights as policy `version`; waits for the trainer's send."""
        return await self._each(
            lambda engine, _: engine.receive.remote(version, manifest_hash),
            doing=f"receive version {version}",
            timeout_s=timeout_s,
        )

    async def resume(self, *, timeout_s: float) -> None:
        """Let the requests go on."""
        await self._each(lambda e, _: e.resume.remote(), doing="resume", timeout_s=timeout_s)


class RewardFleet(_Group):
    """The graders."""

    async def grade(self, generated: GeneratedGroup) -> GroupSummary:
        """Have the least busy reward actor grade one group."""
        return await self._least_busy(
            lambda grader, _: grader.grade.remote(generated),
            weight=1,
            doing=f"grade {generated.group_id}",
            timeout_s=self._health.generate_s,
        )

    async def judge_metrics(self) -> dict[str, float]:
        """Return what the judges did since the last call, as `judge/NAME/FIGURE`."""
        counts: tuple[dict[str, dict[str, float]], ...] = await self._each(
            lambda grader, _: grader.take_judge_counts.remote(),
            doing="count what judges did",
            timeout_s=self._health.train_s,
        )
        return {
            f"judge/{name}/{figure}": value
            for name in counts[0]
            for figure, value in add_up([c[name] for c in counts]).items()
        }

    async def answers(
        self, summary: GroupSummary, indices: Sequence[int], *, limit: int
    ) -> tuple[tuple[int, str], ...]:
        """Return the first distinct texts of a graded group, of the rollouts given, best first."""
        return await self._least_busy(
            lambda grader, _: grader.answers.remote(summary.group_ref, tuple(indices), limit),
            weight=1,
            doing=f"read {summary.group_id}",
            timeout_s=self._health.generate_s,
        )

    async def record(self, path: Path, step: int, refs: Sequence[Ref]) -> None:
        """Have the full text of groups appended to a file."""
        await self._one(
            0,
            lambda grader, _: grader.record.remote(path, step, list(refs)),
            doing=f"write {path}",
            timeout_s=self._health.train_s,
        )


class ReferenceFleet(_Group):
    """The frozen reference policies."""

    async def score(self, batch: TrainBatch) -> TrainBatch:
        """Return the batch with every non-empty micro-batch pointing at its reference scores."""
        plans = [p for m in batch.minibatches for row in m.grid for p in row if p.samples]
        n = len(self.members)
        answers = await self._each(
            lambda reference, i: reference.score.remote(tuple(plans[i::n])),
            doing=f"score step {batch.step}",
            timeout_s=self._health.train_s,
        )
        scores: dict[int, Ref] = {}
        for i, refs in enumerate(answers):
            scores.update((id(p), r) for p, r in zip(plans[i::n], refs, strict=True))

        def scored(plan: MicroBatchPlan) -> MicroBatchPlan:
            return dataclasses.replace(plan, ref_logprobs=scores.get(id(plan)))

        minibatches = tuple(
            dataclasses.replace(m, grid=tuple(tuple(map(scored, row)) for row in m.grid))
            for m in batch.minibatches
        )
        return dataclasses.replace(batch, minibatches=minibatches)


class LessonGroup(_Group):
    """What encodes conversations."""

    async def encode(self, rows: Sequence[Lesson]) -> EncodedRows:
        """Have rows encoded and stored."""
        return await self._least_busy(
            lambda lessons, _: lessons.encode.remote(tuple(rows)),
            weight=len(rows),
            doing=f"encode {len(rows)} rows",
            timeout_s=self._health.train_s,
        )


class TrainerGroup(_Group):
    """The ZeRO ranks."""

    @property
    def dp_size(self) -> int:
        """Data-parallel ranks."""
        return len(self.members)

    async def train_step(self, batch: TrainBatch) -> StepResult:
        """Train one step on all ranks; each is sent its own row of the plan."""
        plans = [_rank_plan(batch, r) for r in range(self.dp_size)]
        results = await self._each(
            lambda trainer, rank: trainer.train_step.remote(plans[rank]),
            doing=f"train_step {batch.step}",
            timeout_s=self._health.train_s,
        )
        return results[0]

    async def held_out(self, batch: TrainBatch) -> dict[str, float]:
        """Return sums over a batch with the weights as they are, and the `count` to divide by."""
        plans = [_rank_plan(batch, r) for r in range(self.dp_size)]
        found: tuple[dict[str, float], ...] = await self._each(
            lambda trainer, rank: trainer.held_out.remote(plans[rank]),
            doing=f"held-out loss after step {batch.step}",
            timeout_s=self._health.train_s,
        )
        return {name: sum(f.get(name, 0.0) for f in found) for f in found for name in f}

    async def manifest(self) -> Manifest:
        """Return what tensors travel to the engines."""
        return await self._one(
            0,
            lambda trainer, _: trainer.manifest.remote(),
            doing="manifest",
            timeout_s=self._health.start_s,
        )

    async def open_sync(self, init: SyncInit, manifest: Manifest, *, timeout_s: float) -> None:
        """Join rank 0 to a new generation of the weight-sync group."""
        await self._each(
            lambda trainer, rank: trainer.open_sync.remote(init if rank == 0 else None, manifest),
            doing="join weight sync",
            timeout_s=timeout_s,
        )

    async def send_weights(self, version: int, *, timeout_s: float) -> SendReport:
        """Gather on all ranks, send from rank 0."""
        reports = await self._each(
            lambda trainer, _: trainer.send_weights.remote(version),
            doing=f"send_weights {version}",
            timeout_s=timeout_s,
        )
        return reports[0]

    async def logprob_gap(self, probes: Sequence[Ref]) -> tuple[LogprobGap, ...]:
        """Compare engines' logprobs of their own tokens with the trainer's; one an engine."""
        gaps = await self._each(
            lambda trainer, _: trainer.logprob_gap.remote(list(probes)),
            doing="agreement check",
            timeout_s=self._health.train_s,
        )
        return gaps[0]

    async def save(self, folder: Path) -> None:
        """Write all ranks' parts of a checkpoint."""
        await self._each(
            lambda trainer, _: trainer.save.remote(folder),
            doing=f"save {folder}",
            timeout_s=self._health.checkpoint_s,
        )

    async def load(self, folder: Path) -> None:
        """Restore all ranks from a checkpoint."""
        await self._each(
            lambda trainer, _: trainer.load.remote(folder),
            doing=f"load {folder}",
            timeout_s=self._health.checkpoint_s,
        )


def _rank_plan(batch: TrainBatch, rank: int) -> RankPlan:
    return RankPlan(
        step=batch.step,
        minibatches=tuple(replace(m, grid=(m.grid[rank],)) for m in batch.minibatches),
    )
