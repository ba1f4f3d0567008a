"""All the actors of a run in one object, without Ray, and a run set up around them.

`FakeActors` samples, grades, trains and publishes at once; a test overrides the verb that it is
about. `attempt` puts the real loop, mixer, ledger, recorder and run directory around them, as
`orchestrator.run` does.
"""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.schema import RunConfig
from mixing.ledger.ledger import Ledger
from mixing.mixer import Mixer
from mixing.quota.edits import EditLog
from orchestrator.clock import PhaseClock
from orchestrator.loop import Parts, StopRequest, train
from orchestrator.publisher import SyncReport
from orchestrator.records.recorder import Recorder
from orchestrator.records.run_dir import RunDir
from orchestrator.resume.state import Checkpointer, Restored
from rollouts.types import (
    GeneratedGroup,
    GroupRequest,
    GroupSummary,
    Message,
    SampleHandle,
    StepResult,
    Task,
    TrainBatch,
)
from tests.made_groups import made_group, made_rollout


def made_task(source: str, item: object, *, split: str = "train") -> Task:
    return Task(
        task_id=f"{source}/{split}/{item}",
        source=source,
        prompt=(Message(role="user", content="?"),),
        answer="!",
        metadata={"nested": {"list": [1, 2.5, None]}},
    )


class MadeSource:
    """Items made of their number."""

    fingerprint = "made"

    def __init__(self, name: str, size: int = 1000, *, held_out: int = 0):
        self._name, self.size, self._held_out = name, size, held_out

    def task(self, index: int) -> Task:
        return made_task(self._name, index)

    def held_out(self) -> tuple[Task, ...]:
        return tuple(made_task(self._name, i, split="held_out") for i in range(self._held_out))


def generated(request: GroupRequest, ref: object = None) -> GeneratedGroup:
    """Return what the engines hand over of a group, whose reference is the request itself."""
    return GeneratedGroup(
        group_id=request.group_id, ref=ref or request, num_completion_tokens=2, generate_s=0.0
    )


def graded(
    request: GroupRequest,
    rewards: Sequence[float | None],
    *,
    version: int,
    newest: int | None = None,
    tokens: int = 3,
) -> GroupSummary:
    """Return what the graders make of a group.

    Args:
        rewards: of its rollouts; None where grading failed.
        version: the policy's that sampled it; where there were several, the oldest.
        newest: and the newest.
        tokens: sampled in each rollout, after a prompt of two.
    """
    samples = (
        SampleHandle(ref=request.group_id, row=row, num_tokens=tokens + 2, num_loss_tokens=tokens)
        for row, reward in enumerate(rewards)
        if reward is not None and request.step >= 0
    )
    return made_group(
        [made_rollout(reward, tokens) for reward in rewards],
        group_id=request.group_id,
        source=request.task.source,
        version=version,
        newest=newest,
        samples=samples,
        step=request.step,
    )


class FakeActors:
    """Every group of actors of a run, and its publisher; every reward is 1."""

    dp_size = 1
    reference = critic = None

    def __init__(self) -> None:
        self.version = 0
        """The engines'."""
        self.trained: list[int] = []
        """Steps."""
        self.evaluated: list[tuple[int, str]] = []
        """Version and source of each evaluation."""
        self.stop = StopRequest()
        self.trainer = self.rollout = self.reward = self.supervisor = self

    async def until_failed(self, waiting: Awaitable[Any], *, doing: str, timeout_s: float) -> Any:
        return await waiting

    async def generate(self, request: GroupRequest) -> GeneratedGroup:
        evaluation = (self.version, request.task.source)
        if request.step < 0 and evaluation not in self.evaluated:
            self.evaluated.append(evaluation)
        return generated(request)

    async def grade(self, group: GeneratedGroup) -> GroupSummary:
        assert isinstance(group.ref, GroupRequest)
        return self.judge(group.ref)

    def judge(self, request: GroupRequest) -> GroupSummary:
        return graded(request, [1.0] * request.group_size, version=self.version)

    async def train_step(self, batch: TrainBatch) -> StepResult:
        self.trained.append(batch.step)
        return StepResult(policy_version=batch.step, metrics={}, seconds={})

    async def open(self) -> None: ...

    async def publish(self, version: int) -> SyncReport:
        self.version = version
        return SyncReport(seconds={}, bytes=1, gap_median=None, gap_max=None)

    async def spell(self, *_: object) -> None: ...

    async def record(self, *_: object) -> None: ...

    async def load(self, folder: Path) -> None:
        raise AssertionError(f"{folder}: these actors have no state")


