"""What the rows of a ledger add up to, and whether they can be true.

A group is in flight from `dispatched` until `trained` or `rejected`, and never comes back:

    dispatched ──► accepted ──► trained
        │ └────────────┴──────► rejected
        ├◄─ sampled again by a later attempt of the run, which owes it
        └◄─ moved to a later step, accepted or not

Invariants (a breach is a bug of ours; `breaches` names the groups):
- per source: dispatched = trained + rejected + in flight;
- no group is dispatched twice by one attempt, trained twice, or both trained and rejected;
- every sample of a group that is trained on was handed to the trainer, once;
- no group destined for a step that was trained is still in flight.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mixing.ledger.events import (
    QUALITY,
    Accepted,
    Attempt,
    Dispatched,
    DispatchedGroup,
    Event,
    Moved,
    Rejected,
    RolledBack,
    Score,
    Trained,
    TrainedGroup,
)

_NAMED = 5


@dataclass(slots=True)
class Tally:
    """An amount in each unit that a share may be counted in."""

    groups: int = 0
    samples: int = 0
    tokens: int = 0

    def add(self, groups: int, samples: int, tokens: int) -> None:
        """Add, or take away what is negative."""
        self.groups += groups
        self.samples += samples
        self.tokens += tokens


@dataclass(slots=True)
class SourceAccount:
    """One source's sums."""

    dispatched: Tally = field(default_factory=Tally)
    """Its tokens are all that were sampled."""
    accepted: Tally = field(default_factory=Tally)
    """Trained ones included; its tokens are loss tokens."""
    trained: Tally = field(default_factory=Tally)
    """Its tokens are loss tokens."""
    rolled_back: Tally = field(default_factory=Tally)
    """Of what was trained on, that which a rollback took out of the weights again."""
    rejected: Counter[str] = field(default_factory=Counter[str])
    """Groups by reason."""
    moved: Counter[str] = field(default_factory=Counter[str])
    """Moves to a later step, by reason."""

    @property
    def in_flight(self) -> int:
        """Groups that were dispatched and neither trained nor rejected."""
        return self.dispatched.groups - self.trained.groups - self.rejected.total()

    @property
    def survival(self) -> float | None:
        """Share of accepted groups among those that were accepted or not for what is in them;
        None before the first."""
        decided = self.accepted.groups + sum(self.rejected[reason] for reason in QUALITY)
        return self.accepted.groups / decided if decided else None


@dataclass(slots=True)
class OpenGroup:
    """A group in flight."""

    source: str
    rollouts: int
    step: int
    """Step that it is destined for."""
    attempt: int
    """Attempt of the run that dispatched it last."""
    score: Score | None = None
    """Once it is accepted."""


