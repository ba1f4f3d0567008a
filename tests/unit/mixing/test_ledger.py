"""The ledger: each way to break it is named, and what it tells of a run."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from configs.errors import ConfigError
from mixing.ledger.events import (
    Accepted,
    Attempt,
    Dispatched,
    DispatchedGroup,
    Event,
    MoveReason,
    Reason,
    Rejected,
    Score,
    Trained,
    TrainedGroup,
    from_row,
    to_row,
)
from mixing.ledger.ledger import LedgerError, read_account, rows
from rollouts.types import (
    SampleHandle,
)
from tests.unit.mixing.ledgers import batch_of, graded, opened, request, whole_batch

SCORE = Score(
    valid=1, invalid=0, truncated=0, reward=1.0, tokens=5, samples=1, loss_tokens=5, versions=(0, 0)
)
EVENTS: list[Event] = [
    Attempt(time=1, attempt=1, step=0, offset=0),
    Dispatched(time=1, step=1, version=0, groups=(DispatchedGroup('ä/train/"1#e0a0', "ä", 1),)),
    Accepted(time=2, group="x#e0a0", score=SCORE),
    Rejected(time=2, group="x#e0a0", reason="failed", why="no\nluck", score=SCORE),
    Trained(time=3, step=1, version=1, groups=(TrainedGroup("x#e0a0", 1, 5),)),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.event)
def test_an_event_is_one_line_and_comes_back_equal(event: Event) -> None:
    row = to_row(event)
    assert row.count(b"\n") == 1 and row.endswith(b"\n")
    assert from_row(row) == event


A, B = request("arith/train/1"), request("arith/train/2")


class Book:
    """A ledger with group A in it: dispatched, accepted or trained."""

    def __init__(self, path: Path, upto: str = "accepted"):
        self.ledger = opened(path)
        self.a = graded(A)
        self.ledger.dispatched((A,), 0)
        if upto in ("accepted", "trained"):
            self.ledger.accepted(self.a)
        if upto == "trained":
            self.train(1)

    def train(self, step: int, samples: Sequence[SampleHandle] | None = None) -> None:
        samples = self.a.samples if samples is None else samples
        self.ledger.trained(step, step, [self.a], batch_of(step, samples))

    def reject(self) -> None:
        self.ledger.rejected(graded(A, 0), Reason.FAILED, "too slow")


BREACHES: dict[str, tuple[str, Callable[[Book], None], str]] = {
    "dispatched twice": (
        "dispatched",
        lambda b: b.ledger.dispatched((A,), 0),
        "dispatched twice: arith/train/1#e0a0",
    ),
    "dispatched after training": (
        "trained",
        lambda b: b.ledger.dispatched((A,), 1),
        "dispatched again after its end: arith/train/1#e0a0",
    ),
    "accepted twice": (
        "accepted",
        lambda b: b.ledger.accepted(b.a),
        "accepted while already accepted: arith/train/1#e0a0",
    ),
    "accepted out of nowhere": (
        "accepted",
        lambda b: b.ledger.accepted(graded(B)),
        "accepted while never dispatched: arith/train/2#e0a0",
    ),
    "moved back": (
        "accepted",
        lambda b: b.ledger.moved(b.a.group_id, 1, MoveReason.LATE),
        "moved from step 1 to 1 while in step 1: arith/train/1#e0a0",
    ),
    "moved after training": (
        "trained",
        lambda b: b.ledger.moved(b.a.group_id, 2, MoveReason.LATE),
        "moved from step 2 to 2 while trained already: arith/train/1#e0a0",
    ),
    "trained twice": ("trained", lambda b: b.train(2), "trained twice: arith/train/1#e0a0"),
    "a step trained twice": (
        "trained",
        lambda b: b.ledger.trained(1, 1, [], batch_of(1, [])),
        "step 1 was trained after step 1",
    ),
    "trained ungraded": (
        "dispatched",
        lambda b: b.train(1),
        "trained while not graded: arith/train/1#e0a0",
    ),
    "rejected after training": (
        "trained",
        lambda b: b.reject(),
        "rejected while trained already: arith/train/1#e0a0",
    ),
    "trained after rejection": (
        "dispatched",
        lambda b: (b.reject(), b.train(1))[0],
        "trained while rejected: arith/train/1#e0a0",
    ),
    "a sample left out of the batch": (
        "accepted",
        lambda b: b.train(1, b.a.samples[:2]),
        "trained on 2 samples with 10 loss tokens, not on its 3 with 15: arith/train/1#e0a0",
    ),
    "a sample twice in the batch": (
        "accepted",
        lambda b: b.train(1, [*b.a.samples, b.a.samples[0]]),
        "trained on 4 samples with 20 loss tokens, not on its 3 with 15: arith/train/1#e0a0",
    ),
    "a sample of nobody in the batch": (
        "accepted",
        lambda b: b.train(1, [*b.a.samples, graded(B).samples[0]]),
        "trained while never dispatched: ?",
    ),
    "a group forgotten by its step": (
        "accepted",
        lambda b: (b.ledger.dispatched((B,), 0), b.train(1), b.ledger.check((B,)))[0],
        "step 1 is trained, and lost were arith/train/2#e0a0",
    ),
    "a group that nobody holds": (
        "accepted",
        lambda b: b.ledger.check(()),
        "dispatched, and nobody holds them: arith/train/1#e0a0",
    ),
    "a group held and not entered": (
        "accepted",
        lambda b: b.ledger.check((A, B)),
        "in flight, and not in the ledger as such: arith/train/2#e0a0",
    ),
    "sums that do not add up": (
        "trained",
        lambda b: b.ledger.check((A,)),
        "source arith: 1 groups dispatched, but 1 trained + 0 rejected + 1 in flight",
    ),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_ends_the_run_and_names_the_group(tmp_path: Path, breach: str) -> None:
    upto, act, message = BREACHES[breach]
    book = Book(tmp_path / "ledger.jsonl", upto)
    book.ledger.check(() if upto == "trained" else (A,))
    with pytest.raises(LedgerError) as caught:
        act(book)
    assert message in str(caught.value)


def test_evidence_of_a_breach_stays_in_the_file_and_resuming_undoes_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    book = Book(path, "trained")
    offset = book.ledger.offset
    with pytest.raises(LedgerError):
        book.train(2)
    assert read_account(path).trained_twice == [A.group_id]
    assert not read_account(path).balanced
    opened(path, attempt=2, step=1, offset=offset)
    assert read_account(path).balanced


def test_a_group_sampled_again_by_a_later_attempt_is_one_group(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    book = Book(path)
    ledger = opened(path, attempt=2, step=0, offset=book.ledger.offset, pending=(A,))
    ledger.dispatched((A,), 0)
    arith = read_account(path).sources["arith"]
    assert (arith.dispatched.groups, arith.accepted.groups, arith.dispatched.tokens) == (1, 0, 0)
    ledger.accepted(graded(A, 2))
    arith = read_account(path).sources["arith"]
    assert (arith.accepted.groups, arith.accepted.samples, arith.accepted.tokens) == (1, 2, 10)
    assert arith.dispatched.tokens == 15


def test_attempts_that_get_nowhere_undo_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    offset = Book(path).ledger.offset
    for attempt in (2, 3, 4):
        opened(path, attempt=attempt, offset=offset, pending=(A,)).dispatched((A,), 0)
    account = read_account(path)
    assert account.balanced and account.attempt == 4 and set(account.open) == {A.group_id}
    opened(path, attempt=5)
    account = read_account(path)
    assert account.balanced and account.attempt == 5 and not account.open
    assert [r.undone for r in rows(path)] == [True] * 9 + [False]


def test_figures_are_sums_by_reason(tmp_path: Path) -> None:
    book = Book(tmp_path / "ledger.jsonl", "trained")
    book.ledger.dispatched((B,), 1)
    book.ledger.rejected(graded(B, 0), Reason.GIVEN_UP, "x" * 999)
    assert book.ledger.figures() == {
        "ledger/dispatched": 2,
        "ledger/in_flight": 0,
        "ledger/trained": 1,
        "ledger/rolled_back": 0,
        "ledger/rejected/failed": 0,
        "ledger/rejected/given_up": 1,
        "ledger/rejected/zero_variance": 0,
        "ledger/rejected/surplus": 0,
        "ledger/rejected/stale": 0,
        "ledger/moved/late": 0,
        "ledger/moved/surplus": 0,
    }
    assert book.ledger.failed_groups == 1


def test_a_checkpoint_of_another_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    offset = Book(path).ledger.offset
    with pytest.raises(ConfigError, match="was cut or replaced"):
        opened(path, attempt=2, offset=offset + 1, pending=(A,))
    with pytest.raises(ConfigError, match="was cut or replaced"):
        opened(path, attempt=2, offset=offset - 1, pending=(A,))
    with pytest.raises(LedgerError, match=r"nobody holds them: arith/train/1#e0a0"):
        opened(path, attempt=2, offset=offset)
    with pytest.raises(LedgerError, match="goes on after step 3, and the ledger there is after"):
        opened(path, attempt=3, step=3, offset=offset, pending=(A,))


def test_a_damaged_row_that_counts_is_named_and_an_undone_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    offset = Book(path).ledger.offset
    with path.open("ab") as file:
        file.write(b'{"event":"attempt","ti\n')
    assert read_account(path).faults() == ['line 4 is no event: b\'{"event":"attempt","ti\\n\'']
    opened(path, attempt=2, offset=offset, pending=(A,))
    assert read_account(path).balanced


def test_a_full_disk_ends_the_run_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = opened(tmp_path / "ledger.jsonl")

    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mixing.ledger.ledger.os.write", full)
    with pytest.raises(LedgerError, match=r"ledger.jsonl cannot be written: No space left"):
        ledger.dispatched((A,), 0)


def test_what_a_full_disk_took_of_a_row_spoils_none_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room may come back before the step ends, whose checkpoint the next attempt goes on from."""
    path = tmp_path / "ledger.jsonl"
    ledger, write = opened(path), os.write
    trained = graded(A)
    ledger.dispatched((A, B), 0)
    ledger.accepted(trained)
    left = [20, 0]

    def full(descriptor: int, data: memoryview) -> int:
        if not (room := left.pop(0)):
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:room])

    with monkeypatch.context() as disk:
        disk.setattr("mixing.ledger.ledger.os.write", full)
        with pytest.raises(LedgerError, match="No space left"):
            ledger.accepted(graded(B))
    assert left == [] and ledger.offset == path.stat().st_size
    ledger.moved(B.group_id, 2, MoveReason.LATE)
    ledger.trained(1, 1, [trained], whole_batch(1, [trained]))
    ledger.check((B,))
    opened(path, attempt=2, step=1, offset=ledger.offset, pending=(B,)).check((B,))
    assert read_account(path).balanced


def test_a_moved_group_is_not_lost_and_a_dropped_one_has_its_score(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    book = Book(path, "accepted")
    book.ledger.dispatched((B,), 0)
    book.ledger.moved(B.group_id, 3, MoveReason.LATE)
    book.train(1)
    book.ledger.check((B,))
    book.ledger.moved(B.group_id, 5, MoveReason.SURPLUS)
    book.ledger.accepted(graded(B, 2))
    book.ledger.dropped(B.group_id, Reason.SURPLUS, "enough without it")
    book.ledger.check(())
    account = read_account(path)
    source = account.sources["arith"]
    assert source.moved == {"late": 1, "surplus": 1} and source.rejected == {"surplus": 1}
    assert (source.accepted.groups, source.survival) == (1, 1.0)


def test_a_group_that_nobody_waits_for_may_be_dropped_ungraded(tmp_path: Path) -> None:
    book = Book(tmp_path / "ledger.jsonl", "dispatched")
    book.ledger.dropped(book.a.group_id, Reason.SURPLUS, "enough without it")
    book.ledger.check(())
    account = read_account(tmp_path / "ledger.jsonl")
    assert account.balanced and account.sources["arith"].survival is None
