"""The four groups of actors, with typed methods. All waiting goes through the supervisor."""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from actors.rollout import EngineInfo, ReceiveReport
from actors.supervisor import Member, Supervisor
from actors.sync_transport import Manifest, SendReport, SyncInit
from actors.trainer import LogprobGap, RankPlan
from configs.schema import HealthConfig
from rollouts.types import (
    GeneratedGroup,
    GroupRequest,
    GroupSummary,
    MicroBatchPlan,
    MinibatchPlan,
    Ref,
    StepResult,
    TrainBatch,
)


class _Group:
    """Members of one role and how to call them."""

    def __init__(self, members: Sequence[Member], supervisor: Supervisor, health: HealthConfig):
        self.members = tuple(members)
        self._supervisor = supervisor
        self._health = health
        self._load = [0] * len(members)

    def _least_busy(self) -> int:
        """Index of the member with the fewest calls in flight."""
        return min(range(len(self._load)), key=self._load.__getitem__)


class RolloutFleet(_Group):
    """The generation engines."""

    infos: tuple[EngineInfo, ...] = ()

    async def generate(self, request: GroupRequest) -> GeneratedGroup:
        """Have the engine with the fewest sequences in flight sample one group."""
        at = self._least_busy()
        self._load[at] += request.group_size
        try:
            member = self.members[at]
            return await self._supervisor.call(
                member,
                member.handle.generate.remote(request),
                doing=f"generate {request.group_id}",
                timeout_s=self._health.generate_s,
            )
        finally:
            self._load[at] -= request.group_size

    async def sample_probe(self, requests: Sequence[GroupRequest]) -> tuple[Ref, ...]:
        """Have every engine sample the same prompts; a reference an engine."""
        refs = [
            self._supervisor.call(
                m,
                m.handle.sample_probe.remote(tuple(requests)),
                doing="sample for the agreement check",
                timeout_s=self._health.generate_s,
            )
            for m in self.members
        ]
        return tuple(await asyncio.gather(*refs))

    async def open_sync(
        self, inits: Sequence[SyncInit], manifest: Manifest, *, timeout_s: float
    ) -> None:
        """Join every engine to a new generation of the weight-sync group."""
        await self._all("open_sync", timeout_s, [(i, manifest) for i in inits])

    async def pause(self, *, timeout_s: float) -> None:
        """Hold all requests where they are."""
        await self._all("pause", timeout_s)

    async def receive(
        self, version: int, manifest_hash: str, *, timeout_s: float
    ) -> tuple[ReceiveReport, ...]:
        """Receive and load weights as policy `version`; waits for the trainer's send."""
        args = [(version, manifest_hash)] * len(self.members)
        return await self._all("receive", timeout_s, args)

    async def resume(self, *, timeout_s: float) -> None:
        """Let the requests go on."""
        await self._all("resume", timeout_s)

    async def _all(
        self, verb: str, timeout_s: float, args: Sequence[tuple[object, ...]] | None = None
    ) -> tuple[ReceiveReport, ...]:
        calls = [
            self._supervisor.call(
                m,
                getattr(m.handle, verb).remote(*a),
                doing=f"{verb} {a[0] if a and isinstance(a[0], int) else ''}".strip(),
                timeout_s=timeout_s,
            )
            for m, a in zip(self.members, args or [()] * len(self.members), strict=True)
        ]
        return tuple(await asyncio.gather(*calls))


class RewardFleet(_Group):
    """The graders."""

    async def grade(self, generated: GeneratedGroup) -> GroupSummary:
        """Have the least busy reward actor grade one group."""
        at = self._least_busy()
        self._load[at] += 1
        try:
            member = self.members[at]
            return await self._supervisor.call(
                member,
                member.handle.grade.remote(generated),
                doing=f"grade {generated.group_id}",
                timeout_s=self._health.generate_s,
            )
        finally:
            self._load[at] -= 1

    async def record(self, path: Path, step: int, refs: Sequence[Ref]) -> None:
        """Have the full text of groups appended to a file."""
        member = self.members[0]
        await self._supervisor.call(
            member,
            member.handle.record.remote(path, step, list(refs)),
            doing=f"write {path}",
            timeout_s=self._health.train_s,
        )


