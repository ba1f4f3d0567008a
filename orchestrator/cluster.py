"""The actors of a run: started together, watched, and freed together."""

import asyncio
import logging
import os
import sys
from collections import defaultdict
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import ray
from ray.actor import ActorHandle
from ray.exceptions import AuthenticationError, RayError

from actors.critic import CriticActor
from actors.errors import RunError
from actors.groups import (
    CriticGroup,
    LessonGroup,
    ReferenceFleet,
    RewardFleet,
    RolloutFleet,
    TrainerGroup,
)
from actors.heartbeat import Heartbeat
from actors.judge import JudgeActor
from actors.lessons import LessonActor
from actors.placement import BundleDemand, Placement, Seat, reserve
from actors.reference import ReferenceActor
from actors.rendezvous import RendezvousActor
from actors.reward import RewardActor
from actors.reward_model import RewardModelActor
from actors.rollout import RolloutActor
from actors.supervisor import Member, Supervisor, kill_member
from actors.teacher import TeacherActor
from actors.trainer import TrainerActor
from configs.schema import RunConfig
from configs.validate import (
    is_judge,
    judge_role,
    reward_model_role,
    sampling_groups,
    teacher_role,
)
from orchestrator.deploy import ray_auth
from orchestrator.planning.plan import plan_bundles

log = logging.getLogger("braid.cluster")
_CONTROL = {"control": 1}
_LOOPBACK = ("127.0.0.1", "::1")
_UNSEATED = ("rendezvous", "lessons")
"""Roles that reserve nothing and may be anywhere."""
RAY_START_ATTEMPTS = 3


