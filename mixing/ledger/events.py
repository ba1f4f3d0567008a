"""What may happen to a group, as rows of the ledger.

    attempt      the run started, or went on after a checkpoint's step
    dispatched   groups were ordered for a step
    moved        a group is destined for a later step than before, and why
    accepted     a group was graded and will be trained on
    rejected     a group will never be trained on, and why
    trained      a step's groups were trained on, and what of each
    rolled_back  the weights are those after an earlier step again

A group id is `<task_id>#e<epoch>a<attempt>`: source, item, epoch and attempt. A retry or a
replacement is a group of its own. Rows are pure data: what they add up to says
`mixing.ledger.account`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple, TypeAlias

from pydantic import Field, TypeAdapter

from rollouts.types import GroupSummary, RolloutStatus, TrainBatch


class Reason(StrEnum):
    """Why a group is never trained on."""

    FAILED = "failed"
    """No rollout was valid; the same task is sampled again."""
    GIVEN_UP = "given_up"
    """No rollout was valid, for the last time: another task of the source takes its place."""
    ZERO_VARIANCE = "zero_variance"
    """All rewards are equal, and the source asks for another task."""
    SURPLUS = "surplus"
    """More survived than were needed, and it would be too old for a later step."""
    STALE = "stale"
    """A step went without it, and it came too old for a later one."""


QUALITY = (Reason.FAILED, Reason.GIVEN_UP, Reason.ZERO_VARIANCE)
"""Reasons that lie in the group itself: it did not survive."""


class MoveReason(StrEnum):
    """Why a group is trained on in a later step than it was ordered for."""

    LATE = "late"
    """Its step had waited `mix.max_wait_s` for it."""
    SURPLUS = "surplus"
    """Its step had enough without it."""


class DispatchedGroup(NamedTuple):
    """One order; its id says which item, epoch and attempt."""

    group_id: str
    source: str
    rollouts: int


class TrainedGroup(NamedTuple):
    """What of one group the trainer was given."""

    group_id: str
    samples: int
    loss_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What grading said of a group."""

    valid: int
    invalid: int
    truncated: int
    reward: float | None
    """Mean over valid rollouts."""
    tokens: int
    """Sampled, over all rollouts."""
    samples: int
    """Fit to train on."""
    loss_tokens: int
    """In those samples."""
    versions: tuple[int, int]
    """Oldest and newest policy version that sampled it; -1 for none."""
    greedy: int = 0
    """Rollouts that were sampled as a baseline, which are neither valid nor trained on; their
    tokens count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A start of the run. What stands between `offset` and this row was undone: it came after
    the checkpoint that this attempt goes on from."""

    event: Literal["attempt"] = "attempt"
    time: int
    """Seconds since 1970, as in every row."""
    attempt: int
    """From 1."""
    step: int
    """The checkpoint's step; 0 for none."""
    offset: int
    """The ledger's length, in bytes, when the checkpoint was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatched:
    """Groups ordered at one moment for one step."""

    event: Literal["dispatched"] = "dispatched"
    time: int
    step: int
    """Step that they are destined for."""
    version: int
    """Policy version that the engines then held."""
    groups: tuple[DispatchedGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A group in flight that is destined for another step from now on."""

    event: Literal["moved"] = "moved"
    time: int
    group: str
    before: int
    """Step that it was destined for."""
    step: int
    reason: str
    """A `MoveReason`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A graded group that waits to be trained on."""

    event: Literal["accepted"] = "accepted"
    time: int
    group: str
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A group that is out for good."""

    event: Literal["rejected"] = "rejected"
    time: int
    group: str
    reason: str
    """A `Reason`."""
    why: str
    """In words, e.g. the first error."""
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A step that was trained."""

    event: Literal["trained"] = "trained"
    time: int
    step: int
    version: int
    """Of the weights after the step."""
    groups: tuple[TrainedGroup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """The weights are those after step `to` again: what was trained on since is no longer in
    them, and is not trained on again."""

    event: Literal["rolled_back"] = "rolled_back"
    time: int
    step: int
    """Last trained step."""
    to: int


Event: TypeAlias = Attempt | Dispatched | Moved | Accepted | Rejected | Trained | RolledBack
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
ATTEMPT_PREFIX = b'{"event":"attempt"'
"""How the row of an attempt begins."""


def to_row(event: Event) -> bytes:
    """Return the event as a line of JSON."""
    return _EVENT.dump_json(event) + b"\n"


def from_row(row: bytes) -> Event:
    """Return the event of a line; ValueError if it is none."""
    return _EVENT.validate_json(row)


NO_SCORE = Score(
    valid=0,
    invalid=0,
    truncated=0,
    reward=None,
    tokens=0,
    samples=0,
    loss_tokens=0,
    versions=(-1, -1),
)
"""Of a group that was not graded, or not for the driver to hear."""


def score_of(summary: GroupSummary) -> Score:
    """Return what the ledger keeps of a graded group."""
    statuses = Counter(r.status for r in summary.rollouts)
    sampled = (*summary.rollouts, *filter(None, [summary.greedy]))
    rewards = summary.rewards
    return Score(
        valid=len(rewards),
        invalid=statuses[RolloutStatus.INVALID],
        truncated=statuses[RolloutStatus.TRUNCATED],
        reward=round(sum(rewards) / len(rewards), 6) if rewards else None,
        tokens=sum(r.num_completion_tokens for r in sampled),
        samples=len(summary.samples),
        loss_tokens=sum(s.num_loss_tokens for s in summary.samples),
        versions=(summary.oldest_version, summary.newest_version),
        greedy=int(summary.greedy is not None),
    )


def trained_groups(groups: Sequence[GroupSummary], batch: TrainBatch) -> tuple[TrainedGroup, ...]:
    """Return what of each group stands in the batch that the trainer got.

    It is counted in the plan, not in the groups, so that a sample which planning dropped or used
    twice shows. A sample of no group counts for the group `?`.
    """
    owner = {id(sample): group.group_id for group in groups for sample in group.samples}
    samples: Counter[str] = Counter(dict.fromkeys((g.group_id for g in groups), 0))
    tokens: Counter[str] = Counter()
    for minibatch in batch.minibatches:
        for plan in (plan for rank in minibatch.grid for plan in rank):
            for sample in plan.samples:
                group_id = owner.get(id(sample), "?")
                samples[group_id] += 1
                tokens[group_id] += sample.num_loss_tokens
    return tuple(TrainedGroup(g, count, tokens[g]) for g, count in samples.items())
