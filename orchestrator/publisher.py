"""New weights from the trainer to every engine, as one verified transaction.

    pause-keep -> transfer -> finish -> prefix-cache reset -> version acknowledged -> resume

All engines acknowledge, or the run ends naming the one that did not: a version is never half
published. The logprob agreement check runs at the first sync, every `verify_every` syncs, and
after a new generation of the group.
"""

import asyncio
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from actors.errors import ActorFailure, RunError
from actors.groups import RolloutFleet, TrainerGroup
from actors.rollout_engine import ReceiveReport
from actors.supervisor import Member, Supervisor, kill_member
from actors.sync_plan import Manifest, SendReport, SyncInit
from configs.schema import RunConfig
from orchestrator.clock import PhaseClock
from rollouts.types import GroupRequest, Sampling, Task

log = logging.getLogger("braid.publisher")
GRACE_S = 10.0
"""Seconds beyond `weight_sync.timeout_s` that the driver gives the peers to say themselves what
went wrong."""
SILENT_S = 3.0
"""Seconds without a stamp after which a peer of a failed sync is called silent; they come each
half second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What one sync took, and what its check found."""

    seconds: dict[str, float]
    """gather, send, load, control: add up to the wall time of the sync."""
    bytes: int
    gap_median: float | None
    """Logprob gap of the worst engine; None where this sync was not checked."""
    gap_max: float | None