@dataclass
class NotedCheckpoints:
    """Writes nothing, and notes of which steps it was asked to."""

    saved: list[int] = field(default_factory=list)

    async def save(self, step: int, *_: object, last: bool, **__: object) -> None:
        self.saved.append(step)


@dataclass(frozen=True)
class Attempt:
    """A run that is set up to go on from where the last attempt ended."""

    parts: Parts
    restored: Restored
    out: io.StringIO

    @property
    def said(self) -> str:
        """What stands on the terminal."""
        return self.out.getvalue()

    @property
    def saved(self) -> list[int]:
        """Steps whose checkpoint was asked for, where none is written."""
        assert isinstance(self.parts.checkpoints, NotedCheckpoints)
        return self.parts.checkpoints.saved

    async def training(self) -> None:
        await train(self.parts, self.restored)

    def finish(self) -> None:
        """Train to the end."""
        asyncio.run(asyncio.wait_for(self.training(), 60))

    def kill(self, turns: int) -> None:
        """Train for some turns of the event loop, then kill it where it stands."""
        left = iter(range(turns))
        self.kill_once(lambda: next(left, None) is None)

    def kill_once(self, there: Callable[[], bool]) -> None:
        """Train until something is there, then kill it where it stands."""

        async def killed() -> None:
            task = asyncio.ensure_future(self.training())
            async with asyncio.timeout(60):
                while not (task.done() or there()):
                    await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

        asyncio.run(killed())


@contextmanager
def attempt(
    cfg: RunConfig,
    path: Path,
    actors: FakeActors,
    *,
    after: int | None = None,
    mixer: Mixer | None = None,
) -> Iterator[Attempt]:
    """Set up an attempt of the run at `path`.

    Args:
        after: go on from this step with a new ledger, and write no checkpoints. None: write them,
            and go on from the newest.
        mixer: None for the recipe's, with its live edits.
    """
    out = io.StringIO()
    with RunDir.open(path, cfg, "auto") as directory:
        mixer = mixer or Mixer(cfg, edits=EditLog(directory.mix_edits))
        if after is None:
            checkpoints, account = Checkpointer(cfg, directory), directory.ledger
            restored = checkpoints.newest(mixer)
        else:
            checkpoints, account = NotedCheckpoints(), path / f"ledger-{directory.attempt}.jsonl"
            restored = Restored(
                step=after, checkpoint=None, pending=(), rejected=(), ledger_offset=0
            )
        directory.truncate_after(restored.step)
        if restored.checkpoint is not None:
            asyncio.run(actors.load(restored.checkpoint.trainer))
        ledger = Ledger.open(
            account,
            attempt=directory.attempt if after is None else 1,
            step=restored.step if after is None else 0,
            offset=restored.ledger_offset,
            pending=restored.pending,
        )
        with ledger, Recorder(cfg, directory, Console(file=out, width=200)) as recorder:
            parts = Parts(
                cfg=cfg,
                cluster=actors,  # type: ignore[arg-type]
                mixer=mixer,
                ledger=ledger,
                publisher=actors,  # type: ignore[arg-type]
                recorder=recorder,
                checkpoints=checkpoints,  # type: ignore[arg-type]
                clock=PhaseClock(),
                stop=actors.stop,
            )
            yield Attempt(parts, restored, out)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