def _environment(role: str, cpus: float, gpus: float, *, deterministic: bool) -> dict[str, str]:
    """Return the environment variables of an actor's process.

    The folder that braid runs in goes along, so that a user's own modules are found.
    """
    # vLLM looks on it for the ninja that lies beside our Python, where it builds kernels.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    env = {
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # in libraries too: a pickle may not run code
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH")))),
    }
    if deterministic:
        env["PYTHONHASHSEED"] = "0"
        env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        env["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # torch's own switch does not reach flash-attn
    if (host := ray.util.get_node_ip_address()) in _LOOPBACK:
        env |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": host}
    if role != "reward":
        env["OMP_NUM_THREADS"] = str(max(1, int(cpus)))
    if gpus == 0:  # Ray leaves it the GPUs that the others have reserved
        env |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return env


def starts_after(bundles: Sequence[BundleDemand]) -> dict[str, tuple[str, ...]]:
    """Return whom each engine waits for, by names as `rollout[0]`.

    vLLM takes for its own what GPU memory disappears while it starts, and fails where some comes
    free. So of those that share a GPU, engines start last, and one after another.
    """
    found: dict[str, tuple[str, ...]] = {}
    for bundle in bundles:
        sharing = [s for s in bundle.seats if 0 < s.gpus < 1]
        earlier = [f"{s.role}[{s.index}]" for s in sharing if not _is_engine(s.role)]
        for engine in (s for s in sharing if _is_engine(s.role)):
            name = f"{engine.role}[{engine.index}]"
            found[name] = tuple(earlier)
            earlier.append(name)
    return found


def _is_engine(role: str) -> bool:
    return role == "rollout" or is_judge(role)


async def start_ray(cfg: RunConfig) -> None:
    """Join the recipe's cluster, or start a private one on this machine; bounded tries.

    Raises:
        ConfigError: the cluster to join has no token authentication, or there is no token for it.
        RunError: Ray did not start.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    joined, trusted = cfg.ray_address, cfg.allow_unauthenticated_ray
    if joined is not None:
        ray_auth.prepare_to_join(joined, trusted=trusted)
        options["address"] = joined
    else:
        ray_auth.private_token()
        ray_auth.stay_on_loopback()
        options |= {"address": "local", "include_dashboard": False}
    for attempt in range(1, RAY_START_ATTEMPTS + 1):
        try:
            async with asyncio.timeout(cfg.health.start_s):
                await asyncio.to_thread(ray.init, **options)
            break
        except Exception as error:  # what Ray raises where its own node is slow to start
            log.warning("Ray did not start (try %d): %s", attempt, error)
            if attempt == RAY_START_ATTEMPTS or isinstance(error, AuthenticationError):
                where = joined or "on this machine"
                raise RunError(f"Ray {where} did not start in {attempt} tries: {error}") from error
    if joined is not None and not trusted:
        gcs_address = ray.get_runtime_context().gcs_address
        await asyncio.to_thread(ray_auth.refuse_open, joined, gcs_address)


class ActorCluster:
    """Actors of a recipe: reserved, started, watched and freed together. Use `start`, then
    `close`."""

    def __init__(self, cfg: RunConfig):
        self._cfg = cfg
        self.supervisor = Supervisor(cfg.health)
        self._placement: Placement | None = None
        self._members: list[Member] = []
        self._after: Mapping[str, Sequence[str]] = {}
        self._up: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def _roles(self) -> Container[str] | None:
        """Return the roles that are started; None for all of the run."""
        return None

    def _create_groups(self, bundles: Sequence[BundleDemand]) -> list[Awaitable[Any]]:
        """Create the actors; return what is to be awaited until they are started."""
        raise NotImplementedError

    @classmethod
    async def start(cls, cfg: RunConfig, *more: Any) -> Self:
        """Reserve, create and start all actors, side by side.

        Raises:
            ConfigError: the cluster has no room, or an actor found the input wrong.
            ActorFailure: an actor died or did not come up in `health.start_s`.
        """
        cluster = cls(cfg, *more)
        try:
            await cluster._start()
        except BaseException:
            await cluster.close()
            raise
        return cluster

    async def _start(self) -> None:
        cfg = self._cfg
        bundles = [
            BundleDemand(
                group=b.members[0].role,
                seats=tuple(
                    Seat(role=m.role, index=m.index, cpus=m.cpus, gpus=m.gpus) for m in b.members
                ),
                labels=b.labels,
            )
            for b in plan_bundles(cfg, self._roles())
        ]
        self._placement = await reserve(
            bundles, timeout_s=cfg.health.placement_s, can_grow=cfg.ray_address is not None
        )
        self._after = starts_after(bundles)
        starting = [asyncio.ensure_future(a) for a in self._create_groups(bundles)]
        try:
            await asyncio.gather(*starting)
        finally:
            for task in starting:  # where one failed, others may wait for it
                task.cancel()
        self.supervisor.watch(self._members)

    async def _begin(self, member: Member, start: Callable[[], Awaitable[Any]]) -> Any:
        """Start an actor once those before it are up, and note where it runs.

        Raises:
            RunError: one of them is not up in `health.start_s`.
        """
        limit = self._cfg.health.start_s
        for name in self._after.get(member.name, ()):
            try:
                async with asyncio.timeout(limit):
                    await self._up[name].wait()
            except TimeoutError:
                raise RunError(
                    f"{member.name} shares its GPU with {name} and starts after it, which is not "
                    f"up after {limit:g} s"
                ) from None
        result = await self.supervisor.call(member, start(), doing="start", timeout_s=limit)
        beat: Heartbeat = await self.supervisor.call(
            member, member.handle.heartbeat.remote(), doing="first heartbeat", timeout_s=limit
        )
        member.processes, member.node, member.node_id = beat.processes, beat.node, beat.node_id
        self._up[member.name].set()
        return result

    def _create_all(
        self, role: str, cls: type, bundles: Sequence[BundleDemand], args: Any
    ) -> list[Member]:
        indices = sorted(s.index for b in bundles for s in b.seats if s.role == role)
        return [self._create(role, i, cls, args(i)) for i in indices]

    def _create(self, role: str, index: int, cls: type, args: tuple[Any, ...]) -> Member:
        seated: Mapping[str, object] = {"num_cpus": 0}
        node = "?"
        if role not in _UNSEATED:
            assert self._placement is not None
            seated = self._placement.options(role, index)
            node = self._placement.node(role, index)
        cpus = float(str(seated["num_cpus"]))
        make: Any = ray.remote  # whose types know no concurrency groups
        remote = make(concurrency_groups=_CONTROL)(cls)
        gpus = float(str(seated.get("num_gpus", 0)))
        env = _environment(role, cpus, gpus, deterministic=self._cfg.deterministic)
        handle: ActorHandle = remote.options(
            **seated,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": env},
        ).remote(*args)
        member = Member(role=role, index=index, handle=handle, node=node)
        self._members.append(member)
        return member

    async def close(self) -> None:
        """Free every actor and its processes. Safe to call at any point of a start. A signal that
        cancels it meanwhile takes effect when all are freed, which is bounded."""
        freeing = asyncio.ensure_future(self._free())
        cancelled = False
        while not freeing.done():
            try:
                await asyncio.wait([freeing])
            except asyncio.CancelledError:
                cancelled = True
        freeing.result()
        if cancelled:
            raise asyncio.CancelledError

    async def _free(self) -> None:
        await self.supervisor.close()
        graceful = [m for m in self._members if m.role == "reward" or _is_engine(m.role)]
        closing = [asyncio.ensure_future(_quietly(m.handle.close.remote())) for m in graceful]
        if closing:
            await asyncio.wait(closing, timeout=10)
        await asyncio.gather(*(asyncio.to_thread(kill_member, m) for m in self._members))
        if self._placement is not None:
            self._placement.release()


class TrainerCluster(ActorCluster):
    """The trainer alone: enough to train on batches that were kept."""

    trainer: TrainerGroup
    rendezvous: Member
    trains: type[TrainerActor] = TrainerActor
    """Class of the ranks."""

    def _roles(self) -> Container[str] | None:
        return ("trainer",)

    def _create_groups(self, bundles: Sequence[BundleDemand]) -> list[Awaitable[Any]]:
        cfg = self._cfg
        self.rendezvous = self._create("rendezvous", 0, RendezvousActor, ())
        world = cfg.trainer.actors.count
        trainer = self._create_all("trainer", self.trains, bundles, lambda i: (cfg, i, world))
        self.trainer = TrainerGroup(
            trainer,
            self.supervisor,
            cfg.health,
            sequence_parallel=cfg.trainer.sequence_parallel,
        )
        return [self._start_ranks(trainer)]

    async def _start_ranks(self, members: Sequence[Member]) -> None:
        host, port = await self._begin(self.rendezvous, self.rendezvous.handle.address.remote)
        starts = [partial(m.handle.start.remote, host, port) for m in members]
        await asyncio.gather(*map(self._begin, members, starts))


class LessonCluster(TrainerCluster):
    """The trainer, and what encodes rows for it: enough for supervised learning.

    Args:
        trainer: class of the ranks.
        lessons: arguments of the `LessonActor`.
    """

    lessons: LessonGroup

    def __init__(self, cfg: RunConfig, trainer: type[TrainerActor], lessons: tuple[Any, ...]):
        super().__init__(cfg)
        self.trains, self._lessons = trainer, lessons

    def _create_groups(self, bundles: Sequence[BundleDemand]) -> list[Awaitable[Any]]:
        starting = super()._create_groups(bundles)
        lessons = self._create("lessons", 0, LessonActor, self._lessons)
        self.lessons = LessonGroup([lessons], self.supervisor, self._cfg.health)
        return [*starting, self._begin(lessons, lessons.handle.start.remote)]


class SamplingCluster(ActorCluster):
    """The engines and graders of a recipe: enough to sample and grade."""

    rollout: RolloutFleet
    reward: RewardFleet
    judges: Mapping[str, Sequence[ActorHandle]]
    """Engines of each judge that has some."""

    def _roles(self) -> Container[str] | None:
        return sampling_groups(self._cfg)

    def _create_groups(self, bundles: Sequence[BundleDemand]) -> list[Awaitable[Any]]:
        cfg = self._cfg
        rollout = self._create_all("rollout", RolloutActor, bundles, lambda i: ())
        judges = {
            name: self._create_all(
                judge_role(name), JudgeActor, bundles, lambda i, name=name: (cfg, name, i)
            )
            for name, judge in cfg.judges.items()
            if judge.engines is not None
        }
        models = {
            name: self._create_all(
                reward_model_role(name), RewardModelActor, bundles, lambda i, name=name: (cfg, name)
            )
            for name in cfg.reward_models
        }
        teachers = {  # of none here unless something is trained
            name: self._create_all(
                teacher_role(name), TeacherActor, bundles, lambda i, name=name: (cfg, name)
            )
            for name in cfg.teachers
        }
        groups = (judges, models, teachers)
        handles = [{n: [m.handle for m in own] for n, own in g.items()} for g in groups]
        self.judges = handles[0]
        reward = self._create_all("reward", RewardActor, bundles, lambda i: (cfg, *handles))
        asked = [m for group in groups for own in group.values() for m in own]
        self.rollout = RolloutFleet(rollout, self.supervisor, cfg.health)
        self.reward = RewardFleet(reward, self.supervisor, cfg.health)
        return [
            self._start_engines(rollout),
            *(self._begin(m, m.handle.start.remote) for m in (*reward, *asked)),
        ]

    async def _start_engines(self, members: Sequence[Member]) -> None:
        starts = [partial(m.handle.start.remote, self._cfg, m.index) for m in members]
        self.rollout.infos = tuple(await asyncio.gather(*map(self._begin, members, starts)))


class Cluster(TrainerCluster, SamplingCluster):
    """Everything that a run has reserved and started."""

    reference: ReferenceFleet | None
    critic: CriticGroup | None

    def _roles(self) -> Container[str] | None:
        return None

    def _create_groups(self, bundles: Sequence[BundleDemand]) -> list[Awaitable[Any]]:
        cfg = self._cfg
        starting = TrainerCluster._create_groups(self, bundles)
        starting += SamplingCluster._create_groups(self, bundles)
        reference = self._create_all("reference", ReferenceActor, bundles, lambda i: (cfg,))
        self.reference = (
            ReferenceFleet(reference, self.supervisor, cfg.health) if reference else None
        )
        ranks = cfg.critic.actors.count
        critic = self._create_all("critic", CriticActor, bundles, lambda i: (cfg, i, ranks))
        self.critic = CriticGroup(critic, self.supervisor, cfg.health) if critic else None
        starting += [self._begin(m, m.handle.start.remote) for m in reference]
        return [*starting, self._start_ranks(critic)] if critic else starting


async def _quietly(answer: Awaitable[object]) -> None:
    """Await a closing actor; one that is dead already is closed."""
    try:
        await answer
    except RayError as error:
        log.debug("while closing: %s", error)
