"""Watch over the actors of a run: nobody waits for the dead, and nothing waits for ever.

Invariants:
- every call on an actor goes through `call`, which has a deadline and names what it waits for;
- an actor that dies while called fails that call within milliseconds (Ray tells the caller);
- an actor that dies idle, or falls silent, is found by its heartbeat: within `heartbeat_s`, or
  `silence_s`;
- the first failure is the run's: every other waiting call raises it too.

Actors run with `max_restarts=0`: a restart by Ray is slower to notice and loses the cause.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.errors import ActorFailure, RunError
from actors.heartbeat import Heartbeat
from actors.processes import ProcessId, end
from configs.errors import ConfigError
from configs.schema import HealthConfig

log = logging.getLogger("braid.supervisor")
T = TypeVar("T")
KILL_GRACE_S = 2.0
"""Seconds that a killed actor has until its processes are killed by pid."""


@dataclass(slots=True, kw_only=True)
class Member:
    """One actor of a group, as the driver knows it."""

    role: str
    index: int
    handle: ActorHandle
    node: str = "?"
    node_id: str = ""
    processes: tuple[ProcessId, ...] = ()
    answered: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """`role[index]`."""
        return f"{self.role}[{self.index}]"


class Supervisor:
    """Heartbeats and deadlines over the members given to `watch`."""

    def __init__(self, health: HealthConfig):
        self._health = health
        self._members: list[Member] = []
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []

    def watch(self, members: Sequence[Member]) -> None:
        """Begin heartbeats of started actors."""
        self._members.extend(members)
        self._tasks.extend(asyncio.create_task(self._heartbeats(m)) for m in members)

    @property
    def members(self) -> tuple[Member, ...]:
        """Actors under watch."""
        return tuple(self._members)

    def fail(self, error: BaseException) -> None:
        """Make `error` the run's failure; the first one stands."""
        if not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()  # marks it as retrieved

    async def call(
        self, member: Member, answer: Awaitable[T], *, doing: str, timeout_s: float
    ) -> T:
        """Await an actor's answer.

        Raises:
            ActorFailure: it died, raised, or did not answer in `timeout_s`; or any other
                supervised actor failed meanwhile.
            ConfigError: the actor found the input wrong.
        """
        task = asyncio.ensure_future(_awaited(answer))
        try:
            await asyncio.wait(
                {task, self._failed}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            if not task.done():
                task.cancel()  # nobody would hear of the actor's death later on
        if task.done():
            try:
                return task.result()
            except RayError as error:
                raise explain(member, doing, error) from error
        if self._failed.done():
            self._failed.result()
        raise ActorFailure(
            actor=member.name,
            node=member.node,
            doing=doing,
            cause=f"no answer within {timeout_s:g} s",
            remedy="Raise the deadline under `health`, or look into log.txt for what it was at.",
        )

    async def until_failed(self, waiting: Awaitable[T], *, doing: str, timeout_s: float) -> T:
        """Await something of the driver's own, unless an actor fails or time runs out first.

        Raises:
            RunError: `timeout_s` passed, or an actor failed.
        """
        task = asyncio.ensure_future(_awaited(waiting))
        try:
            await asyncio.wait(
                {task, self._failed}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if task.done():
                return task.result()
            if self._failed.done():
                self._failed.result()
            raise RunError(
                f"{doing} did not come within {timeout_s:g} s; the deadlines are under `health`"
            )
        finally:
            task.cancel()

    async def _heartbeats(self, member: Member) -> None:
        limit = self._health.silence_s
        doing = "heartbeat"
        while True:
            await asyncio.sleep(self._health.heartbeat_s)
            ref = member.handle.heartbeat.remote()
            try:
                async with asyncio.timeout(limit):
                    beat: Heartbeat = await _awaited(ref)
            except TimeoutError:
                cause = f"silent for {limit:g} s (frozen, or its node is unreachable); killed"
                self.fail(
                    ActorFailure(actor=member.name, node=member.node, doing=doing, cause=cause)
                )
                await asyncio.to_thread(kill_member, member)
                return
            except RayError as error:
                self.fail(explain(member, doing, error))
                return
            member.answered = time.monotonic()
            member.processes = beat.processes
            if beat.stuck_s > 0:
                cause = f"no progress for {beat.stuck_s:.0f} s while work waits; killed"
                self.fail(
                    ActorFailure(actor=member.name, node=member.node, doing=doing, cause=cause)
                )
                await asyncio.to_thread(kill_member, member)
                return

    async def close(self) -> None:
        """End the heartbeats."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _awaited(waiting: Awaitable[T]) -> T:
    return await waiting


def explain(member: Member, doing: str, error: RayError) -> Exception:
    """Turn Ray's exception into ours: the user's ConfigError as it is, all else an ActorFailure."""
    remedy = ""
    if isinstance(error, RayTaskError):
        cause_error = error.cause
        while isinstance(cause_error, BaseExceptionGroup):
            cause_error = cause_error.exceptions[0]
        if isinstance(cause_error, ConfigError | RunError):
            return cause_error
        kind = type(cause_error).__name__
        cause = f"{kind}: {_first_line(str(cause_error))}" if cause_error else str(error)
        log.error("%s, %s:\n%s", member.name, doing, error)
        remedy = "The actor's traceback is in log.txt."
    elif isinstance(error, OutOfMemoryError):
        cause = f"killed for lack of host memory: {_first_line(str(error))}"
        remedy = "Give the node more memory, or make batch or KV cache smaller."
    elif isinstance(error, ActorDiedError | ActorUnavailableError):
        cause = f"its process died: {_why_dead(str(error))}"
        log.error("%s, %s:\n%s", member.name, doing, error)
        remedy = "Ray's own word on it is in log.txt."
    else:
        cause = f"{type(error).__name__}: {_first_line(str(error))}"
    return ActorFailure(
        actor=member.name, node=member.node, doing=doing, cause=cause, remedy=remedy
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _why_dead(text: str) -> str:
    """Pick Ray's death cause out of its many lines."""
    for marker in ("exit detail:", "The actor is dead because", "The actor died because of"):
        _, found, rest = text.partition(marker)
        if found:
            return " ".join(rest.split())[:200]
    return _first_line(text)


def kill_member(member: Member) -> None:
    """End an actor with all its processes, also when it is frozen and hears no RPC."""
    try:
        ray.kill(member.handle, no_restart=True)
        if member.node_id and member.node_id != ray.get_runtime_context().get_node_id():
            remote_end: Any = ray.remote(num_cpus=0, max_retries=0)(end)
            pin = NodeAffinitySchedulingStrategy(member.node_id, soft=False)
            ref = remote_end.options(scheduling_strategy=pin).remote(member.processes, KILL_GRACE_S)
            ray.get(ref, timeout=30)
        else:
            end(member.processes, KILL_GRACE_S)
    except (RayError, OSError, ValueError) as error:
        log.warning("could not kill %s: %s", member.name, error)