class Account:
    """Sums and open groups after the events so far. Closed groups are kept as hashes alone."""

    def __init__(self) -> None:
        self.sources: defaultdict[str, SourceAccount] = defaultdict(SourceAccount)
        self.open: dict[str, OpenGroup] = {}
        self.attempt = 0
        self.step = 0
        """Last trained step."""
        self.version = 0
        """Of the weights after it."""
        self.trained_twice: list[str] = []
        self.breaches: list[str] = []
        self._trained: set[int] = set()
        self._rejected: set[int] = set()
        self._in_weights: dict[int, dict[str, Tally]] = {}
        """By step and source, what was trained on and not rolled back."""

    def apply(self, event: Event) -> None:
        """Take the next event; what cannot be is added to `breaches`."""
        match event:
            case Attempt():
                self._start(event)
            case Dispatched():
                for group in event.groups:
                    self._dispatch(group, event.step)
            case Moved():
                self._move(event)
            case Accepted():
                self._accept(event)
            case Rejected():
                self._reject(event)
            case Trained():
                self._train(event)
            case RolledBack():
                self._roll_back(event)

    @property
    def lost(self) -> list[str]:
        """Groups still open although their step was trained."""
        return [name for name, group in self.open.items() if group.step <= self.step]

    @property
    def balanced(self) -> bool:
        """Whether nothing is lost, trained twice, or otherwise impossible."""
        return not (self.breaches or self.trained_twice or self.lost)

    def faults(self) -> list[str]:
        """Return everything that is wrong, each naming groups."""
        found = list(self.breaches)
        if self.trained_twice:
            found.append(f"trained twice: {name_some(self.trained_twice)}")
        if lost := self.lost:
            found.append(f"step {self.step} is trained, and lost were {name_some(lost)}")
        return found

    def compare(self, in_flight: Iterable[tuple[str, str]]) -> list[str]:
        """Return how the open groups differ from those that are said to be in flight, which
        somebody else has counted.

        Args:
            in_flight: group id and source of each.
        """
        claimed = dict(in_flight)
        found: list[str] = []
        if astray := [name for name in self.open if name not in claimed]:
            found.append(f"dispatched, and nobody holds them: {name_some(astray)}")
        if strange := [name for name in claimed if name not in self.open]:
            found.append(f"in flight, and not in the ledger as such: {name_some(strange)}")
        held = Counter(claimed.values())
        for name, source in self.sources.items():
            closed = source.trained.groups + source.rejected.total()
            if source.dispatched.groups != closed + held[name]:
                found.append(
                    f"source {name}: {source.dispatched.groups} groups dispatched, but "
                    f"{source.trained.groups} trained + {source.rejected.total()} rejected + "
                    f"{held[name]} in flight"
                )
        return found

    def _start(self, event: Attempt) -> None:
        if event.step != self.step:
            self.breaches.append(
                f"attempt {event.attempt} goes on after step {event.step}, and the ledger there "
                f"is after step {self.step}"
            )
        self.attempt = event.attempt

    def _dispatch(self, group: DispatchedGroup, step: int) -> None:
        name, source = group.group_id, self.sources[group.source]
        again = self.open.get(name)
        if hash(name) in self._trained or hash(name) in self._rejected:
            self.breaches.append(f"dispatched again after its end: {name}")
            return
        if again is not None and again.attempt == self.attempt:
            self.breaches.append(f"dispatched twice: {name}")
            return
        if again is None:
            source.dispatched.add(1, group.rollouts, 0)
        elif again.score is not None:
            source.dispatched.add(0, 0, -again.score.tokens)
            source.accepted.add(-1, -again.score.samples, -again.score.loss_tokens)
        self.open[name] = OpenGroup(group.source, group.rollouts, step, self.attempt)

    def _move(self, event: Moved) -> None:
        group = self.open.get(event.group)
        if group is None or group.step != event.before or event.step <= event.before:
            self.breaches.append(
                f"moved from step {event.before} to {event.step} while "
                f"{self._state(event.group) if group is None else f'in step {group.step}'}: "
                f"{event.group}"
            )
            return
        group.step = event.step
        self.sources[group.source].moved[event.reason] += 1

    def _accept(self, event: Accepted) -> None:
        group, score = self.open.get(event.group), event.score
        if group is None or group.score is not None:
            self.breaches.append(f"accepted while {self._state(event.group)}: {event.group}")
            return
        group.score = score
        source = self.sources[group.source]
        source.dispatched.add(0, 0, score.tokens)
        source.accepted.add(1, score.samples, score.loss_tokens)

    def _reject(self, event: Rejected) -> None:
        group = self.open.pop(event.group, None)
        if group is None:
            self.breaches.append(f"rejected while {self._state(event.group)}: {event.group}")
            return
        source = self.sources[group.source]
        if group.score is None:
            source.dispatched.add(0, 0, event.score.tokens)
        else:
            source.accepted.add(-1, -group.score.samples, -group.score.loss_tokens)
        source.rejected[event.reason] += 1
        self._rejected.add(hash(event.group))

    def _train(self, event: Trained) -> None:
        if event.step <= self.step:
            self.breaches.append(f"step {event.step} was trained after step {self.step}")
        self.step, self.version = max(self.step, event.step), event.version
        for group in event.groups:
            self._train_group(group, self._in_weights.setdefault(event.step, {}))

    def _roll_back(self, event: RolledBack) -> None:
        if event.step != self.step or not 0 < event.to < event.step:
            self.breaches.append(
                f"rolled back from step {event.step} to {event.to} after step {self.step}"
            )
            return
        for step in [s for s in self._in_weights if s > event.to]:
            for name, taken in self._in_weights.pop(step).items():
                self.sources[name].rolled_back.add(taken.groups, taken.samples, taken.tokens)

    def _train_group(self, group: TrainedGroup, step: dict[str, Tally]) -> None:
        name = group.group_id
        if hash(name) in self._trained:
            self.trained_twice.append(name)
            return
        known = self.open.get(name)
        if known is None or known.score is None:
            self.breaches.append(f"trained while {self._state(name)}: {name}")
            return
        score = known.score
        if (group.samples, group.loss_tokens) != (score.samples, score.loss_tokens):
            self.breaches.append(
                f"trained on {group.samples} samples with {group.loss_tokens} loss tokens, not on "
                f"its {score.samples} with {score.loss_tokens}: {name}"
            )
        del self.open[name]
        self._trained.add(hash(name))
        self.sources[known.source].trained.add(1, group.samples, group.loss_tokens)
        step.setdefault(known.source, Tally()).add(1, group.samples, group.loss_tokens)

    def _state(self, name: str) -> str:
        if name in self.open:
            return "already accepted" if self.open[name].score else "not graded"
        if hash(name) in self._trained:
            return "trained already"
        return "rejected" if hash(name) in self._rejected else "never dispatched"


def name_some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def shares(amounts: Mapping[str, int]) -> dict[str, float]:
    """Return each amount as a share of their sum; 0 where that is 0."""
    total = sum(amounts.values())
    return {name: amount / total if total else 0.0 for name, amount in amounts.items()}
