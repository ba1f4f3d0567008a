"""The mix: which tasks each step trains on, and which ones evaluation asks.

Everything here is a function of the recipe, its data and the calls made so far: a mixer that is
given another's `state_dict` goes on as the other would have.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, TypedDict, cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.schema import RunConfig
from mixing.allocator import Allocator, AllocatorState, MixEvent
from mixing.cursor import Cursor, CursorState
from mixing.difficulty import Widened
from mixing.edits import Edit, EditLog
from mixing.feedback import Feedback, FeedbackState, SourceDifficulty
from mixing.live_pool import LivePool, LivePoolState
from mixing.opening import open_sources
from mixing.quota import interleave
from mixing.sources import Source
from mixing.spares import Drawn
from mixing.tokens import Trained
from rollouts.types import GroupRequest, GroupSummary, Sampling, Task

_GROUP_ID = re.compile(r"^(?P<task>.*)#e(?P<epoch>\d+)a(?P<attempt>\d+)$")


class _StepState(TypedDict):
    """What is kept of a step in flight, as JSON."""

    used: dict[str, list[int]]
    shares: dict[str, float]


class _State(TypedDict):
    """A mixer's state, as JSON."""

    last_step: int | None
    allocator: AllocatorState
    cursors: dict[str, CursorState | LivePoolState]
    feedback: FeedbackState
    steps: dict[str, _StepState]
    edits: list[dict[str, JsonValue]]
    events: list[dict[str, JsonValue]]
    fingerprints: dict[str, str]


