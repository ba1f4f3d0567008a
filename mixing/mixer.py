"""The mix: which tasks each step trains on, and which ones evaluation asks.

Everything here is a function of the recipe, its data and the calls made so far: a mixer that is
given another's `state_dict` goes on as the other would have.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypedDict, cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.schema import RunConfig
from mixing.difficulty.feedback import Feedback, FeedbackState, SourceDifficulty
from mixing.difficulty.live_pool import LivePool, LivePoolState
from mixing.quota.allocator import Allocator, AllocatorState, MixEvent, MixExhausted
from mixing.quota.edits import Edit, EditLog
from mixing.quota.tokens import Trained
from mixing.slates.casting import Casting, CastingState
from mixing.slates.group_ids import Drawn, format_id, next_attempt, parse_group_id
from mixing.slates.slate import Candidate, Slate
from mixing.slates.step_plan import StepPlan
from mixing.sources.cursor import Cursor, CursorState
from mixing.sources.opening import open_sources
from mixing.sources.source import Source
from rollouts.staleness import may_dispatch
from rollouts.types import GroupRequest, Sampling, Task


class _State(TypedDict):
    """A mixer's state, as JSON."""

    last_step: int | None
    allocator: AllocatorState
    cursors: dict[str, CursorState | LivePoolState]
    feedback: FeedbackState
    casting: CastingState
    edits: list[dict[str, JsonValue]]
    events: list[dict[str, JsonValue]]
    fingerprints: dict[str, str]


