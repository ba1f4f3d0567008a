"""The ledger under a driver that crashes at random: any history adds up."""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mixing.ledger.events import (
    Reason,
)
from mixing.ledger.ledger import read_account, rows
from rollouts.types import (
    GroupRequest,
    GroupSummary,
)
from tests.unit.mixing.ledgers import (
    another_attempt,
    graded,
    opened,
    request,
    whole_batch,
)

SOURCES = ("arith", "tools", "wörds")


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
        self.undone_steps = self.torn = 0
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
        for mine in self.pending.values():
            self.ledger.dispatched((mine,), saved.step)

    def crash(self) -> None:
        """Lose what was written since the last sync from a random byte on."""
        self.ledger.__exit__(None, None, None)
        length = self.path.stat().st_size
        kept = self.random.randint(self.saved.offset, length)
        with self.path.open("r+b") as file:
            file.truncate(kept)
            file.seek(kept - 1)
            self.torn += file.read(1) != b"\n"
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
            following = another_attempt(request, attempt)
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
    assert driver.ledger.failed_groups == driver.rejected.total()
    for name, source in account.sources.items():
        trained = source.trained
        counted = Counter(groups=trained.groups, samples=trained.samples, tokens=trained.tokens)
        assert counted == driver.trained.get(name, Counter())
        assert source.accepted.groups >= trained.groups
        assert source.in_flight == sum(g.source == name for g in account.open.values())
    undone = [r for r in rows(driver.path) if r.undone and b'"trained"' in r.text]
    assert len(undone) <= driver.undone_steps  # the rest was lost with the crash


def test_those_crashes_do_undo_and_tear(tmp_path: Path) -> None:
    undone = torn = 0
    for seed in range(30):
        driver = Driver(tmp_path / f"{seed}.jsonl", seed)
        while driver.step < 8:
            driver.act()
            if driver.random.random() < 0.05 and driver.attempt < 6:
                driver.crash()
        undone += sum(r.undone for r in rows(driver.path))
        torn += driver.torn
    assert undone > 50 and torn > 20


def test_a_reader_takes_every_prefix_of_a_live_file(tmp_path: Path) -> None:
    driver = Driver(tmp_path / "ledger.jsonl", seed=4)
    while driver.step < 5:
        driver.act()
    whole, cut = driver.path.read_bytes(), tmp_path / "cut.jsonl"
    for length in random.Random(1).sample(range(len(whole) + 1), 300):
        cut.write_bytes(whole[:length])
        assert read_account(cut).balanced
        assert b"".join(r.text for r in rows(cut)) == whole[: whole[:length].rfind(b"\n") + 1]
