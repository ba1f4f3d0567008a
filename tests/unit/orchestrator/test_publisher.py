"""Which collectives carry weights, by where trainer and engines are; and which failed syncs are
tried again."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

import orchestrator.publisher
from actors.errors import ActorFailure, RunError
from actors.rendezvous import Peer
from actors.rollout import EngineInfo, ReceiveReport
from actors.sync_plan import Manifest, SendReport, SyncInit
from actors.trainer import LogprobGap
from configs.schema import RunConfig
from orchestrator.clock import PhaseClock
from orchestrator.publisher import WeightPublisher

MANIFEST = Manifest.from_specs([("w", (2, 2), "bfloat16")], bucket_bytes=64)


def recipe(**more: Any) -> RunConfig:
    source = {"name": "a", "data": {"procedural": "reasoning_gym/chain_sum"}, "rewards": []}
    base: dict[str, Any] = {
        "name": "t",
        "num_steps": 1,
        "model": {"path": "org/model"},
        "sources": [source],
        "batch": {"groups_per_step": 1},
    }
    return RunConfig.model_validate({**base, **more})


def engine(*gpus: str, node: str = "n0") -> EngineInfo:
    """One with a worker on each GPU, `""` for the CPU."""
    return EngineInfo(
        node=node,
        node_id=node,
        processes=(),
        num_workers=len(gpus),
        device="cuda" if gpus[0] else "cpu",
        device_uuids=gpus,
        max_model_len=8,
    )


class World:
    """Supervisor, rendezvous, trainer and engines in one, which note what they are told to join."""

    def __init__(self, trainer_gpu: str, infos: list[EngineInfo]):
        self.gpu, self.infos = trainer_gpu, tuple(infos)
        self.handle, self.joined = self, list[SyncInit]()
        self.new_generation = SimpleNamespace(remote=lambda world: answered(1))
        self.address = SimpleNamespace(remote=lambda: answered(("n0", 1)))
        rank = SimpleNamespace(name="trainer[0]", node="n0")
        engines = [SimpleNamespace(name=f"rollout[{i}]") for i in range(len(infos))]
        self.trainer = SimpleNamespace(
            members=(rank,),
            manifest=lambda: answered(MANIFEST),
            device_uuid=lambda: answered(self.gpu),
            open_sync=self.note,
        )
        self.rollout = SimpleNamespace(members=engines, infos=self.infos, open_sync=self.note)

    async def call(self, member: Any, answer: Any, *, doing: str, timeout_s: float) -> Any:
        return await answer

    async def note(self, inits: Any, manifest: Manifest, *, timeout_s: float) -> None:
        self.joined.extend([inits] if isinstance(inits, SyncInit) else inits)


async def answered(value: Any) -> Any:
    return value


def publisher_of(world: Any, cfg: RunConfig) -> WeightPublisher:
    return WeightPublisher(
        cfg,
        supervisor=world,
        rendezvous=world,
        trainer=world.trainer,
        rollout=world.rollout,
        clock=PhaseClock(),
        probe_tasks=(),
    )


def chosen(cfg: RunConfig, trainer_gpu: str, *infos: EngineInfo) -> tuple[str, str]:
    """Return backend and transport that all are told."""
    world: Any = World(trainer_gpu, list(infos))
    asyncio.run(publisher_of(world, cfg).open())
    ((backend, transport),) = {(i.backend, i.transport) for i in world.joined}
    sizes = [1, *(i.num_workers for i in infos)]
    assert [i.rank for i in world.joined] == [sum(sizes[:k]) for k in range(len(sizes))]
    return backend, transport


BESIDE = {"rollout": {"actors": {"colocate_with": "trainer"}}}


@pytest.mark.parametrize(
    ("more", "trainer_gpu", "infos", "expected"),
    [
        # every rank has a GPU of its own: over NCCL, also between nodes and to many workers
        ({}, "A", [engine("B")], ("nccl", "broadcast")),
        ({}, "A", [engine("B", "C"), engine("D", "E", node="n1")], ("nccl", "broadcast")),
        # colocated, but on another GPU of the bundle
        (BESIDE, "A", [engine("B")], ("nccl", "broadcast")),
        # on the trainer's GPU, reserved together or not
        (BESIDE, "A", [engine("A")], ("gloo", "shared")),
        ({}, "A", [engine("A")], ("gloo", "shared")),
        # one of several engines there, or two on one GPU: NCCL would call it a duplicate GPU
        (BESIDE, "A", [engine("A"), engine("B")], ("gloo", "broadcast")),
        ({}, "A", [engine("B"), engine("B")], ("gloo", "broadcast")),
        (BESIDE, "A", [engine("A", "B")], ("gloo", "broadcast")),
        # one side on CPU, or both
        ({}, "", [engine("A")], ("gloo", "broadcast")),
        ({}, "A", [engine("")], ("gloo", "broadcast")),
        ({}, "", [engine("")], ("gloo", "broadcast")),
        (BESIDE, "", [engine("")], ("gloo", "shared")),
        (BESIDE, "", [engine("", node="n1")], ("gloo", "broadcast")),
        # vLLM's deterministic workers pin NCCL's settings
        ({"deterministic": True}, "A", [engine("B")], ("gloo", "broadcast")),
        # as the recipe says
        ({"weight_sync": {"backend": "nccl"}}, "A", [engine("B")], ("nccl", "broadcast")),
        ({"weight_sync": {"backend": "gloo"}}, "A", [engine("B")], ("gloo", "broadcast")),
        ({"weight_sync": {"transport": "broadcast"}}, "A", [engine("A")], ("gloo", "broadcast")),
    ],
)
def test_backend_and_transport_follow_the_devices(
    more: dict[str, Any], trainer_gpu: str, infos: list[EngineInfo], expected: tuple[str, str]
) -> None:
    assert chosen(recipe(**more), trainer_gpu, *infos) == expected


def test_nccl_asked_for_where_two_ranks_share_a_gpu_ends_the_run_with_their_gpus() -> None:
    cfg = recipe(weight_sync={"backend": "nccl", "transport": "broadcast"})
    with pytest.raises(RunError, match="on A, A, B"):
        chosen(cfg, "A", engine("A"), engine("B"))


class Syncing(World):
    """One engine beside the trainer, whose first sends fail as told; `silent` peers are known to
    the rendezvous."""

    def __init__(self, failures: list[Exception], silent: list[Any] | None = None):
        super().__init__("", [engine("")])
        self.events, self._failures = list[str](), failures
        self.silent_peers = SimpleNamespace(remote=lambda *_: answered(silent or []))
        self.trainer.send_weights = self.send
        self.trainer.logprob_gap = lambda probes: answered(
            [LogprobGap(median=0.0, largest=0.0, num_tokens=1)]
        )
        self.rollout.receive = self.receive
        self.rollout.sample_probe = lambda requests: answered(())
        self.rollout.members[0].node = "n0"
        for verb in ("pause", "resume"):
            setattr(self.rollout, verb, self.noted(verb))

    def noted(self, verb: str) -> Any:
        async def note(*, timeout_s: float) -> None:
            self.events.append(verb)

        return note

    async def note(self, inits: Any, manifest: Manifest, *, timeout_s: float) -> None:
        await super().note(inits, manifest, timeout_s=timeout_s)
        self.events.extend(["join"] if isinstance(inits, SyncInit) else [])

    async def send(self, version: int, *, timeout_s: float) -> SendReport:
        self.events.append("send")
        if self._failures:
            raise self._failures.pop(0)
        return SendReport(version=version, gather_s=0, send_s=0, total_bytes=8, checksums={})

    async def receive(
        self, version: int, manifest_hash: str, *, timeout_s: float
    ) -> tuple[ReceiveReport, ...]:
        return (ReceiveReport(version=version, load_s=0, sampled=1, compared=1),)


def lost(cause: str = "WeightSyncError: a peer failed: Connection reset") -> ActorFailure:
    return ActorFailure(actor="trainer[0]", node="n0", doing="send_weights 1", cause=cause)


def published(world: Any) -> list[str]:
    async def scenario() -> None:
        publisher = publisher_of(world, recipe())
        await publisher.open()
        await publisher.publish(1)

    asyncio.run(scenario())
    return world.events


def test_a_sync_that_broke_with_all_peers_alive_is_tried_once_more_in_a_new_generation() -> None:
    once = ["pause", "send"]
    assert published(Syncing([])) == ["join", *once, "resume"]
    assert published(Syncing([lost()])) == ["join", *once, "join", *once, "resume"]


def test_what_another_try_cannot_mend_ends_the_run() -> None:
    for failures in ([lost(), lost("WeightSyncError: again")], [lost("its process died: oom")]):
        last, tries = str(failures[-1]), len(failures)
        world = Syncing(list[Exception](failures))
        with pytest.raises(RunError) as caught:
            published(world)
        assert str(caught.value) == last
        assert world.events.count("send") == tries and "resume" not in world.events


def test_a_silent_peer_is_killed_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[str] = []
    monkeypatch.setattr(orchestrator.publisher, "kill_member", lambda m: killed.append(m.name))
    name = "rollout[0] worker 0"
    frozen = Peer(rank=1, name=name, host="n0", pid=7, phase="receiving", bucket=2, silent_s=9)
    with pytest.raises(ActorFailure, match=r"rollout\[0\] worker 0.*silent for 9 s at receiving"):
        published(Syncing([lost()], [frozen]))
    assert killed == ["rollout[0]"]
