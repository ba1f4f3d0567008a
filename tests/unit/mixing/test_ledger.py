"""The ledger: any history adds up, a crash costs nothing, and each way to break it is named."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from configs.errors import ConfigError
from mixing.account import Account
from mixing.ledger import Ledger, LedgerError, read_account, rows
from mixing.ledger_events import (
    Accepted,
    Attempt,
    Dispatched,
    DispatchedGroup,
    Event,
    Reason,
    Rejected,
    Score,
    Trained,
    TrainedGroup,
    from_row,
    to_row,
)
from rollouts.types import (
    GroupRequest,
    GroupSummary,
    MicroBatchPlan,
    MinibatchPlan,
    RolloutStats,
    RolloutStatus,
    SampleHandle,
    Sampling,
    Task,
    TrainBatch,
)

SOURCES = ("arith", "tools", "wörds")


def request(task_id: str, step: int = 1, *, epoch: int = 0, attempt: int = 0) -> GroupRequest:
    task = Task(
        task_id=task_id, source=task_id.split("/")[0], prompt=(), answer=None, metadata={}
    )
    return GroupRequest(
        group_id=f"{task_id}#e{epoch}a{attempt}",
        task=task,
        group_size=3,
        sampling=Sampling(temperature=1.0, max_tokens=8),
        step=step,
    )


def graded(of: GroupRequest, valid: int = 3) -> GroupSummary:
    def stats(index: int) -> RolloutStats:
        ok = index < valid
        return RolloutStats(
            reward=float(index % 2) if ok else None,
            reward_parts={},
            num_completion_tokens=5,
            status=RolloutStatus.COMPLETED if ok else RolloutStatus.INVALID,
            error=None,
        )

    samples = (SampleHandle(ref=None, row=i, num_tokens=9, num_loss_tokens=5) for i in range(valid))
    return GroupSummary(
        group_id=of.group_id,
        task_id=of.task.task_id,
        source=of.task.source,
        step=of.step,
        rollouts=tuple(stats(i) for i in range(of.group_size)),
        samples=tuple(samples),
        group_ref=None,
        oldest_version=0,
        newest_version=0,
        generate_s=0.0,
        grade_s=0.0,
    )


def batch_of(step: int, samples: Sequence[SampleHandle]) -> TrainBatch:
    """Deal the samples to two ranks."""
    grid = tuple((MicroBatchPlan(samples=tuple(samples[rank::2])),) for rank in range(2))
    return TrainBatch(step=step, minibatches=(MinibatchPlan(grid=grid, num_loss_tokens=1),))


def whole_batch(step: int, groups: Sequence[GroupSummary]) -> TrainBatch:
    return batch_of(step, [s for g in groups for s in g.samples])


def opened(path: Path, **changes: object) -> Ledger:
    where: dict[str, object] = {"attempt": 1, "step": 0, "offset": 0, "pending": ()}
    return Ledger.open(path, clock=lambda: 1e9, **{**where, **changes})  # type: ignore[arg-type]


@dataclass
class Saved:
    """What a checkpoint of the simulated driver holds."""

    step: int = 0
    planned: int = 0
    drawn: int = 0
    offset: int = 0
    pending: dict[str, GroupRequest] = field(default_factory=dict)
    trained: dict[str, Counter[str]] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)


class Driver:
    """A driver in miniature: it runs ahead, fails, retries, replaces, trains and crashes, all at
    random, and counts for itself."""

    def __init__(self, path: Path, seed: int):
        self.path, self.random = path, random.Random(seed)
        self.ahead = self.random.randrange(3)
        self.attempt, self.saved = 0, Saved()
        self.undone_steps = 0
        self.resume()

    def resume(self) -> None:
        self.attempt += 1
        saved = self.saved
        self.step, self.planned, self.drawn = saved.step, saved.planned, saved.drawn
        self.pending = dict(saved.pending)
        self.trained = {n: Counter(c) for n, c in saved.trained.items()}
        self.rejected = Counter(saved.rejected)
        self.summaries: dict[str, GroupSummary] = {}
        self.ledger = opened(
            self.path,
            attempt=self.attempt,
            step=saved.step,
            offset=saved.offset,
            pending=self.pending.values(),
        )
        for request in self.pending.values():
            self.ledger.dispatched((request,), saved.step)

    def crash(self) -> None:
        """Lose what was written since the last sync from a random byte on."""
        self.ledger.__exit__(None, None, None)
        length = self.path.stat().st_size
        kept = self.random.randint(self.saved.offset, length)
        with self.path.open("r+b") as file:
            file.truncate(kept)
            if self.random.random() < 0.2:
                file.seek(kept)
                file.write(b"\0" * self.random.randrange(100))
        self.undone_steps += self.step - self.saved.step
        self.resume()

    def checkpoint(self) -> None:
        self.ledger.check(self.pending.values())
        self.saved = Saved(
            step=self.step,
            planned=self.planned,
            drawn=self.drawn,
            offset=self.ledger.offset,
            pending=dict(self.pending),
            trained={n: Counter(c) for n, c in self.trained.items()},
            rejected=Counter(self.rejected),
        )
        self.ledger.sync()

    def act(self) -> None:
        """Do one thing that a driver may do now."""
        if self.planned <= self.step + self.ahead:
            self.planned += 1
            requests = tuple(self.draw(self.planned) for _ in range(self.random.randint(1, 6)))
            self.pending.update((r.group_id, r) for r in requests)
            self.ledger.dispatched(requests, self.step)
        elif waiting := [p for p in self.pending if p not in self.summaries]:
            self.grade(self.random.choice(waiting))
        if self.ready():
            self.train()
            if self.random.random() < 0.4:
                self.checkpoint()

    def draw(self, step: int, source: str | None = None) -> GroupRequest:
        self.drawn += 1
        source = source or self.random.choice(SOURCES)
        item, epoch = self.drawn % 7, self.drawn // 7
        return request(f"{source}/train/{item}", step, epoch=epoch)

    def grade(self, place: str) -> None:
        request = self.pending[place]
        valid = self.random.randint(0, 3)
        summary = graded(request, valid)
        if valid:
            self.summaries[place] = summary
            self.ledger.accepted(summary)
            return
        attempt = int(request.group_id[-1]) + 1
        again = attempt < 3
        reason = Reason.FAILED if again else Reason.GIVEN_UP
        self.ledger.rejected(summary, reason, "grader: too slow")
        self.rejected[reason] += 1
        if again:
            following = graded_id(request, attempt)
        else:
            following = self.draw(request.step, request.task.source)
        self.pending[place] = following
        self.ledger.dispatched((following,), self.step)

    def ready(self) -> bool:
        places = [p for p, r in self.pending.items() if r.step == self.step + 1]
        return bool(places) and all(p in self.summaries for p in places)

    def train(self) -> None:
        self.step += 1
        places = [p for p, r in self.pending.items() if r.step == self.step]
        groups = [self.summaries.pop(p) for p in places]
        self.ledger.trained(self.step, self.step, groups, whole_batch(self.step, groups))
        for place, group in zip(places, groups, strict=True):
            del self.pending[place]
            counts = self.trained.setdefault(group.source, Counter())
            counts["groups"] += 1
            counts["samples"] += len(group.samples)
            counts["tokens"] += sum(s.num_loss_tokens for s in group.samples)
        self.ledger.check(self.pending.values())


def graded_id(request_: GroupRequest, attempt: int) -> GroupRequest:
    task_id, epoch = request_.task.task_id, int(request_.group_id.split("#e")[1].split("a")[0])
    return request(task_id, request_.step, epoch=epoch, attempt=attempt)


@pytest.mark.parametrize("seed", range(60))
def test_any_history_with_crashes_adds_up(tmp_path: Path, seed: int) -> None:
    driver = Driver(tmp_path / "ledger.jsonl", seed)
    while driver.step < 12:
        driver.act()
        if driver.random.random() < 0.02 and driver.attempt < 6:
            driver.crash()
    driver.ledger.check(driver.pending.values())

    account = read_account(driver.path)
    assert account.balanced and not account.faults()
    assert (account.step, account.attempt) == (12, driver.attempt)
    assert set(account.open) == {r.group_id for r in driver.pending.values()}
    assert sum((s.rejected for s in account.sources.values()), Counter()) == driver.rejected
    for name, source in account.sources.items():
        trained = source.trained
        counted = Counter(groups=trained.groups, samples=trained.samples, tokens=trained.tokens)
        assert counted == driver.trained.get(name, Counter())
        assert source.accepted.groups >= trained.groups
        assert source.in_flight == sum(g.source == name for g in account.open.values())
    undone = [from_row(r.text) for r in rows(driver.path) if r.undone and b'"trained"' in r.text]
    assert len(undone) <= driver.undone_steps  # the rest was lost with the crash


def test_crashes_in_those_histories_do_undo_and_tear(tmp_path: Path) -> None:
    undone = torn = 0
    for seed in range(30):
        driver = Driver(tmp_path / f"{seed}.jsonl", seed)
        while driver.step < 8:
            driver.act()
            if driver.random.random() < 0.05 and driver.attempt < 6:
                driver.ledger.__exit__(None, None, None)
                whole = driver.path.read_bytes()
                torn += not whole[: driver.random.randint(driver.saved.offset, len(whole))].endswith(b"\n")
                driver.crash_after_close()
        undone += sum(r.undone for r in rows(driver.path))
    assert undone > 50 and torn > 5
