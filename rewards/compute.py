"""Killable processes in which COMPUTE graders run.

Invariants:
- a process is used by one grading at a time, and returns to the idle queue when its thread is
  done with it, also when the caller was cancelled meanwhile;
- a process past its deadline is killed; its place is refilled in the background, so a hung
  grader costs its own rollout and nobody else's;
- a grading ends in a score or in GradeFailed with the reason; never in a 0 in place of a failure.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from configs.graders.union import GraderConfig
from configs.schema import RewardGroupConfig
from rewards import wire
from rewards.process import GraderProcess, GraderStartError
from rewards.score import FailureKind, GradeFailed, Score
from rewards.subject import Subject

__all__ = ["ComputePool", "GraderStartError"]

T = TypeVar("T")


class ComputePool:
    """Grades by rule in `cfg.workers` processes. Use from one event loop."""

    def __init__(self, cfg: RewardGroupConfig, graders: Mapping[str, GraderConfig]):
        """Start nothing yet.

        Args:
            graders: COMPUTE graders by path.
        """
        self._cfg = cfg
        self._timeouts = {p: g.timeout_s or cfg.timeout_s for p, g in graders.items()}
        self._processes = [GraderProcess(graders, cfg.sandbox) for _ in range(cfg.workers)]
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

    async def compute(self, path: str, subject: Subject) -> Score:
        """Return the score of the grader at `path`; a failure is tried again `cfg.retries` times.

        Raises:
            GradeFailed: it could not judge, took too long, or its process died.
            GraderStartError: a killed worker could not be replaced.
        """
        for left in range(self._cfg.retries, -1, -1):
            try:
                return await self._attempt(path, subject)
            except GradeFailed:
                if left == 0:
                    raise
        raise AssertionError("retries is negative")

    async def close(self) -> None:
        """Kill all workers, reap them and end the threads. Gradings under way become INVALID."""
        self._closed = True
        await asyncio.gather(*(asyncio.to_thread(p.interrupt) for p in self._processes))
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)
        for process in self._processes:
            process.kill()

    async def _attempt(self, path: str, subject: Subject) -> Score:
        if self._closed:
            raise GradeFailed(FailureKind.WORKER_LOST, "the grader pool is closed")
        process = await self._idle.get()
        grading = asyncio.ensure_future(self._use(process, path, subject))
        self._keep(grading)
        try:
            return await asyncio.shield(grading)
        except TimeoutError:
            why = f"no reward within {self._timeouts[path]:g} s; the grader process was killed"
            raise GradeFailed(FailureKind.TIMEOUT, why) from None
        except wire.WorkerLost as error:
            raise GradeFailed(FailureKind.WORKER_LOST, str(error)) from error
        except GraderStartError as error:
            if not self._closed:
                raise
            raise GradeFailed(FailureKind.WORKER_LOST, str(error)) from error

    async def _use(self, process: GraderProcess, path: str, subject: Subject) -> Score:
        try:
            if self._closed:
                raise wire.WorkerLost("the grader pool is closed")
            timeout_s = self._timeouts[path]
            return await self._in_thread(lambda: process.grade(path, subject, timeout_s))
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

    def _in_thread(self, call: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _keep(self, task: "asyncio.Task[object] | asyncio.Future[object]") -> None:
        self._background.add(task)  # type: ignore[arg-type]
        task.add_done_callback(self._forget)

    def _forget(self, task: "asyncio.Future[object]") -> None:
        self._background.discard(task)  # type: ignore[arg-type]
        if not task.cancelled():
            task.exception()  # read, so that one whose caller was cancelled is not reported