class ReferenceFleet(_Group):
    """The frozen reference policies."""

    async def score(self, batch: TrainBatch) -> TrainBatch:
        """Return the batch with every non-empty micro-batch pointing at its reference scores."""
        plans = [p for m in batch.minibatches for row in m.grid for p in row if p.samples]
        n = len(self.members)
        parts = [plans[i::n] for i in range(n)]
        answers = await asyncio.gather(
            *(
                self._supervisor.call(
                    m,
                    m.handle.score.remote(tuple(part)),
                    doing=f"score step {batch.step}",
                    timeout_s=self._health.train_s,
                )
                for m, part in zip(self.members, parts, strict=True)
                if part
            )
        )
        scores: dict[int, Ref] = {}
        for part, refs in zip((p for p in parts if p), answers, strict=True):
            scores.update((id(p), r) for p, r in zip(part, refs, strict=True))

        def scored(plan: MicroBatchPlan) -> MicroBatchPlan:
            return dataclasses.replace(plan, ref_logprobs=scores.get(id(plan)))

        minibatches = tuple(
            dataclasses.replace(m, grid=tuple(tuple(map(scored, row)) for row in m.grid))
            for m in batch.minibatches
        )
        return dataclasses.replace(batch, minibatches=minibatches)


class TrainerGroup(_Group):
    """The ZeRO ranks."""

    @property
    def dp_size(self) -> int:
        """Data-parallel ranks."""
        return len(self.members)

    async def train_step(self, batch: TrainBatch) -> StepResult:
        """Train one step on all ranks; each is sent its own row of the plan."""
        plans = [
            RankPlan(
                step=batch.step,
                minibatches=tuple(
                    MinibatchPlan(grid=(m.grid[r],), num_loss_tokens=m.num_loss_tokens)
                    for m in batch.minibatches
                ),
            )
            for r in range(self.dp_size)
        ]
        results = await self._all(
            "train_step", [(p,) for p in plans], self._health.train_s, f"train_step {batch.step}"
        )
        return results[0]

    async def manifest(self) -> Manifest:
        """Return what tensors travel to the engines."""
        member = self.members[0]
        return await self._supervisor.call(
            member,
            member.handle.manifest.remote(),
            doing="manifest",
            timeout_s=self._health.start_s,
        )

    async def open_sync(self, init: SyncInit, manifest: Manifest, *, timeout_s: float) -> None:
        """Join rank 0 to a new generation of the weight-sync group."""
        args = [(init if r == 0 else None, manifest) for r in range(self.dp_size)]
        await self._all("open_sync", args, timeout_s, "open_sync")

    async def send_weights(self, version: int, *, timeout_s: float) -> SendReport:
        """Gather on all ranks, send from rank 0."""
        args = [(version,)] * self.dp_size
        return (await self._all("send_weights", args, timeout_s, f"send_weights {version}"))[0]

    async def logprob_gap(self, probes: Sequence[Ref]) -> tuple[LogprobGap, ...]:
        """Compare engines' logprobs of their own tokens with the trainer's; one an engine."""
        args = [(list(probes),)] * self.dp_size
        return (await self._all("logprob_gap", args, self._health.train_s, "agreement check"))[0]

    async def save(self, folder: Path) -> None:
        """Write all ranks' parts of a checkpoint."""
        args = [(folder,)] * self.dp_size
        await self._all("save", args, self._health.checkpoint_s, f"save {folder}")

    async def load(self, folder: Path) -> None:
        """Restore all ranks from a checkpoint."""
        args = [(folder,)] * self.dp_size
        await self._all("load", args, self._health.checkpoint_s, f"load {folder}")

    async def _all(self, verb: str, args: Sequence, timeout_s: float, doing: str) -> tuple:
        calls = [
            self._supervisor.call(
                m, getattr(m.handle, verb).remote(*a), doing=doing, timeout_s=timeout_s
            )
            for m, a in zip(self.members, args, strict=True)
        ]
        return tuple(await asyncio.gather(*calls))
