"""What an actor's process is told of GPUs, who starts before whom on one, and how all end."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

import orchestrator.cluster
from actors.errors import RunError
from actors.heartbeat import Heartbeat
from actors.placement import BundleDemand, Seat
from actors.supervisor import Member
from configs.load import load_recipe
from configs.schema import HealthConfig, RunConfig
from orchestrator.cluster import ActorCluster, _environment, starts_after
from orchestrator.planning.plan import plan_bundles

RECIPES = Path(__file__).parents[3] / "configs" / "recipes"
ALIVE = Heartbeat(progress=0, stuck_s=0.0, processes=(), node="here", node_id="0")


def demands(cfg: RunConfig) -> list[BundleDemand]:
    """Return the bundles of a recipe as the cluster reserves them."""
    return [
        BundleDemand(
            group=b.members[0].role,
            seats=tuple(
                Seat(role=m.role, index=m.index, cpus=m.cpus, gpus=m.gpus) for m in b.members
            ),
            labels=b.labels,
        )
        for b in plan_bundles(cfg)
    ]


def order(recipe: str) -> dict[str, tuple[str, ...]]:
    return starts_after(demands(load_recipe(RECIPES / f"{recipe}.yaml", ())))


def test_engines_start_last_on_a_gpu_that_they_share() -> None:
    assert order("one_gpu") == {"rollout[0]": ("trainer[0]", "reference[0]")}
    # whichever of them the bundle is named after
    assert order("code_functions") == {"rollout[0]": ("trainer[0]",)}
    # a whole GPU is nobody else's
    assert order("eight_gpus") == order("multi_node") == order("quickstart") == {}


def test_engines_on_one_gpu_start_one_after_another() -> None:
    roles = ("rollout", "judges.j", "trainer")
    seats = tuple(Seat(role=r, index=1, cpus=1, gpus=0.3) for r in roles)
    grader = Seat(role="reward", index=1, cpus=1, gpus=0)
    bundle = BundleDemand(group="rollout", seats=(*seats, grader), labels={})
    assert starts_after([bundle]) == {
        "rollout[1]": ("trainer[1]",),
        "judges.j[1]": ("trainer[1]", "rollout[1]"),
    }


class Starting(ActorCluster):
    """Actors that start by script: role -> what its start does."""

    def __init__(self, cfg: RunConfig, starts: dict[str, Any]):
        super().__init__(cfg)
        self._starts = starts
        self.events: list[str] = []

    def begin(self, role: str) -> Awaitable[Any]:
        async def start() -> str:
            self.events.append(f"{role} starts")
            await self._starts[role]()
            self.events.append(f"{role} is up")
            return role

        async def heartbeat() -> Heartbeat:
            return ALIVE

        handle: Any = SimpleNamespace(heartbeat=SimpleNamespace(remote=heartbeat))
        return self._begin(Member(role=role, index=0, handle=handle), start)


def config(**health: float) -> RunConfig:
    cfg = load_recipe(RECIPES / "one_gpu.yaml", ())
    return cfg.model_copy(update={"health": HealthConfig(**health)})


def test_an_engine_s_start_is_not_asked_for_before_its_neighbours_are_up() -> None:
    async def scenario() -> list[str]:
        async def slow() -> None:
            await asyncio.sleep(0.02)

        async def at_once() -> None: ...

        starts = {"rollout": at_once, "trainer": slow, "reference": at_once}
        cluster = Starting(config(start_s=5), starts)
        cluster._after = order("one_gpu")
        answers = await asyncio.gather(*map(cluster.begin, starts))
        assert answers == list(starts)
        return cluster.events

    events = asyncio.run(scenario())
    assert events[-2:] == ["rollout starts", "rollout is up"]
    assert len(events) == 6


def test_an_engine_does_not_wait_for_ever_for_its_neighbour() -> None:
    async def scenario() -> None:
        cluster = Starting(config(start_s=0.05), {})
        cluster._after = order("one_gpu")
        await cluster.begin("rollout")

    with pytest.raises(RunError, match=r"rollout\[0\] shares its GPU with trainer\[0\].*0.05 s"):
        asyncio.run(scenario())


def test_signals_while_closing_take_effect_when_all_actors_are_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[str] = []
    monkeypatch.setattr(orchestrator.cluster, "kill_member", lambda m: killed.append(m.name))

    async def scenario() -> None:
        asked, over = asyncio.Event(), asyncio.Event()

        async def close() -> None:
            asked.set()
            await over.wait()

        cluster = ActorCluster(config())
        handle: Any = SimpleNamespace(close=SimpleNamespace(remote=close))
        for role in ("rollout", "trainer"):
            cluster._members.append(Member(role=role, index=0, handle=handle))
        closing = asyncio.create_task(cluster.close())
        await asked.wait()
        for _ in range(3):
            closing.cancel()
            await asyncio.sleep(0)
        assert not closing.done() and not killed
        over.set()
        with pytest.raises(asyncio.CancelledError):
            await closing

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert sorted(killed) == ["rollout[0]", "trainer[0]"]


@pytest.fixture
def on_address(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda host: monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: host)


def test_who_reserves_no_gpu_sees_none(on_address: Any) -> None:
    on_address("10.0.0.1")
    for role in ("trainer", "reference", "critic", "teachers.t", "reward", "rollout"):
        without = _environment(role, 1, 0, deterministic=False)
        assert (without["CUDA_VISIBLE_DEVICES"], without["DS_ACCELERATOR"]) == ("", "cpu")
        some = _environment(role, 1, 0.5, deterministic=False)  # Ray names them itself
        assert not {"CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"} & set(some)


def test_a_private_cluster_s_collectives_stay_on_the_loopback_interface(on_address: Any) -> None:
    names = {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
    on_address("127.0.0.1")
    private = _environment("trainer", 1, 1, deterministic=False)
    assert {private[n] for n in names} == {"lo"}
    on_address("10.0.0.1")
    assert not names & set(_environment("trainer", 1, 1, deterministic=False))


def test_deterministic_actors_ask_flash_attn_too(on_address: Any) -> None:
    from transformers.modeling_flash_attention_utils import _process_flash_attention_kwargs

    on_address("10.0.0.1")
    told = _environment("trainer", 1, 1, deterministic=True)

    def asked(environment: dict[str, str]) -> object:
        has: dict[str, bool] = defaultdict(bool, deterministic=True)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                if name.startswith("FLASH"):
                    patch.setenv(name, value)
            made = _process_flash_attention_kwargs(8, 8, True, supports_mapping=has)
        return made["deterministic"]

    assert asked(told) is True
    assert asked(_environment("trainer", 1, 1, deterministic=False)) is False
