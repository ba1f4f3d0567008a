"""Who of the groups that were ordered is trained on, and when.

Invariants:
- a candidate leaves a step by being trained on, by coming to nothing, by moving to a later step, or
  as surplus: each is told to the caller, so that none is lost;
- with waits off, all of it is a function of what became of each candidate and of the calls' order,
  which the policy version decides, never of time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TypedDict

from configs.schema import RunConfig
from mixing.difficulty.feedback import Feedback
from mixing.difficulty.window import Widened
from mixing.quota.allocator import Allocator, MixEvent
from mixing.slates.returned import Returned, ReturnedState
from mixing.slates.slate import Candidate, Fate, Slates, SlatesState, survivors
from mixing.slates.step_plan import StepPlan, StepPlanState
from mixing.slates.survival import Survival, SurvivalState
from rollouts.filters import Verdict
from rollouts.staleness import staleness
from rollouts.types import GroupSummary

_LATE_STEPS, _LATE_OFTEN = 10, 3
"""A source that was late in so many of so many steps is warned of."""


class CastingState(TypedDict):
    """A casting's state, as JSON."""

    plans: dict[str, StepPlanState]
    slates: SlatesState
    returned: ReturnedState
    survival: SurvivalState
    late: dict[str, list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """What became of a step's candidates that it was not trained on."""

    moved: Mapping[str, int]
    """Groups that may still be trained on, and in which step."""
    surplus: tuple[str, ...]
    """Groups that no later step may have, graded or not."""
    warnings: tuple[Widened, ...]


class Casting:
    """The candidates of all steps in flight, and what is known of the sources' survival."""

    def __init__(self, cfg: RunConfig, allocator: Allocator, feedback: Feedback):
        self._cfg, self._allocator, self._feedback = cfg, allocator, feedback
        self._bounds = {s.name: cfg.max_staleness(s) for s in cfg.sources}
        self.plans: dict[int, StepPlan] = {}
        """Steps in flight, and the last ones trained."""
        self.slates = Slates()
        self.returned = Returned()
        self.survival = Survival(self._bounds, cfg.mix.over_dispatch)
        self._late: dict[str, list[int]] = {}
        """Steps that lately went without groups of a source."""

    def more(self, step: int, name: str) -> int:
        """Return how many groups of a source to order for `step` at once, besides those that have
        a place: so many that enough should survive, together with what earlier steps leave over.
        """
        slate, survival = self.slates.at(step, name), self.survival
        earlier = [
            self.slates.at(s, name)
            for s in range(step - self._bounds[name], step)
            if name in self.slates.of(s)
        ]
        ordered = sum(not c.refill for s in earlier for c in s.candidates)
        left_over = ordered - sum(s.needed for s in earlier) / survival.rate(name)
        most = survival.candidates(name, slate.ordered) - slate.ordered
        return max(0, min(most, ceil(most - left_over)))

    def give_up(self, group_id: str) -> None:
        """Tell that a task never had a valid rollout: another one may take its place."""
        self.slates.find(group_id)[1].fate = Fate.DEAD

    def graded(self, summary: GroupSummary) -> Verdict | None:
        """Take in a group with a valid rollout; return what is to be made of it, or None where it
        came too late to be trained on within its source's bound."""
        place, candidate = self.slates.find(summary.group_id)
        if candidate.late and staleness(summary, place.step - 1) > self._bounds[place.source]:
            self.slates.at(*place).needed -= 1
            self._miss(place.step, place.source)
            self._give_back(place.source, candidate)
            self.slates.drop(candidate)
            return None
        note = self._feedback.judge(place.source, summary, last_chance=candidate.last_chance)
        candidate.note = note
        verdict = Verdict.TRAIN if note is None else Verdict(note["verdict"])
        candidate.fate = Fate.DEAD if verdict is Verdict.RESAMPLE else Fate.GOOD
        return verdict

    def lineup(self, step: int) -> tuple[str, ...] | None:
        """Return the groups that `step` is to be trained on, sources interleaved; None while that
        is open."""
        plan = self.plans.get(step)
        if plan is None or plan.undrawn():
            return None
        winners: dict[str, Iterator[Candidate]] = {}
        for name, slate in self.slates.of(step).items():
            if (found := slate.winners()) is None:
                return None
            winners[name] = iter(found)
        placed = [w for name in plan.places if (w := next(winners[name], None)) is not None]
        moved_here = [w for rest in winners.values() for w in rest]
        return tuple(w.group_id for w in (*placed, *moved_here))

    def defer(self, step: int) -> Mapping[str, int] | None:
        """Let `step` go without the groups that are not there; return those that were moved, and
        to which step each. None where nothing is there, or no step comes after."""
        slates = self.slates.of(step)
        here = {n: sum(c.fate is Fate.GOOD for c in s.candidates) for n, s in slates.items()}
        filled = sum(min(here[name], slate.needed) for name, slate in slates.items())
        if step >= self._cfg.num_steps or filled == 0:
            return None
        moved: dict[str, int] = {}
        for name, slate in list(slates.items()):
            if slate.winners() is not None:
                continue
            late = max(0, slate.needed - here[name])
            slate.needed -= late
            running = [c for c in slate.candidates if c.fate is Fate.RUNNING]
            slate.candidates.sort(key=lambda c: c.fate is Fate.RUNNING)
            for place in range(late):
                to = None
                if place < len(running):
                    to = self._move(running[place], name, range(step + 1, self._cfg.num_steps + 1))
                if to is None:
                    self._miss(step, name)
                    continue
                moved[running[place].group_id] = to
                running[place].late = True
                self.slates.at(to, name).needed += 1
            if late:
                self._say_late(step, name)
        return moved

    def close(self, step: int) -> Closed:
        """Tell that `step` was trained on its lineup: windows, curricula and survival follow what
        its groups said. Call it for each step, in order, before the next may be ordered."""
        decided: dict[str, list[Candidate]] = {}
        moved: dict[str, int] = {}
        surplus: list[str] = []
        for name, slate in list(self.slates.of(step).items()):
            decided[name], behind = slate.split()
            self.survival.observe(name, *survivors(decided[name]))
            for candidate in behind:
                alive = candidate.fate is not Fate.DEAD
                if (to := self._carry(step, name, candidate)) is None:
                    self._give_back(name, candidate)
                    surplus += [candidate.group_id] if alive else []
                elif alive:
                    moved[candidate.group_id] = to
            # How many spares a slate ordered before others joined it is a matter of time, and must
            # not show: those that were not ordered come back as those that were.
            again = int(slate.joined)
            self.returned.give(name, [d._replace(again=d.again + again) for d in slate.spares])
        self._feedback.trained(step, {s.name: decided.get(s.name, ()) for s in self._cfg.sources})
        self.slates.close(step)
        return Closed(moved=moved, surplus=tuple(surplus), warnings=self._feedback.take_warnings())

    def _carry(self, step: int, name: str, candidate: Candidate) -> int | None:
        """Move a candidate that `step` had no place for to a later one; return which."""
        if candidate.refill:
            return None
        last = min(candidate.version + 1 + self._bounds[name], self._cfg.num_steps)
        slates = ((later, self.slates.of(later).get(name)) for later in range(step + 1, last + 1))
        steps = [later for later, slate in slates if slate is not None and slate.needed]
        return self._move(candidate, name, steps)

    def _move(self, candidate: Candidate, name: str, steps: Iterable[int]) -> int | None:
        """Move a candidate to the first of some steps that does not have its item; return which.

        A step that is not planned yet has nothing."""
        for step in steps:
            plan = self.plans.get(step)
            if plan is not None and candidate.drawn is not None:
                used = plan.used.setdefault(name, set())
                if candidate.drawn.item in used:
                    continue
                used.add(candidate.drawn.item)
            self.slates.move(candidate, step)
            return step
        return None

    def _give_back(self, name: str, candidate: Candidate) -> None:
        """Let the item of a candidate that is out be drawn again."""
        if (drawn := candidate.drawn) is not None:
            self.returned.give(name, [drawn._replace(again=drawn.again + 1)])

    def _miss(self, step: int, name: str) -> None:
        """Make up for a group of the source that a step has less: its share is carried over."""
        planned = max(s for s in self.plans if s <= step)
        self._allocator.missed(name, self.plans[planned].due)

    def _say_late(self, step: int, name: str) -> None:
        """Remember that a source was late, and warn where it often is."""
        lately = [s for s in self._late.get(name, []) if s > step - _LATE_STEPS] + [step]
        self._late[name] = lately
        if len(lately) >= _LATE_OFTEN:
            self._late[name] = []
            text = (
                f"{name} was late in {len(lately)} of the last {_LATE_STEPS} steps (mix.max_wait_s "
                f"is {self._cfg.mix.max_wait_s:g}): raise sources.{name}.max_staleness above "
                f"{self._bounds[name]}, so that it starts earlier"
            )
            self._allocator.events.append(MixEvent(step=step, kind="late", source=name, text=text))

    def state_dict(self) -> CastingState:
        """Return all that the next calls depend on."""
        return {
            "plans": {str(step): plan.state_dict() for step, plan in self.plans.items()},
            "slates": self.slates.state_dict(),
            "returned": self.returned.state_dict(),
            "survival": self.survival.state_dict(),
            "late": {name: list(steps) for name, steps in self._late.items()},
        }

    def load_state_dict(self, state: CastingState, *, same: Sequence[str]) -> None:
        """Go on where another stopped.

        Args:
            same: sources whose items are still the same.
        """
        self.slates.load_state_dict(state["slates"])
        self.returned.load_state_dict(state["returned"])
        self.survival.load_state_dict(state["survival"])
        self._late = {name: list(steps) for name, steps in state["late"].items()}
        self.plans = {int(s): StepPlan.load(plan, same) for s, plan in state["plans"].items()}
        for name in self._bounds:
            if name not in same:
                self.returned.forget(name)
                self.slates.forget(name)