class Mixer:
    """Plans the groups of each step. Made once, on the driver.

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
        self._cursors: dict[str, Cursor | LivePool] = {
            name: self._feedback.pools.get(name) or Cursor(name, source.size, cfg.seed)
            for name, source in self._sources.items()
        }
        self._samplings = {
            s.name: Sampling(temperature=s.sampling.temperature, max_tokens=s.sampling.max_tokens)
            for s in cfg.sources
        }
        self._last_step: int | None = None
        self._used: dict[int, dict[str, set[int]]] = {}
        """Items of each recent step by source, so that none is in a step twice."""
        self._shares: dict[int, dict[str, float]] = {}
        self._edits: list[Edit] = []
        """Live edits taken so far, refused ones too."""

    def plan_step(self, step: int) -> tuple[GroupRequest, ...]:
        """Return the P requests of `step`, sources interleaved, none a task twice unless all
        sources together have too few items. Steps are planned in rising order, each once.

        Raises:
            MixExhausted: limits leave too little for the step; nothing was planned.
        """
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(f"step {step} is planned already; the last one was {self._last_step}")
        self._take_edits(step)
        allocation = self._allocator.allocate(step, self._taken())
        self._last_step = step
        in_flight = step - self._cfg.batch.max_staleness - 2
        self._used = {s: used for s, used in self._used.items() if s >= in_flight}
        self._shares = {s: shares for s, shares in self._shares.items() if s >= in_flight}
        self._shares[step] = dict(allocation.shares)
        sizes = self._allocator.group_sizes()
        self._feedback.begin(step, allocation.counts)
        requests = tuple(
            self._draw(name, step, group_size=sizes[name], repeats=allocation.repeats)
            for name in interleave(allocation.counts)
        )
        self._feedback.planned(requests, spare=lambda name: self._take(name, step, spare=True))
        return requests

    def retry(self, request: GroupRequest) -> GroupRequest | None:
        """Return the same task's next attempt; None when it had `batch.max_attempts` already."""
        task_id, epoch, attempt = parse_group_id(request.group_id)
        if attempt >= self._cfg.batch.max_attempts:
            return None
        again = self._request(
            request.task,
            request.step,
            format_id(task_id, epoch, attempt + 1),
            request.group_size,
        )
        self._feedback.retried(again, after=request)
        return again

    def replace(self, request: GroupRequest) -> GroupRequest:
        """Return a request for a fresh task of the same source, for the same step; of another
        source where this one has no other item for it."""
        return self._take_spare(request) or self._draw(
            request.task.source, request.step, group_size=request.group_size, after=request
        )

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
        return self._shares[step]

    @property
    def edits(self) -> Sequence[Edit]:
        """Live edits taken so far, with the step of each; refused ones too."""
        return tuple(self._edits)

    def graded(self, request: GroupRequest, summary: GroupSummary) -> GroupRequest | None:
        """Take in a group with a valid rollout. Return the request that takes its place where it
        teaches nothing and may be replaced; None where it is to be trained on."""
        if not self._feedback.graded(request, summary):
            return None
        fresh = self._take_spare(request)
        if fresh is None:
            self._feedback.not_replaced(request)
        return fresh

    def observe_rewards(self, step: int) -> tuple[Widened, ...]:
        """Let windows and curricula follow what the groups of a trained step said. Call it for
        each step, in order, before the next may be planned. Return warnings."""
        self._feedback.trained(step)
        return self._feedback.take_warnings()

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
        """Return everything that `plan_step` and `replace` depend on besides the recipe."""
        state: _State = {
            "last_step": self._last_step,
            "allocator": self._allocator.state_dict(),
            "cursors": {name: cursor.state_dict() for name, cursor in self._cursors.items()},
            "steps": {
                str(step): {
                    "used": {name: sorted(items) for name, items in used.items()},
                    "shares": dict(self._shares.get(step, {})),
                }
                for step, used in self._used.items()
            },
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
        steps = {int(step): kept for step, kept in saved["steps"].items()}
        self._used = {s: {n: set(i) for n, i in k["used"].items()} for s, k in steps.items()}
        self._shares = {s: k["shares"] for s, k in steps.items()}
        self._edits = [Edit(**cast("Any", e)) for e in saved["edits"]]
        for name, cursor in self._cursors.items():
            place = cast("Any", saved["cursors"][name])
            if saved["fingerprints"][name] == self._sources[name].fingerprint:
                cursor.load_state_dict(place)
                continue
            cursor.skip_epoch(place)
            self._feedback.forget(name)
            for used in self._used.values():
                used.pop(name, None)

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
        """Return the draws of each source; one that came back unused is yet to be drawn."""
        return {n: c.taken - self._feedback.num_returned(n) for n, c in self._cursors.items()}

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

    def _draw(
        self,
        name: str,
        step: int,
        *,
        group_size: int,
        repeats: bool = False,
        after: GroupRequest | None = None,
    ) -> GroupRequest:
        """Draw an item that is not in the step yet: of `name`, else of another source; where
        nobody has one, or `repeats` says so, one that is."""
        if (drawn := self._take(name, step)) is not None:
            return self._order(name, name, step, drawn, group_size, after)
        others = self._allocator.substitutes(name)
        for given in () if repeats else others:
            if (drawn := self._take(given, step)) is not None:
                return self._order(given, name, step, drawn, group_size, after)
        for given in (name, *others):
            if (drawn := self._cursors[given].take((), self._allocator.end(given))) is not None:
                return self._order(given, name, step, drawn, group_size, after)
        # Every limit is used up by this very step, and one of its groups failed: one draw more.
        self._allocator.overdrawn(step, name)
        drawn = self._cursors[name].take(self._used[step][name]) or self._cursors[name].take(())
        assert drawn is not None  # without an end there is always a next draw
        return self._order(name, name, step, drawn, group_size, after)

    def _take(self, name: str, step: int, *, spare: bool = False) -> Drawn | None:
        """Draw an item that is not in the step yet; None if the source has no other, or for a
        spare no other that its window lets come."""
        used, cursor = self._used.setdefault(step, {}).setdefault(name, set()), self._cursors[name]
        take = cursor.take_spare if spare and isinstance(cursor, LivePool) else cursor.take
        drawn = self._feedback.take_returned(name, used) or take(used, self._allocator.end(name))
        if drawn is not None:
            used.add(drawn[0])
        return drawn

    def _take_spare(self, request: GroupRequest) -> GroupRequest | None:
        """Return a request for a spare of the same place; None when it has none left."""
        drawn, name = self._feedback.take_spare(request), request.task.source
        if drawn is None:
            return None
        return self._order(name, name, request.step, drawn, request.group_size, request)

    def _order(
        self,
        given: str,
        planned: str,
        step: int,
        drawn: Drawn,
        group_size: int,
        after: GroupRequest | None,
    ) -> GroupRequest:
        item, epoch = drawn
        task = self._feedback.task(self._sources[given], given, item, step)
        if given != planned:
            self._allocator.swapped(step, planned, given)
            group_size = self._allocator.group_sizes()[given]
        request = self._request(task, step, format_id(task.task_id, epoch, 0), group_size)
        self._feedback.drawn(request, item, after=after)
        return request

    def _request(self, task: Task, step: int, group_id: str, group_size: int) -> GroupRequest:
        return GroupRequest(
            group_id=group_id,
            task=task,
            group_size=group_size,
            sampling=self._samplings[task.source],
            step=step,
        )


def _edit_event(step: int, edit: Edit, refused: str) -> MixEvent:
    shown = ", ".join(
        f"{name}.weight {'back to the recipe' if weight is None else f'= {weight:g}'}"
        for name, weight in edit.weights.items()
    )
    text = f"live edit of {edit.time}: {shown}" + (f" refused: {refused}" if refused else "")
    return MixEvent(step=step, kind="edit_refused" if refused else "edit", text=text)


def format_id(task_id: str, epoch: int, attempt: int) -> str:
    """Return the group id of one attempt at a task in an epoch."""
    return f"{task_id}#e{epoch}a{attempt}"


def parse_group_id(group_id: str) -> tuple[str, int, int]:
    """Return (task_id, epoch, attempt); ValueError for an id that no mixer made."""
    match = _GROUP_ID.match(group_id)
    if match is None:
        raise ValueError(f"{group_id!r} is not `<task_id>#e<epoch>a<attempt>`")
    return match["task"], int(match["epoch"]), int(match["attempt"])
