"""The account of every group, in one append-only file a run: `ledger.jsonl`.

Invariants:
- one writer, the driver; a row is written whole, in order, before the driver goes on;
- rows are never changed. A crash may tear the last one: readers pass it over, and the next
  attempt cuts it off. What a full disk takes only a part of is taken back at once: runs go on to
  their step's end, and may find room again;
- a checkpoint knows the ledger's length and is committed after `sync`. The attempt that goes on
  from it says so in a row, and the rows between the two count no more: they tell of what was
  undone;
- every row is checked against those before it, and a run that breaks the account ends.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, cast

from configs.errors import ConfigError, Problem
from mixing.ledger.account import Account
from mixing.ledger.events import (
    ATTEMPT_PREFIX,
    NO_SCORE,
    Accepted,
    Attempt,
    Dispatched,
    DispatchedGroup,
    Event,
    Moved,
    MoveReason,
    Reason,
    Rejected,
    RolledBack,
    Trained,
    from_row,
    score_of,
    to_row,
    trained_groups,
)
from rollouts.types import GroupRequest, GroupSummary, TrainBatch

_BLOCK = 1 << 16
_LONGEST_WHY = 200


class LedgerError(Exception):
    """The account does not add up, or cannot be kept: the run must not go on."""


class Ledger:
    """The writer. Use `with Ledger.open(...) as ledger`."""

    def __init__(self, path: Path, descriptor: int, clock: Callable[[], float]):
        self._path, self._descriptor, self._clock = path, descriptor, clock
        self._account = Account()
        self._offset = os.lseek(descriptor, 0, os.SEEK_END)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        attempt: int,
        step: int,
        offset: int,
        pending: Iterable[GroupRequest],
        clock: Callable[[], float] = time.time,
    ) -> "Ledger":
        """Begin an attempt of the run that owns the ledger at `path`.

        Args:
            step: the checkpoint's that the run goes on from; 0 for none.
            offset: the ledger's length that the checkpoint knows; 0 for none.
            pending: requests that the checkpoint carries: they and no others are in flight.

        Raises:
            ConfigError: the file is not the one that the checkpoint knows.
            LedgerError: it does not add up to what the checkpoint carries.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _cut_torn_row(descriptor)
            _check_offset(path, descriptor, offset)
            ledger = cls(path, descriptor, clock)
            ledger._begin(attempt, step, offset)
            ledger.check(pending)
        except BaseException:
            os.close(descriptor)
            raise
        return ledger

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    @property
    def offset(self) -> int:
        """Length of the file: a checkpoint's place in the ledger."""
        return self._offset

    @property
    def failed_groups(self) -> int:
        """Groups without a valid rollout, over all attempts of the run."""
        accounts = self._account.sources.values()
        return sum(a.rejected[Reason.FAILED] + a.rejected[Reason.GIVEN_UP] for a in accounts)

    def dispatched(self, requests: Sequence[GroupRequest], version: int) -> None:
        """Enter orders, made while the engines hold policy `version`."""
        for step in dict.fromkeys(r.step for r in requests):
            groups = tuple(
                DispatchedGroup(r.group_id, r.task.source, r.group_size)
                for r in requests
                if r.step == step
            )
            self._enter(Dispatched(time=self._now(), step=step, version=version, groups=groups))

    def accepted(self, summary: GroupSummary) -> None:
        """Enter a graded group that will be trained on."""
        group = summary.group_id
        self._enter(Accepted(time=self._now(), group=group, score=score_of(summary)))

    def rejected(self, summary: GroupSummary, reason: Reason, why: str) -> None:
        """Enter a group that never will be."""
        self._enter(
            Rejected(
                time=self._now(),
                group=summary.group_id,
                reason=reason,
                why=why[:_LONGEST_WHY],
                score=score_of(summary),
            )
        )

    def dropped(self, group: str, reason: Reason, why: str) -> None:
        """Enter a group in flight that nobody waits for any more, graded or not."""
        known = self._account.open.get(group)
        score = known.score if known is not None and known.score is not None else NO_SCORE
        self._enter(
            Rejected(
                time=self._now(), group=group, reason=reason, why=why[:_LONGEST_WHY], score=score
            )
        )

    def moved(self, group: str, step: int, reason: MoveReason) -> None:
        """Enter a group in flight that is destined for a later step from now on."""
        known = self._account.open.get(group)
        before = step if known is None else known.step
        self._enter(Moved(time=self._now(), group=group, before=before, step=step, reason=reason))

    def trained(
        self, step: int, version: int, groups: Sequence[GroupSummary], batch: TrainBatch
    ) -> None:
        """Enter a trained step: its groups, and what of them stood in the batch.

        Args:
            version: of the weights after the step.
        """
        what = trained_groups(groups, batch)
        self._enter(Trained(time=self._now(), step=step, version=version, groups=what))

    def rolled_back(self, step: int, to: int) -> None:
        """Enter that the weights after `step` are those after step `to` again."""
        self._enter(RolledBack(time=self._now(), step=step, to=to))

    def check(self, in_flight: Iterable[GroupRequest]) -> None:
        """Compare with those who hold the groups in flight.

        Raises:
            LedgerError: a group is lost, or the sums of a source do not add up.
        """
        held = [(r.group_id, r.task.source) for r in in_flight]
        self._refuse([*self._account.faults(), *self._account.compare(held)])

    def sync(self) -> None:
        """Force everything entered so far to disk; a checkpoint is committed after it."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise LedgerError(f"{self._path} cannot be written: {error.strerror}") from error

    def figures(self) -> dict[str, float]:
        """Return sums since the run began, as a step's metrics."""
        accounts = self._account.sources
        found: dict[str, float] = {
            "ledger/dispatched": sum(a.dispatched.groups for a in accounts.values()),
            "ledger/in_flight": len(self._account.open),
            "ledger/trained": sum(a.trained.groups for a in accounts.values()),
            "ledger/rolled_back": sum(a.rolled_back.groups for a in accounts.values()),
        }
        for reason in Reason:
            total = sum(a.rejected[reason] for a in accounts.values())
            found[f"ledger/rejected/{reason}"] = total
        for reason in MoveReason:
            found[f"ledger/moved/{reason}"] = sum(a.moved[reason] for a in accounts.values())
        return found

    def _begin(self, attempt: int, step: int, offset: int) -> None:
        """Enter the attempt, make the file's existence last, and take up what counts."""
        self._write(Attempt(time=self._now(), attempt=attempt, step=step, offset=offset))
        self.sync()
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._account = read_account(self._path)

    def _enter(self, event: Event) -> None:
        """Write the row, then see whether it can be true: a false one is kept as evidence."""
        self._write(event)
        self._account.apply(event)
        if self._account.breaches or self._account.trained_twice:
            self._refuse(self._account.faults())

    def _write(self, event: Event) -> None:
        """Write the row whole, or nothing of it: the next one must begin a line of its own."""
        row = to_row(event)
        left = memoryview(row)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            with suppress(OSError):  # what is left then is no event, which resuming names
                os.ftruncate(self._descriptor, self._offset)
            raise LedgerError(f"{self._path} cannot be written: {error.strerror}") from error
        self._offset += len(row)

    def _refuse(self, faults: Sequence[str]) -> None:
        if faults:
            raise LedgerError(
                f"{self._path} does not add up; this is a bug of ours:\n    "
                + "\n    ".join(faults)
            )

    def _now(self) -> int:
        return int(self._clock())


