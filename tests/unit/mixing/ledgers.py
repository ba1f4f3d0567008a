"""Groups as the ledger meets them, and a ledger to enter them in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mixing.ledger.ledger import Ledger
from rollouts.types import (
    GroupRequest,
    GroupSummary,
    MicroBatchPlan,
    MinibatchPlan,
    SampleHandle,
    Sampling,
    Task,
    TrainBatch,
)
from tests.made_groups import made_group, made_rollout


def request(task_id: str, step: int = 1, *, epoch: int = 0, attempt: int = 0) -> GroupRequest:
    task = Task(task_id=task_id, source=task_id.split("/")[0], prompt=(), answer=None, metadata={})
    return GroupRequest(
        group_id=f"{task_id}#e{epoch}a{attempt}",
        task=task,
        group_size=3,
        sampling=Sampling(temperature=1.0, max_tokens=8),
        step=step,
    )


def graded(of: GroupRequest, valid: int = 3) -> GroupSummary:
    rewards = [float(i % 2) if i < valid else None for i in range(of.group_size)]
    samples = (SampleHandle(ref=None, row=i, num_tokens=9, num_loss_tokens=5) for i in range(valid))
    return made_group(
        [made_rollout(reward, 5) for reward in rewards],
        group_id=of.group_id,
        source=of.task.source,
        samples=samples,
        step=of.step,
    )


def batch_of(step: int, samples: Sequence[SampleHandle]) -> TrainBatch:
    """Deal the samples to two ranks."""
    grid = tuple((MicroBatchPlan(samples=tuple(samples[rank::2])),) for rank in range(2))
    return TrainBatch(
        step=step, minibatches=(MinibatchPlan(grid=grid, num_loss_tokens=1, num_samples=1),)
    )


def whole_batch(step: int, groups: Sequence[GroupSummary]) -> TrainBatch:
    return batch_of(step, [s for g in groups for s in g.samples])


def opened(path: Path, **changes: object) -> Ledger:
    where: dict[str, object] = {"attempt": 1, "step": 0, "offset": 0, "pending": ()}
    return Ledger.open(path, clock=lambda: 1e9, **{**where, **changes})  # type: ignore[arg-type]


def another_attempt(of: GroupRequest, attempt: int) -> GroupRequest:
    return replace(of, group_id=f"{of.group_id[:-1]}{attempt}")
