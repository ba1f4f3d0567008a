"""Who fills a source's places in a step: its candidates, in dispatch order.

Invariants:
- places go to the first candidates in dispatch order that are worth training on, so that who
  finishes first changes nothing: neither who is trained on, nor how many are sampled;
- as many candidates are under way as places are open; where few of a source survive, more;
- what was decided of a step, and what its groups said, is that of its candidates up to the one
  that filled the last place: those behind are the next step's, if they can wait so long.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, TypedDict, cast

from mixing.slates.group_ids import Drawn


class Fate(StrEnum):
    """What became of a candidate so far."""

    RUNNING = "running"
    GOOD = "good"
    DEAD = "dead"
    """Given up, or without anything to learn from."""


class Note(TypedDict):
    """What a graded group said of its item."""

    pass_rate: float
    rollouts: int
    verdict: str


@dataclass(slots=True)
class Candidate:
    """One task that may fill a place."""

    group_id: str
    """Of its latest attempt."""
    task_id: str
    drawn: Drawn | None
    """None where the source's items are others since."""
    version: int
    """Policy version at which it was ordered, or an earlier one: it is no older than this."""
    last_chance: bool = False
    """Whether it is trained on even if its rewards are all equal."""
    refill: bool = False
    """Whether it was ordered because another came to nothing."""
    late: bool = False
    """Whether a step went without it."""
    fate: Fate = Fate.RUNNING
    note: Note | None = None


@dataclass(slots=True)
class Slate:
    """One source's part of one step."""

    needed: int = 0
    """Places."""
    candidates: list[Candidate] = field(default_factory=list[Candidate])
    spares: list[Drawn] = field(default_factory=list[Drawn])
    """Drawn for the step, and not ordered yet."""
    opened: bool = False
    """Whether spares may be ordered."""
    replaceable: int = 0
    """Candidates of its own, in dispatch order, that are replaced if they teach nothing."""
    ordered: int = 0
    """Candidates of its own so far."""
    joined: bool = False
    """Whether candidates of an earlier step were moved here."""
    spare_version: int = 0
    """Policy version at which spares could first be ordered."""

    @property
    def missing(self) -> int:
        """Candidates to order, so that every place can be filled."""
        alive = sum(c.fate is not Fate.DEAD for c in self.candidates)
        return max(0, self.needed - alive)

    def order(self, candidate: Candidate) -> None:
        """Add one behind the others."""
        candidate.last_chance = self.ordered >= self.replaceable
        self.ordered += 1
        self.candidates.append(candidate)

    def allow_replacements(self, count: int) -> None:
        """Let so many of its own candidates be replaced if they teach nothing, the first ones."""
        self.replaceable = count
        own = self.candidates[len(self.candidates) - self.ordered :]
        for index, candidate in enumerate(own):
            candidate.last_chance = index >= count

    def winners(self) -> list[Candidate] | None:
        """Return who fills the places; None while that is open."""
        found: list[Candidate] = []
        for candidate in self.candidates:
            if len(found) == self.needed:
                break
            if candidate.fate is Fate.RUNNING:
                return None
            if candidate.fate is Fate.GOOD:
                found.append(candidate)
        return found if len(found) == self.needed else None

    def split(self) -> tuple[list[Candidate], list[Candidate]]:
        """Return the candidates up to the one that filled the last place, and those behind."""
        places = self.needed
        for index, candidate in enumerate(self.candidates):
            if places == 0:
                return self.candidates[:index], self.candidates[index:]
            places -= candidate.fate is Fate.GOOD
        return list(self.candidates), []


class Place(NamedTuple):
    """Where a candidate is."""

    step: int
    source: str


class SlatesState(TypedDict):
    """All slates, as JSON: step, source and slate of each."""

    slates: list[list[Any]]


