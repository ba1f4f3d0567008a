"""Which collectives carry weights, by where trainer and engines are."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from actors.errors import RunError
from actors.rollout import EngineInfo
from actors.sync_plan import Manifest, SyncInit
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


def chosen(cfg: RunConfig, trainer_gpu: str, *infos: EngineInfo) -> tuple[str, str]:
    """Return backend and transport that all are told."""
    world: Any = World(trainer_gpu, list(infos))
    publisher = WeightPublisher(
        cfg,
        supervisor=world,
        rendezvous=world,
        trainer=world.trainer,
        rollout=world.rollout,
        clock=PhaseClock(),
        probe_tasks=(),
    )
    asyncio.run(publisher.open())
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