class Row(NamedTuple):
    """A line of the ledger as it stands."""

    number: int
    """Of the line, from 1."""
    undone: bool
    """Whether a later attempt went on from before it."""
    text: bytes


def rows(path: Path) -> Iterator[Row]:
    """Yield all whole rows, in order; a torn last one is left out. A live run's file will do."""
    undone = _undone_ranges(path)
    at = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            yield Row(number, any(low <= at < high for low, high in undone), line)
            at += len(line)


def read_account(path: Path) -> Account:
    """Return what the rows that count add up to; unreadable ones are breaches."""
    account = Account()
    for row in rows(path):
        if row.undone:
            continue
        try:
            event = from_row(row.text)
        except ValueError:
            account.breaches.append(f"line {row.number} is no event: {row.text[:40]!r}")
            continue
        account.apply(event)
    return account


def _undone_ranges(path: Path) -> list[tuple[int, int]]:
    """Return the byte ranges that do not count, by the rows of attempts that do."""
    starts: list[tuple[int, int]] = []
    at = 0
    with path.open("rb") as file:
        for line in file:
            if line.startswith(ATTEMPT_PREFIX) and line.endswith(b"\n"):
                with suppress(ValueError):  # a damaged row is named where it is read
                    starts.append((at, cast(Attempt, from_row(line)).offset))
            at += len(line)
    ranges: list[tuple[int, int]] = []
    end = at
    for start, offset in reversed(starts):
        if start < end and offset < start:
            ranges.append((offset, start))
            end = offset
    return ranges


def _cut_torn_row(descriptor: int) -> None:
    """Cut what stands after the last line's end."""
    end = os.lseek(descriptor, 0, os.SEEK_END)
    high = end
    while high > 0:
        low = max(0, high - _BLOCK)
        newline = os.pread(descriptor, high - low, low).rfind(b"\n")
        if newline >= 0:
            high = low + newline + 1
            break
        high = low
    if high < end:
        os.ftruncate(descriptor, high)


def _check_offset(path: Path, descriptor: int, offset: int) -> None:
    length = os.lseek(descriptor, 0, os.SEEK_END)
    whole = offset == 0 or os.pread(descriptor, 1, offset - 1) == b"\n"
    if offset > length or not whole:
        raise ConfigError(
            Problem(
                where=str(path),
                what=f"has {length} bytes; the checkpoint knows {offset}, up to the end of a row",
                fix="It was cut or replaced since: put it back, or start a new run.",
            )
        )