class WeightPublisher:
    """Owns the weight-sync group and its generation number."""

    def __init__(
        self,
        cfg: RunConfig,
        *,
        supervisor: Supervisor,
        rendezvous: Member,
        trainer: TrainerGroup,
        rollout: RolloutFleet,
        clock: PhaseClock,
        probe_tasks: Sequence[Task],
    ):
        self._cfg, self._clock = cfg, clock
        self._supervisor, self._rendezvous = supervisor, rendezvous
        self._trainer, self._rollout = trainer, rollout
        self._probes = tuple(probe_tasks)
        self._manifest: Manifest | None = None
        self._generation = -1
        self._syncs = 0
        self._check_next = True

    async def open(self) -> None:
        """Form the group under a new generation number."""
        sync = self._cfg.weight_sync
        sizes = [i.num_workers for i in self._rollout.infos]
        world = 1 + sum(sizes)
        self._manifest = await self._trainer.manifest()
        self._generation = await self._ask("new_generation", world)
        host, port = await self._ask("address")
        backend, transport = self._choose(await self._trainer.device_uuid())

        def place(member: Member, rank: int) -> SyncInit:
            return SyncInit(
                generation=self._generation,
                store_host=host,
                store_port=port,
                rank=rank,
                world_size=world,
                backend=backend,
                transport=transport,
                timeout_s=sync.timeout_s,
                name=member.name,
            )

        firsts = [1 + sum(sizes[:k]) for k in range(len(sizes))]
        engines = [place(m, f) for m, f in zip(self._rollout.members, firsts, strict=True)]
        limit = sync.timeout_s + GRACE_S
        try:
            await asyncio.gather(
                self._trainer.open_sync(
                    place(self._trainer.members[0], 0), self._manifest, timeout_s=limit
                ),
                self._rollout.open_sync(engines, self._manifest, timeout_s=limit),
            )
        except RunError as failure:
            raise await self._name_silent("joining", failure) from failure
        self._check_next = True
        log.info(
            "weight sync: generation %d, %s over %s, %d tensors, %.1f MB, manifest %s",
            self._generation,
            transport,
            backend,
            len(self._manifest.tensors),
            self._manifest.total_bytes / 1e6,
            self._manifest.hash,
        )

    def _choose(
        self, trainer_gpu: str
    ) -> tuple[Literal["gloo", "nccl"], Literal["broadcast", "shared"]]:
        """Resolve `auto` backend and transport.

        Args:
            trainer_gpu: UUID of rank 0's GPU; empty on CPU.

        Raises:
            RunError: nccl is asked for, and two of its ranks are on one GPU, or one on none.
        """
        sync, infos = self._cfg.weight_sync, self._rollout.infos
        gpus = [trainer_gpu, *(uuid for info in infos for uuid in info.device_uuids)]
        transport = sync.transport
        if transport == "auto":
            colocated = bool(trainer_gpu) or self._cfg.rollout.actors.colocate_with == "trainer"
            one_node = {i.node for i in infos} == {self._trainer.members[0].node}
            one_device = len(infos) == 1 and set(gpus) == {trainer_gpu}
            transport = "shared" if colocated and one_node and one_device else "broadcast"
        if transport == "shared":
            # Shared buffers carry the bytes; their handshakes run over gloo on any device.
            return "gloo", transport
        apart = all(gpus) and len(set(gpus)) == len(gpus)
        if sync.backend == "auto":
            # Deterministic engines run NCCL by settings of their own, and would hang the trainer.
            return ("nccl" if apart and not self._cfg.deterministic else "gloo"), transport
        if sync.backend == "nccl" and not apart:
            where = ", ".join(gpu or "CPU" for gpu in gpus)
            raise RunError(
                "weight_sync.backend is nccl, which needs a GPU of its own for trainer rank 0 "
                f"and each engine worker; they are on {where}. Set it to auto."
            )
        return sync.backend, transport

    async def publish(self, version: int) -> SyncReport:
        """Give all engines the trainer's weights as policy `version`.

        Raises:
            RunError: a peer died or fell silent (named), a checksum or the agreement differs.
        """
        assert self._manifest is not None, "open() was not called"
        loop = asyncio.get_running_loop()
        with self._clock.phase("sync"):
            began = loop.time()
            try:
                sent, received = await self._transfer(version)
            except RunError as failure:
                named = await self._name_silent(f"version {version}", failure)
                if named is not failure or "WeightSyncError" not in str(failure):
                    raise named from failure
                log.warning("%s; trying once more under a new generation", failure)
                await self.open()
                sent, received = await self._transfer(version)
            wall = loop.time() - began
            median, largest = await self._check_agreement(version)
        self._syncs += 1
        gather = min(sent.gather_s, wall)
        load = min(max(r.load_s for r in received), wall - gather)
        send = min(sent.send_s, wall - gather - load)
        return SyncReport(
            seconds={
                "gather": gather,
                "send": send,
                "load": load,
                "control": wall - load - gather - send,
            },
            bytes=self._manifest.total_bytes,
            gap_median=median,
            gap_max=largest,
        )

    async def _transfer(self, version: int) -> tuple[SendReport, tuple[ReceiveReport, ...]]:
        """Pause, send and receive, resume."""
        assert self._manifest is not None, "open() was not called"
        limit = self._cfg.weight_sync.timeout_s + GRACE_S
        await self._rollout.pause(timeout_s=limit)
        sent, received = await asyncio.gather(
            self._trainer.send_weights(version, timeout_s=limit),
            self._rollout.receive(version, self._manifest.hash, timeout_s=limit),
        )
        await self._rollout.resume(timeout_s=limit)
        return sent, received

    async def _check_agreement(self, version: int) -> tuple[float | None, float | None]:
        """Compare both sides' logprobs of tokens that each engine samples now, where it is due.

        Raises:
            RunError: the gap of an engine is over the bound; both numbers are in the message.
        """
        sync = self._cfg.weight_sync
        every = sync.verify_every
        if not self._check_next and not (every and self._syncs % every == 0):
            return None, None
        self._check_next = False
        probes = await self._rollout.sample_probe(self._probe_requests())
        gaps = await self._trainer.logprob_gap(probes)
        for member, gap in zip(self._rollout.members, gaps, strict=True):
            over = (
                gap.median > sync.max_logprob_gap_median
                or gap.largest > sync.max_logprob_gap_max
                or not math.isfinite(gap.largest)
            )
            if over:
                raise RunError(
                    f"{member.name} on {member.node} and the trainer disagree under version "
                    f"{version}: |logprob gap| over {gap.num_tokens} sampled tokens is "
                    f"{gap.median:.3g} at the median (bound {sync.max_logprob_gap_median:g}) and "
                    f"{gap.largest:.3g} at the most (bound {sync.max_logprob_gap_max:g}).\n"
                    "    The engine does not hold the trainer's weights, or computes otherwise. "
                    "Training on would be off-policy without knowing it."
                )
        worst = max(gaps, key=lambda g: g.median)
        log.info(
            "agreement at version %d: median %.2e, largest %.2e over %d tokens",
            version,
            worst.median,
            max(g.largest for g in gaps),
            sum(g.num_tokens for g in gaps),
        )
        return worst.median, max(g.largest for g in gaps)

    def _probe_requests(self) -> tuple[GroupRequest, ...]:
        """Return prompts of the mix's own sources, as many as there are completions to compare."""
        count = self._cfg.weight_sync.verify_samples
        return tuple(
            GroupRequest(
                group_id=f"{task.task_id}#probe",
                task=task,
                group_size=1,
                sampling=Sampling(
                    temperature=self._cfg.source(task.source).sampling.temperature,
                    max_tokens=self._cfg.source(task.source).sampling.max_tokens,
                ),
                step=-1,
            )
            for task in itertools.islice(itertools.cycle(self._probes), count)
        )

    async def _name_silent(self, doing: str, failure: RunError) -> RunError:
        """Find the peer whose stamps stopped, kill it, and name it; else return `failure`."""
        try:
            silent = await self._ask("silent_peers", self._generation, SILENT_S)
        except RunError:
            return failure
        if not silent:
            return failure
        peer = silent[0]
        members = (*self._trainer.members, *self._rollout.members)
        for member in members:
            if peer.name.startswith(member.name):
                await asyncio.to_thread(kill_member, member)
        return ActorFailure(
            actor=peer.name or f"rank {peer.rank}",
            node=peer.host or "?",
            doing=f"weight sync, {doing}",
            cause=f"silent for {peer.silent_s:.0f} s at {peer.phase} (process {peer.pid}); killed",
        )

    async def _ask(self, verb: str, *args: object) -> Any:
        member = self._rendezvous
        return await self._supervisor.call(
            member, getattr(member.handle, verb).remote(*args), doing=verb, timeout_s=30
        )
