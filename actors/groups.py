"""The groups of actors, with typed methods. All waiting goes through the supervisor."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from ray.actor import ActorHandle

from actors.errors import ActorFailure, RunError
from actors.lessons import EncodedRows
from actors.ranks import RankPlan, file_sizes
from actors.rollout import EngineInfo, ReceiveReport
from actors.supervisor import Member, Supervisor
from actors.sync_plan import Manifest, SendReport, SyncInit
from actors.trainer import LogprobGap
from configs.schema import HealthConfig
from rewards.judges.meter import add_up
from rollouts.conversations import Lesson
from rollouts.distance import Distance
from rollouts.gae import critic_batch
from rollouts.types import (
    GeneratedGroup,
    GroupRequest,
    GroupSummary,
    MicroBatchPlan,
    Ref,
    StepResult,
    TrainBatch,
)
from rollouts.values import ValueScores

ARRIVAL_S = 60.0
"""Seconds until the driver must see what an actor on another node wrote."""
ARRIVAL_POLL_S = 0.2

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

    async def spell(self, groups: Sequence[GroupSummary]) -> Ref:
        """Have the tokens of graded groups written as texts; returns where they are."""
        refs = [g.group_ref for g in groups]
        return await self._least_busy(
            lambda engine, _: engine.spell.remote(refs),
            weight=0,
            doing="spell tokens for the record",
            timeout_s=self._health.train_s,
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

    async def record(
        self,
        path: Path,
        step: int,
        groups: Sequence[GroupSummary],
        spelled: Ref,
        scores: Sequence[Ref],
    ) -> None:
        """Have the full text of groups appended to a file, with their tokens (`spelled`, in order)
        and the trainer's logprobs of them (`scores`)."""
        await self._one(
            0,
            lambda grader, _: grader.record.remote(path, step, list(groups), spelled, list(scores)),
            doing=f"write {path}",
            timeout_s=self._health.train_s,
        )


class ReferenceFleet(_Group):
    """The reference policies, equal copies."""

    async def follow(self, folder: Path) -> None:
        """Have all take over the policy that the trainer wrote there.

        Raises:
            RunError: their weights are not equal then.
        """
        self._compare(
            await self._each(
                lambda reference, _: reference.follow.remote(folder),
                doing=f"follow the policy of {folder}",
                timeout_s=self._health.checkpoint_s,
            )
        )

    async def distance(self, refs: Sequence[Ref]) -> Distance:
        """Return how far the policy that wrote some graded groups is from the reference."""
        n = len(self.members)
        found = await self._each(
            lambda reference, i: reference.distance.remote(tuple(refs[i::n])),
            doing="measure the distance of evaluated completions",
            timeout_s=self._health.train_s,
        )
        return sum(found, Distance())

    async def save(self, folder: Path) -> None:
        """Have one write the weights of all into a checkpoint's folder.

        Raises:
            ActorFailure: what it wrote is not there.
        """
        wrote = await self._one(
            0,
            lambda reference, _: reference.save.remote(folder),
            doing=f"save {folder}",
            timeout_s=self._health.checkpoint_s,
        )
        await _arrived(self.members[0], folder, wrote)

    async def load(self, folder: Path) -> None:
        """Have all set the weights of a checkpoint.

        Raises:
            RunError: their weights are not equal then.
        """
        self._compare(
            await self._each(
                lambda reference, _: reference.load.remote(folder),
                doing=f"load {folder}",
                timeout_s=self._health.checkpoint_s,
            )
        )

    def _compare(self, digests: Sequence[str]) -> None:
        odd = [m.name for m, d in zip(self.members, digests, strict=True) if d != digests[0]]
        if odd:
            raise RunError(
                f"{', '.join(odd)} and {self.members[0].name} hold different reference weights"
            )

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

        return _replace_plans(batch, lambda p: replace(p, ref_logprobs=scores.get(id(p))))


async def _arrived(member: Member, folder: Path, wrote: Mapping[str, int]) -> None:
    """Wait until the driver sees all that an actor sees of a folder: on storage that nodes share
    this may take a while, and on a disk of the actor's own node it never comes.

    Raises:
        ActorFailure: it did not come.
    """
    ends = time.monotonic() + ARRIVAL_S
    while True:
        seen = file_sizes(folder)
        missing = sorted(name for name, size in wrote.items() if seen.get(name, -1) < size)
        if not missing:
            return
        if time.monotonic() > ends:
            raise ActorFailure(
                actor=member.name,
                node=member.node,
                doing=f"save {folder}",
                cause=f"it wrote {missing[0]}, which the driver does not see there",
                remedy="Put the run directory on storage that the driver's node and all of the "
                "trainer's share.",
            )
        await asyncio.sleep(ARRIVAL_POLL_S)


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


def _replace_plans(
    batch: TrainBatch, change: Callable[[MicroBatchPlan], MicroBatchPlan]
) -> TrainBatch:
    minibatches = tuple(
        replace(m, grid=tuple(tuple(map(change, row)) for row in m.grid)) for m in batch.minibatches
    )
    return replace(batch, minibatches=minibatches)


