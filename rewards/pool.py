"""Grading in killable processes.

Invariants:
- a grading that raises, hangs past its deadline, kills its process or returns no number is tried
  `retries` times more and then INVALID: never a reward of 0;
- a hung grader costs no other rollout its grade: its process is killed by pid and replaced;
- no zombie: every process that is killed is waited for; none outlives the pool or its owner.
"""

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.schema import RewardGroupConfig, SourceConfig
from rewards.wire import WireReply, WireSetup, encode
from rollouts.types import Boundary, Rollout, RolloutError, RolloutStatus, Task

START_S = 60.0
"""Seconds that a grader process may take to import its graders."""
_LINE_LIMIT = 2**26


class GraderProcessError(RuntimeError):
    """A grader process that could not be started."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Worker:
    process: asyncio.subprocess.Process
    replies: asyncio.StreamReader
    transport: asyncio.ReadTransport

    async def ask(self, line: str, timeout_s: float) -> WireReply:
        """Send one line and await one; TimeoutError or ConnectionError if none comes."""
        assert self.process.stdin is not None
        async with asyncio.timeout(timeout_s):
            self.process.stdin.write(line.encode() + b"\n")
            await self.process.stdin.drain()
            answer = await self.replies.readline()
        if not answer:
            raise ConnectionError("the grader process died")
        return WireReply.model_validate_json(answer)

    async def kill(self) -> None:
        """Kill the process and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        self.transport.close()


class GraderPool:
    """Grader processes for the sources' rewards. `start` before use, `close` after."""

    def __init__(self, cfg: RewardGroupConfig, sources: Sequence[SourceConfig]):
        self._cfg = cfg
        self._weights = {s.name: {r.name: r.weight for r in s.rewards} for s in sources}
        self._setup = WireSetup(rewards={s.name: s.rewards for s in sources}).model_dump_json()
        self._idle: asyncio.Queue[_Worker | None] = asyncio.Queue()
        self._workers: set[_Worker] = set()

    async def start(self) -> None:
        """Start all processes, warm.

        Raises:
            GraderProcessError: one does not come up.
        """
        started = await asyncio.gather(*(self._spawn() for _ in range(self._cfg.workers)))
        for worker in started:
            self._idle.put_nowait(worker)

    async def grade(self, rollout: Rollout, task: Task) -> Rollout:
        """Return the rollout with its reward and parts, or INVALID with the reason.

        A rollout that is invalid already is returned as it is.
        """
        if rollout.status is RolloutStatus.INVALID:
            return rollout
        line = encode(rollout, task).model_dump_json()
        reply = WireReply()
        for _ in range(1 + self._cfg.retries):
            reply = await self._ask_one(line)
            if not reply.error_kind:
                weights = self._weights[task.source]
                reward = sum(weights[n] * v for n, v in reply.parts.items())
                return replace(rollout, reward=reward, reward_parts=reply.parts)
        error = RolloutError(boundary=Boundary.REWARD, kind=reply.error_kind, message=reply.error)
        return replace(rollout, status=RolloutStatus.INVALID, reward=None, error=error)

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the living workers."""
        return tuple(w.process.pid for w in self._workers)

    async def close(self) -> None:
        """Kill all processes."""
        workers, self._workers = self._workers, set()
        await asyncio.gather(*(w.kill() for w in workers))

    async def _ask_one(self, line: str) -> WireReply:
        """Have the next free process grade; one that fails is killed, and None stands for it in
        the queue, so that whoever draws it next starts another."""
        worker = await self._idle.get()
        kept: _Worker | None = None
        try:
            worker = worker or await self._spawn()
            reply = await worker.ask(line, self._cfg.timeout_s)
            kept = worker
        except TimeoutError:
            what = f"grading took longer than {self._cfg.timeout_s:g} s"
            reply = WireReply(error_kind="timeout", error=what)
        except ConnectionError as error:
            reply = WireReply(error_kind="crash", error=str(error))
        finally:
            if kept is None and worker is not None:
                self._workers.discard(worker)
                await worker.kill()
            self._idle.put_nowait(kept)
        return reply

    async def _spawn(self) -> _Worker:
        read_fd, write_fd = os.pipe()
        with tempfile.TemporaryFile() as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "rewards.worker", str(write_fd)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=(write_fd,),
                env=_environment(),
            )
            os.close(write_fd)
            replies = asyncio.StreamReader(limit=_LINE_LIMIT)
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(replies), os.fdopen(read_fd, "rb")
            )
            worker = _Worker(process=process, replies=replies, transport=transport)
            self._workers.add(worker)
            try:
                await worker.ask(self._setup, START_S)
            except (TimeoutError, ConnectionError) as error:
                self._workers.discard(worker)
                await worker.kill()
                stderr.seek(0)
                said = stderr.read().decode(errors="replace").strip().splitlines()
                last = said[-1] if said else "it said nothing"
                raise GraderProcessError(f"a grader process did not start: {last}") from error
        return worker


def _environment() -> dict[str, str]:
    """Return the worker's whole environment: no secret of the parent's is in it."""
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    }