class Slates:
    """The slates of all steps in flight."""

    def __init__(self) -> None:
        self._slates: dict[int, dict[str, Slate]] = {}
        self._places: dict[str, Place] = {}
        """Of every candidate, by the group id of its latest attempt."""

    def of(self, step: int) -> Mapping[str, Slate]:
        """Return a step's slates by source."""
        return self._slates.get(step, {})

    def items(self, step: int) -> dict[str, set[int]]:
        """Return the items of a step's candidates, by source."""
        return {
            name: {c.drawn.item for c in slate.candidates if c.drawn is not None}
            for name, slate in self.of(step).items()
        }

    def at(self, step: int, source: str) -> Slate:
        """Return one slate; an empty one that is kept, where there was none."""
        slates = self._slates.setdefault(step, {})
        if (slate := slates.get(source)) is None:
            slate = slates[source] = Slate()
        return slate

    def place(self, group_id: str) -> Place | None:
        """Return where a candidate is; None for one that is no more."""
        return self._places.get(group_id)

    def find(self, group_id: str) -> tuple[Place, Candidate]:
        """Return a candidate and where it is; KeyError if it is no more."""
        place = self._places[group_id]
        slate = self._slates[place.step][place.source]
        return place, next(c for c in slate.candidates if c.group_id == group_id)

    def order(self, step: int, source: str, candidate: Candidate, *, places: int) -> None:
        """Add a candidate behind the others of its slate, and places to it."""
        slate = self.at(step, source)
        slate.needed += places
        slate.order(candidate)
        self._places[candidate.group_id] = Place(step, source)

    def rename(self, before: str, after: str) -> None:
        """Tell that a candidate's latest attempt has another id."""
        place, candidate = self.find(before)
        del self._places[before]
        candidate.group_id = after
        self._places[after] = place

    def move(self, candidate: Candidate, to: int) -> None:
        """Put a candidate before the slate's own of a later step, behind those moved before."""
        place, _ = self.find(candidate.group_id)
        self._slates[place.step][place.source].candidates.remove(candidate)
        slate = self.at(to, place.source)
        slate.candidates.insert(len(slate.candidates) - slate.ordered, candidate)
        slate.joined = True
        self._places[candidate.group_id] = Place(to, place.source)

    def drop(self, candidate: Candidate) -> None:
        """Take a candidate out."""
        place, _ = self.find(candidate.group_id)
        self._slates[place.step][place.source].candidates.remove(candidate)
        del self._places[candidate.group_id]

    def close(self, step: int) -> None:
        """Forget a step."""
        for slate in self._slates.pop(step, {}).values():
            for candidate in slate.candidates:
                del self._places[candidate.group_id]

    def forget(self, source: str) -> None:
        """Tell that a source's items are others: what waits of it is sampled all the same."""
        for slates in self._slates.values():
            if source in slates:
                slates[source].spares.clear()
                for candidate in slates[source].candidates:
                    candidate.drawn = None

    def __iter__(self) -> Iterator[tuple[int, str, Slate]]:
        for step, slates in self._slates.items():
            for source, slate in slates.items():
                yield step, source, slate

    def state_dict(self) -> SlatesState:
        """Return all slates."""
        return {"slates": [[step, source, asdict(slate)] for step, source, slate in self]}

    def load_state_dict(self, state: SlatesState) -> None:
        """Take up what `state_dict` returned: what was good is sampled again, and so runs."""
        self._slates, self._places = {}, {}
        for step, source, kept in cast("list[tuple[int, str, dict[str, Any]]]", state["slates"]):
            fields = dict(kept)
            fields["spares"] = [Drawn(*one) for one in fields["spares"]]
            fields["candidates"] = [_candidate(one) for one in fields["candidates"]]
            slate = Slate(**fields)
            self._slates.setdefault(step, {})[source] = slate
            for candidate in slate.candidates:
                self._places[candidate.group_id] = Place(step, source)


def _candidate(kept: Mapping[str, Any]) -> Candidate:
    fields = dict(kept)
    dead = fields["fate"] == Fate.DEAD
    fields["fate"] = Fate.DEAD if dead else Fate.RUNNING
    fields["drawn"] = None if fields["drawn"] is None else Drawn(*fields["drawn"])
    return Candidate(**fields)


def survivors(candidates: Sequence[Candidate]) -> tuple[int, int]:
    """Return how many of some candidates were good, and how many were decided."""
    good = sum(c.fate is Fate.GOOD for c in candidates)
    return good, good + sum(c.fate is Fate.DEAD for c in candidates)