class _RankGroup(_Group):
    """ZeRO ranks of one model, which make every call together."""

    def __init__(
        self,
        members: Sequence[Member],
        supervisor: Supervisor,
        health: HealthConfig,
        *,
        sequence_parallel: int = 1,
    ):
        super().__init__(members, supervisor, health)
        self._per_row = sequence_parallel

    @property
    def dp_size(self) -> int:
        """Rows of a plan: data-parallel ranks, or groups of ranks that share a row."""
        return len(self.members) // self._per_row

    async def save(self, folder: Path) -> None:
        """Write all ranks' parts of a checkpoint.

        Raises:
            ActorFailure: what a rank wrote is not there.
        """
        wrote = await self._each(
            lambda rank, _: rank.save.remote(folder),
            doing=f"save {folder}",
            timeout_s=self._health.checkpoint_s,
        )
        for member, files in zip(self.members, wrote, strict=True):
            await _arrived(member, folder, files)

    async def load(self, folder: Path) -> None:
        """Restore all ranks from a checkpoint."""
        await self._each(
            lambda rank, _: rank.load.remote(folder),
            doing=f"load {folder}",
            timeout_s=self._health.checkpoint_s,
        )


class CriticGroup(_RankGroup):
    """The ZeRO ranks of the critic."""

    async def score(self, batch: TrainBatch) -> TrainBatch:
        """Return the batch with advantages, and their moments, of the samples that need values."""
        own = critic_batch(batch, self.dp_size)
        if not own.minibatches:
            return batch
        plans = [_rank_plan(own, r) for r in range(self.dp_size)]
        answers: tuple[tuple[ValueScores | None, ...], ...] = await self._each(
            lambda critic, rank: critic.score.remote(plans[rank]),
            doing=f"score step {batch.step}",
            timeout_s=self._health.train_s,
        )
        found: dict[int, ValueScores] = {}
        for plan, scores in zip(plans, answers, strict=True):
            rows = [p for m in plan.minibatches for p in m.grid[0]]
            found.update((id(p), s) for p, s in zip(rows, scores, strict=True) if s is not None)
        return _replace_plans(batch, lambda plan: _with_values(plan, found.get(id(plan))))

    async def train_step(self, batch: TrainBatch) -> StepResult | None:
        """Train one step on all ranks; None where no sample needs values."""
        own = critic_batch(batch, self.dp_size)
        if not own.minibatches:
            return None
        plans = [_rank_plan(own, r) for r in range(self.dp_size)]
        results = await self._each(
            lambda critic, rank: critic.train_step.remote(plans[rank]),
            doing=f"train_step {batch.step}",
            timeout_s=self._health.train_s,
        )
        return results[0]


def _with_values(plan: MicroBatchPlan, scores: ValueScores | None) -> MicroBatchPlan:
    if scores is None:
        return plan
    samples = (
        s if m is None else replace(s, advantage=m[0], advantage_variance=m[1])
        for s, m in zip(plan.samples, scores.moments, strict=True)
    )
    return replace(
        plan,
        samples=tuple(samples),
        advantages=scores.advantages,
        targets=scores.targets,
    )


class TrainerGroup(_RankGroup):
    """The ZeRO ranks of the policy."""

    async def train_step(self, batch: TrainBatch) -> StepResult:
        """Train one step on all ranks; each is sent its row of the plan."""
        plans = [_rank_plan(batch, r // self._per_row) for r in range(len(self.members))]
        results = await self._each(
            lambda trainer, rank: trainer.train_step.remote(plans[rank]),
            doing=f"train_step {batch.step}",
            timeout_s=self._health.train_s,
        )
        return results[0]

    async def sample_logprobs(self, batch: TrainBatch) -> tuple[Ref, ...]:
        """Score samples under the weights as they are; a reference a rank."""
        plans = [_rank_plan(batch, r // self._per_row) for r in range(len(self.members))]
        return await self._each(
            lambda trainer, rank: trainer.sample_logprobs.remote(plans[rank]),
            doing=f"score what is recorded of step {batch.step}",
            timeout_s=self._health.train_s,
        )

    async def held_out(self, batch: TrainBatch) -> dict[str, float]:
        """Return sums over a batch with the weights as they are, and the `count` to divide by."""
        plans = [_rank_plan(batch, r // self._per_row) for r in range(len(self.members))]
        found: tuple[dict[str, float], ...] = await self._each(
            lambda trainer, rank: trainer.held_out.remote(plans[rank]),
            doing=f"held-out loss after step {batch.step}",
            timeout_s=self._health.train_s,
        )
        rows = found[:: self._per_row]  # ranks that share a row found the same
        return {name: sum(f.get(name, 0.0) for f in rows) for f in rows for name in f}

    async def manifest(self) -> Manifest:
        """Return what tensors travel to the engines."""
        return await self._one(
            0,
            lambda trainer, _: trainer.manifest.remote(),
            doing="manifest",
            timeout_s=self._health.start_s,
        )

    async def device_uuid(self) -> str:
        """Return the UUID of rank 0's GPU; empty on CPU."""
        return await self._one(
            0,
            lambda trainer, _: trainer.device_uuid.remote(),
            doing="device",
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

    async def write_policy(self, folder: Path) -> None:
        """Have all weights written into a folder that the reference reads."""
        await self._each(
            lambda trainer, _: trainer.write_policy.remote(folder),
            doing=f"write the policy to {folder}",
            timeout_s=self._health.checkpoint_s,
        )

    async def logprob_gap(self, probes: Sequence[Ref]) -> tuple[LogprobGap, ...]:
        """Compare engines' logprobs of their own tokens with the trainer's; one an engine."""
        gaps = await self._each(
            lambda trainer, _: trainer.logprob_gap.remote(list(probes)),
            doing="agreement check",
            timeout_s=self._health.train_s,
        )
        return gaps[0]


def _rank_plan(batch: TrainBatch, row: int) -> RankPlan:
    return RankPlan(
        step=batch.step,
        bounds=batch.bounds,
        keep_in=batch.keep_in,
        minibatches=tuple(replace(m, grid=(m.grid[row],)) for m in batch.minibatches),
    )
