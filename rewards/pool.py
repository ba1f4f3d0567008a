"""A pool of killable grader processes.

Invariants:
- a process is used by one grading at a time, and returns to the idle queue when its thread is
  done with it, also when the caller was cancelled meanwhile;
- a process past its deadline is killed; its place is refilled in the background, so a hung
  grader costs its own rollout and nobody else's;
- a rollout leaves with a finite reward or as INVALID with the reason; never with a 0 in place of
  a failure.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from pydantic import JsonValue

from configs.schema import RewardGroupConfig, SourceConfig
from rewards import wire
from rewards.process import GraderProcess, GraderStartError
from rollouts.types import Boundary, Rollout, RolloutError, RolloutStatus, Task

__all__ = ["GraderPool", "GraderStartError"]

T = TypeVar("T")


class GraderPool:
    """Grades rollouts in `cfg.workers` processes. Use from one event loop."""

    def __init__(self, cfg: RewardGroupConfig, sources: Sequence[SourceConfig]):
        self._cfg = cfg
        self._rewards = {source.name: source.rewards for source in sources}
        self._processes = [GraderProcess(self._rewards) for _ in range(cfg.workers)]
        self._threads = ThreadPoolExecutor(cfg.workers, thread_name_prefix="grader")
        self._idle: asyncio.Queue[GraderProcess] = asyncio.Queue()
        self._background: set[asyncio.Task[object]] = set()
        self._closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the live workers."""
        return tuple(p.pid for p in self._processes if p.pid is not None)

    async def start(self) -> None:
        """Start all workers and wait until they have loaded their graders.

        Raises:
            GraderStartError: one could not start; all are killed.
        """
        starts = [self._in_thread(p.ensure_started) for p in self._processes]
        results = await asyncio.gather(*starts, return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                await self.close()
                raise error
        for process in self._processes:
            self._idle.put_nowait(process)

    async def grade(self, rollout: Rollout, task: Task) -> Rollout:
        """Return the rollout with its reward, or INVALID with the reason.

        An incoming INVALID rollout is returned as it is. A failure is tried again
        `cfg.retries` times.

        Raises:
            GraderStartError: a killed worker could not be replaced.
        """
        if rollout.status is RolloutStatus.INVALID:
            return rollout
        request: JsonValue = {"task": wire.pack_task(task), "rollout": wire.pack_rollout(rollout)}
        graded = await self._attempt(rollout, task, request)
        for _ in range(self._cfg.retries):
            if graded.status is not RolloutStatus.INVALID:
                break
            graded = await self._attempt(rollout, task, request)
        return graded

    async def close(self) -> None:
        """Kill all workers, reap them and end the threads. Gradings under way become INVALID."""
        self._closed = True
        for process in self._processes:
            process.interrupt()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)
        for process in self._processes:
            process.kill()

    async def _attempt(self, rollout: Rollout, task: Task, request: JsonValue) -> Rollout:
        if self._closed:
            return _invalid(rollout, "WorkerLost", "the grader pool is closed")
        process = await self._idle.get()
        grading = asyncio.ensure_future(self._use(process, request))
        self._keep(grading)
        try:
            parts = await asyncio.shield(grading)
        except TimeoutError:
            why = f"no reward within {self._cfg.timeout_s:g} s; the grader process was killed"
            return _invalid(rollout, "timeout", why)
        except wire.WorkerLost as error:
            return _invalid(rollout, "WorkerLost", str(error))
        return self._sum(rollout, task, parts)

    async def _use(self, process: GraderProcess, request: JsonValue) -> dict[str, wire.PartResult]:
        try:
            if self._closed:
                raise wire.WorkerLost("the grader pool is closed")
            return await self._in_thread(lambda: process.grade(request, self._cfg.timeout_s))
        finally:
            if process.pid is None and not self._closed:
                self._keep(asyncio.ensure_future(self._refill(process)))
            else:
                self._idle.put_nowait(process)

    async def _refill(self, process: GraderProcess) -> None:
        """Start a worker in place of a killed one. If that fails, the next grading that gets this
        place tries again, and raises."""
        try:
            await self._in_thread(process.ensure_started)
        except GraderStartError:
            pass
        finally:
            self._idle.put_nowait(process)

    def _sum(self, rollout: Rollout, task: Task, parts: dict[str, wire.PartResult]) -> Rollout:
        values: dict[str, float] = {}
        total = 0.0
        for reward in self._rewards[task.source]:
            part = parts[reward.name]
            if part["value"] is None:
                return _invalid(rollout, part["kind"], f"{reward.name}: {part['message']}")
            values[reward.name] = part["value"]
            total += reward.weight * part["value"]
        if not math.isfinite(total):
            return _invalid(rollout, "NotANumber", f"the weighted sum of {values} is {total}")
        return replace(rollout, reward=total, reward_parts=values)

    def _in_thread(self, call: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _keep(self, task: "asyncio.Task[object] | asyncio.Future[object]") -> None:
        self._background.add(task)  # type: ignore[arg-type]
        task.add_done_callback(self._forget)

    def _forget(self, task: "asyncio.Future[object]") -> None:
        self._background.discard(task)  # type: ignore[arg-type]
        if not task.cancelled():
            task.exception()  # read, so that one whose caller was cancelled is not reported


def _invalid(rollout: Rollout, kind: str, message: str) -> Rollout:
    return replace(
        rollout,
        status=RolloutStatus.INVALID,
        reward=None,
        error=RolloutError(boundary=Boundary.REWARD, kind=kind, message=message),
    )