class Mixer:
    """Plans the groups of each step. Made once, on the driver.

    `order` says what is sampled; what became of it, and who is trained on, is `casting`'s.

    Args:
        sources: the recipe's, opened; None opens them here.
        edits: live edits to take; None for none.

    Raises:
        ConfigError: with every problem of every source's data.
    """

    def __init__(
        self,
        cfg: RunConfig,
        sources: Mapping[str, Source] | None = None,
        *,
        edits: EditLog | None = None,
    ):
        self._cfg, self._edit_log = cfg, edits
        self._sources = open_sources(cfg) if sources is None else sources
        self._allocator = Allocator(cfg, {n: s.size for n, s in self._sources.items()})
        self._feedback = Feedback(cfg, self._sources)
        self.casting = Casting(cfg, self._allocator, self._feedback)
        self._cursors: dict[str, Cursor | LivePool] = {
            name: self._feedback.pools.get(name) or Cursor(name, source.size, cfg.seed)
            for name, source in self._sources.items()
        }
        self._samplings = {
            s.name: Sampling(temperature=s.sampling.temperature, max_tokens=s.sampling.max_tokens)
            for s in cfg.sources
        }
        self._bounds = {s.name: cfg.max_staleness(s) for s in cfg.sources}
        self._last_step: int | None = None
        self._ordered_at: int | None = None
        """Policy version of the last `order`."""
        self._edits: list[Edit] = []
        """Live edits taken so far, refused ones too."""
        self.exhausted: MixExhausted | None = None
        """Why the next step cannot be planned, where that is so."""

    def order(self, version: int) -> tuple[GroupRequest, ...]:
        """Return, in dispatch order, what may be sampled while the engines hold policy `version`
        and was not ordered yet.

        Steps are planned, and items drawn, when the version is new: each source's for step s at
        version s - 1 - its bound. Where candidates came to nothing, spares of their step take
        their places, and for the step that trains next fresh items.
        """
        made: list[GroupRequest] = []
        last = min(version + 1 + self._cfg.most_ahead, self._cfg.num_steps)
        if version != self._ordered_at:
            self._ordered_at, self.exhausted = version, None
            for step in range(version + 1, last + 1):
                try:
                    made += self._advance(step, version)
                except MixExhausted as end:
                    self.exhausted = end
                    break
        for step in range(version + 1, last + 1):
            made += self.refill(step, fresh=step == version + 1)
        return tuple(made)

    def plan_step(self, step: int) -> tuple[GroupRequest, ...]:
        """Return all P requests of `step` at once, sources interleaved, none a task twice unless
        all sources together have too few items. Steps are planned in rising order, each once.

        Raises:
            MixExhausted: limits leave too little for the step; nothing was planned.
        """
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(f"step {step} is planned already; the last one was {self._last_step}")
        return tuple(self._advance(step, step - 1))

    def refill(self, step: int, *, fresh: bool) -> list[GroupRequest]:
        """Return requests in place of a step's candidates that came to nothing, as far as there
        are spares.

        Args:
            fresh: draw fresh items of the source where there are no spares, or of another source
                where it has no other item for the step.
        """
        made: list[GroupRequest] = []
        for name, slate in list(self.casting.slates.of(step).items()):
            while slate.opened and slate.missing and slate.spares:
                made.append(self._order_spare(step, name, slate, refill=True))
            for _ in range(slate.missing if fresh else 0):
                made.append(self._draw_fresh(step, name))
        return made

    def retry(self, request: GroupRequest) -> GroupRequest | None:
        """Return the same task's next attempt; None when it had `batch.max_attempts` already."""
        _, _, attempt = parse_group_id(request.group_id)
        if attempt >= self._cfg.batch.max_attempts:
            return None
        again = replace(request, group_id=next_attempt(request.group_id))
        self.casting.slates.rename(request.group_id, again.group_id)
        return again

    def observe_trained(self, step: int, trained: Mapping[str, Trained]) -> None:
        """Take what `step` trained on, by source. Call it before the next step may be planned."""
        self._allocator.observe_trained(step, trained)

    def observe_eval(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the figures of the evaluation after `step`, by `eval/<source>/<figure>`; a step
        that was taken already is passed over."""
        self._allocator.observe_eval(step, metrics)

    def take_events(self) -> tuple[MixEvent, ...]:
        """Return what changed the mix since the last call: stages, edits, used-up sources."""
        events = tuple(self._allocator.events)
        self._allocator.events.clear()
        return events

    def target_shares(self, step: int) -> Mapping[str, float]:
        """Return the target share of each source, in `mix.unit`, in a step planned lately."""
        return self.casting.plans[step].shares

    @property
    def edits(self) -> Sequence[Edit]:
        """Live edits taken so far, with the step of each; refused ones too."""
        return tuple(self._edits)

    def difficulty(self, source_name: str) -> SourceDifficulty | None:
        """Return where a source's window, curriculum and zero-variance filter stand; None where it
        has none of them."""
        return self._feedback.snapshot(source_name)

    def difficulty_metrics(self) -> dict[str, float]:
        """Return the figures of `difficulty` for all sources, as a step's metrics."""
        return {
            f"source/{s.name}/difficulty/{figure}": value
            for s in self._cfg.sources
            if (found := self._feedback.snapshot(s.name)) is not None
            for figure, value in found.figures().items()
        }

    def held_out(self, source_name: str) -> tuple[Task, ...]:
        """Return the evaluation tasks of a source; none of them is ever trained on."""
        return self._sources[source_name].held_out()

    def state_dict(self) -> dict[str, JsonValue]:
        """Return everything that the next calls depend on besides the recipe."""
        state: _State = {
            "last_step": self._last_step,
            "allocator": self._allocator.state_dict(),
            "cursors": {name: cursor.state_dict() for name, cursor in self._cursors.items()},
            "casting": self.casting.state_dict(),
            "edits": [asdict(edit) for edit in self._edits],
            "events": [asdict(event) for event in self._allocator.events],
            "feedback": self._feedback.state_dict(),
            "fingerprints": {name: s.fingerprint for name, s in self._sources.items()},
        }
        return cast("dict[str, JsonValue]", state)

    def load_state_dict(self, state: Mapping[str, JsonValue]) -> None:
        """Go on where another mixer stopped.

        A source whose data changed since goes on at the start of its next epoch, as its items are
        other items; that the change is meant is asked before, by the run directory.

        Raises:
            ConfigError: sources came or went since.
        """
        saved = cast(_State, state)
        self._refuse_other_sources(saved["fingerprints"])
        self._last_step = saved["last_step"]
        self._allocator.load_state_dict(saved["allocator"])
        self._allocator.events = [MixEvent(**cast("Any", e)) for e in saved["events"]]
        self._feedback.load_state_dict(saved["feedback"])
        same = [n for n, s in self._sources.items() if s.fingerprint == saved["fingerprints"][n]]
        self.casting.load_state_dict(saved["casting"], same=same)
        self._edits = [Edit(**cast("Any", e)) for e in saved["edits"]]
        for name, cursor in self._cursors.items():
            place = cast("Any", saved["cursors"][name])
            if name in same:
                cursor.load_state_dict(place)
            else:
                cursor.skip_epoch(place)

    def _refuse_other_sources(self, saved: Mapping[str, str]) -> None:
        problems = [
            Problem(
                where=f"sources.{name}",
                what="is in the checkpoint and not in the recipe"
                if name in saved
                else "is in the recipe and not in the checkpoint",
                fix="Resume with the recipe of the run, or start a new run.",
            )
            for name in [*self._sources, *(n for n in saved if n not in self._sources)]
            if (name in saved) != (name in self._sources)
        ]
        if problems:
            raise ConfigError(problems)

    def _taken(self) -> dict[str, int]:
        """Return the draws of each source, those of planned steps included that are yet to come;
        one that came back unused is yet to be drawn."""
        taken = {n: c.taken - self.casting.returned.count(n) for n, c in self._cursors.items()}
        for plan in self.casting.plans.values():
            for name, places in plan.undrawn().items():
                taken[name] += places
        return taken

    def _take_edits(self, step: int) -> None:
        """Apply the edits that `step` is the first to see; those that an earlier attempt took at
        a later step wait for it, and others behind them."""
        log = self._edit_log
        for edit in log.read()[len(self._edits) :] if log else ():
            assert log is not None
            if edit.taken is not None and edit.taken > step:
                return
            refused = edit.refused or self._allocator.edit(step, edit.weights)
            if edit.taken is None:
                log.mark(edit.number, step, refused)
            self._edits.append(replace(edit, taken=step, refused=refused))
            self._allocator.events.append(_edit_event(step, edit, refused))

    def _advance(self, step: int, version: int) -> list[GroupRequest]:
        """Plan a step, unless it is; draw and order for it what may be sampled at `version`.

        Raises:
            MixExhausted: limits leave too little for the step; nothing was planned.
        """
        plan = self.casting.plans.get(step)
        if plan is None:
            if self._last_step is not None and step <= self._last_step:
                return []
            plan = self._plan(step)
        made: list[GroupRequest] = []
        ready = {n for n, bound in self._bounds.items() if may_dispatch(step, version, bound)}
        if names := ready - plan.drawn:
            made += self._draw_places(plan, step, version, names)
        for name, slate in list(self.casting.slates.of(step).items()):
            lead = _spare_lead(self._bounds[name])
            if name in plan.drawn and not slate.opened and may_dispatch(step, version, lead):
                made += self._open(step, name, slate, version)
        return made

    def _plan(self, step: int) -> StepPlan:
        """Split the step over the sources."""
        self._take_edits(step)
        allocation = self._allocator.allocate(step, self._taken())
        self._last_step = step
        in_flight = step - self._cfg.most_ahead - 2
        self.casting.plans = {s: plan for s, plan in self.casting.plans.items() if s >= in_flight}
        plan = StepPlan.of(allocation, self._allocator.group_sizes())
        plan.used = self.casting.slates.items(step)
        self.casting.plans[step] = plan
        return plan

    def _draw_places(
        self, plan: StepPlan, step: int, version: int, names: set[str]
    ) -> list[GroupRequest]:
        """Draw and order an item for each place of some sources, then their spares."""
        counts = plan.undrawn()
        for name in self._bounds:
            if name in names:
                self._feedback.begin(step, name, counts[name])
        made = [
            request
            for place, name in enumerate(plan.places)
            if name in names
            and (request := self._draw(plan, step, place, names, version=version)) is not None
        ]
        plan.drawn |= names
        for name in self._bounds:
            difficulty = self._cfg.source(name).difficulty
            if name in names and counts[name] and difficulty.drop_zero_variance:
                slate = self.casting.slates.at(step, name)
                self._set_aside(step, name, slate, counts[name] * difficulty.max_resamples)
                slate.allow_replacements(len(slate.spares))
        return made

    def _open(self, step: int, name: str, slate: Slate, version: int) -> Iterator[GroupRequest]:
        """Let spares be ordered from now on: at first so many that enough should survive."""
        slate.opened, slate.spare_version = True, version
        more = self.casting.more(step, name)
        self._set_aside(step, name, slate, more)
        for _ in range(min(more, len(slate.spares))):
            yield self._order_spare(step, name, slate)

    def _set_aside(self, step: int, name: str, slate: Slate, count: int) -> None:
        """Draw spares until there are so many, as far as the source has items for them."""
        while len(slate.spares) < count and (one := self._take(name, step, spare=True)) is not None:
            slate.spares.append(one)

    def _order_spare(
        self, step: int, name: str, slate: Slate, *, refill: bool = False
    ) -> GroupRequest:
        drawn = slate.spares.pop(0)
        return self._make(name, step, drawn, version=slate.spare_version, refill=refill)

    def _draw(
        self, plan: StepPlan, step: int, place: int, names: set[str], *, version: int
    ) -> GroupRequest | None:
        """Order an item that is not in the step yet for a place: of the place's source, else of
        another one; None where one has it that is not drawn yet."""
        name = plan.places[place]
        if (drawn := self._take(name, step)) is not None:
            return self._make(name, step, drawn, version=version, places=1)
        others = self._allocator.substitutes(name)
        now = [n for n in others if n in names or n in plan.drawn]
        if not plan.repeats:
            for given in now:
                if (drawn := self._take(given, step)) is not None:
                    self._hand_over(plan, step, place, given)
                    return self._make(given, step, drawn, version=version, places=1)
            if later := [n for n in others if n not in now]:
                self._hand_over(plan, step, place, later[0])
                return None
        given, drawn = self._draw_again(step, name, now)
        if given != name:
            self._hand_over(plan, step, place, given)
        return self._make(given, step, drawn, version=version, places=1)

    def _draw_fresh(self, step: int, name: str) -> GroupRequest:
        """Order an item for a place whose candidate came to nothing: as `_draw`, at the last
        moment, when every source is drawn."""
        plan, others = self.casting.plans[step], self._allocator.substitutes(name)
        for given in (name, *others):
            if (drawn := self._take(given, step)) is not None:
                break
        else:
            given, drawn = self._draw_again(step, name, others)
        if given != name:
            self.casting.slates.at(step, name).needed -= 1
            self._allocator.swapped(step, name, given)
            if name in plan.places:  # else it has only groups that were moved here
                plan.places[len(plan.places) - 1 - plan.places[::-1].index(name)] = given
        places = int(given != name)
        return self._make(given, step, drawn, version=step - 1, places=places, refill=True)

    def _draw_again(self, step: int, name: str, others: Sequence[str]) -> tuple[str, Drawn]:
        """Draw an item that may be in the step already, as nobody has another one."""
        for given in (name, *others):
            if (drawn := self._cursors[given].take((), self._allocator.end(given))) is not None:
                return given, Drawn(*drawn)
        # Every limit is used up by this very step, and one of its groups failed: one draw more.
        self._allocator.overdrawn(step, name)
        used = self.casting.plans[step].used.get(name, ())
        drawn = self._cursors[name].take(used) or self._cursors[name].take(())
        assert drawn is not None  # without an end there is always a next draw
        return name, Drawn(*drawn)

    def _take(self, name: str, step: int, *, spare: bool = False) -> Drawn | None:
        """Draw an item that is not in the step yet; None if the source has no other, or for a
        spare no other that its window lets come."""
        used, cursor = self.casting.plans[step].used.setdefault(name, set()), self._cursors[name]
        pool = self._feedback.pools.get(name)
        drawn = self.casting.returned.take(
            name, used, None if pool is None else pool.difficulty.eligible
        )
        if drawn is None:
            take = cursor.take_spare if spare and isinstance(cursor, LivePool) else cursor.take
            if (found := take(used, self._allocator.end(name))) is None:
                return None
            drawn = Drawn(*found)
        used.add(drawn.item)
        return drawn

    def _hand_over(self, plan: StepPlan, step: int, place: int, given: str) -> None:
        """Give a place of the step to another source."""
        self._allocator.swapped(step, plan.places[place], given)
        plan.places[place] = given

    def _make(
        self,
        name: str,
        step: int,
        drawn: Drawn,
        *,
        version: int,
        places: int = 0,
        refill: bool = False,
    ) -> GroupRequest:
        """Make the request for an item, as a candidate for the step and for more `places` of it."""
        task = self._feedback.task(self._sources[name], name, drawn.item, step)
        group_id = format_id(task.task_id, drawn.epoch, 0, drawn.again)
        candidate = Candidate(
            group_id=group_id, task_id=task.task_id, drawn=drawn, version=version, refill=refill
        )
        self.casting.slates.order(step, name, candidate, places=places)
        return GroupRequest(
            group_id=group_id,
            task=task,
            group_size=self.casting.plans[step].group_sizes[name],
            sampling=self._samplings[name],
            step=step,
        )


def _spare_lead(bound: int) -> int:
    """Return how many steps ahead spares may be ordered. Where that costs no waiting, one step
    later than the others, so that those which turn out not to be needed can serve a step more."""
    return bound - 1 if bound >= 2 else bound


def _edit_event(step: int, edit: Edit, refused: str) -> MixEvent:
    shown = ", ".join(
        f"{name}.weight {'back to the recipe' if weight is None else f'= {weight:g}'}"
        for name, weight in edit.weights.items()
    )
    text = f"live edit of {edit.time}: {shown}" + (f" refused: {refused}" if refused else "")
    return MixEvent(step=step, kind="edit_refused" if refused else "edit", text=text)
