"""The mix: which tasks each step trains on, and which ones evaluation asks.

Everything here is a function of the recipe, its data and the calls made so far: a mixer that is
given another's `state_dict` goes on as the other would have.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.schema import RunConfig, SourceConfig
from mixing.curriculum import CurriculumSource
from mixing.cursor import Cursor, CursorState
from mixing.difficulty import Widened
from mixing.feedback import Feedback, FeedbackState, SourceDifficulty, open_pool
from mixing.jsonl import JsonlSource
from mixing.live_pool import LivePool, LivePoolState
from mixing.procedural import PREFIX, ProceduralSource, dataset_name
from mixing.quota import Quota, interleave
from mixing.sources import Source
from mixing.spares import Drawn
from mixing.vetted import VETTED
from rollouts.types import GroupRequest, GroupSummary, Sampling, Task

_GROUP_ID = re.compile(r"^(?P<task>.*)#e(?P<epoch>\d+)a(?P<attempt>\d+)$")


class _State(TypedDict):
    """A mixer's state, as JSON."""

    last_step: int | None
    credit: dict[str, str]
    cursors: dict[str, CursorState | LivePoolState]
    feedback: FeedbackState
    used: dict[str, dict[str, list[int]]]
    fingerprints: dict[str, str]


class Mixer:
    """Plans the groups of each step. Made once, on the driver.

    Raises:
        ConfigError: with every problem of every source's data.
    """

    def __init__(self, cfg: RunConfig):
        self._cfg = cfg
        self._sources = _open_all(cfg)
        self._quota = Quota({s.name: s.weight for s in cfg.sources}, cfg.batch.groups_per_step)
        self._feedback = Feedback(cfg, self._sources)
        self._cursors: dict[str, Cursor | LivePool] = {
            name: self._feedback.pools.get(name) or Cursor(name, source.size, cfg.seed)
            for name, source in self._sources.items()
        }
        self._last_step: int | None = None
        self._used: dict[int, dict[str, set[int]]] = {}
        """Items of each recent step by source, so that no replacement repeats one."""

    def plan_step(self, step: int) -> tuple[GroupRequest, ...]:
        """Return the P requests of `step`, sources interleaved, none a task twice unless its source
        has fewer items than the step asks. Steps are planned in rising order, each once.
        """
        if self._last_step is not None and step <= self._last_step:
            raise ValueError(f"step {step} is planned already; the last one was {self._last_step}")
        self._last_step = step
        in_flight = step - self._cfg.batch.max_staleness - 2
        self._used = {s: used for s, used in self._used.items() if s >= in_flight}
        counts = self._quota.next_counts()
        self._feedback.begin(step, counts)
        requests = tuple(self._draw(name, step) for name in interleave(counts))
        self._feedback.planned(requests, spare=lambda name: self._take(name, step, spare=True))
        return requests

    def retry(self, request: GroupRequest) -> GroupRequest | None:
        """Return the same task's next attempt; None when it had `batch.max_attempts` already."""
        task_id, epoch, attempt = parse_group_id(request.group_id)
        if attempt >= self._cfg.batch.max_attempts:
            return None
        again = self._request(request.task, request.step, format_id(task_id, epoch, attempt + 1))
        self._feedback.retried(again, after=request)
        return again

    def replace(self, request: GroupRequest) -> GroupRequest:
        """Return a request for a fresh task of the same source, for the same step."""
        return self._take_spare(request) or self._draw(
            request.task.source, request.step, after=request
        )

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

    def train_size(self, source_name: str) -> int:
        """Return how many training items an epoch of a source has."""
        return self._sources[source_name].size

    def state_dict(self) -> dict[str, JsonValue]:
        """Return everything that `plan_step` and `replace` depend on besides the recipe."""
        state: _State = {
            "last_step": self._last_step,
            "credit": self._quota.state_dict(),
            "cursors": {name: cursor.state_dict() for name, cursor in self._cursors.items()},
            "used": {str(s): {n: sorted(i) for n, i in u.items()} for s, u in self._used.items()},
            "feedback": self._feedback.state_dict(),
            "fingerprints": {name: s.fingerprint for name, s in self._sources.items()},
        }
        return cast("dict[str, JsonValue]", state)

    def load_state_dict(self, state: Mapping[str, JsonValue]) -> None:
        """Go on where another mixer stopped.

        Raises:
            ConfigError: sources came, went, or changed their data since.
        """
        saved = cast(_State, state)
        self._refuse_other_data(saved["fingerprints"])
        self._last_step = saved["last_step"]
        self._quota.load_state_dict(saved["credit"])
        for name, cursor in self._cursors.items():
            cursor.load_state_dict(cast("Any", saved["cursors"][name]))
        self._feedback.load_state_dict(saved["feedback"])
        self._used = {int(s): {n: set(i) for n, i in u.items()} for s, u in saved["used"].items()}

    def _refuse_other_data(self, saved: Mapping[str, str]) -> None:
        now = {name: source.fingerprint for name, source in self._sources.items()}
        problems = [
            Problem(
                where=f"sources.{name}",
                what="is in the checkpoint and not in the recipe"
                if name not in now
                else "is in the recipe and not in the checkpoint"
                if name not in saved
                else "its data changed since the checkpoint, so its items are other items",
                fix="Resume with the recipe and data of the run, or start a new run.",
            )
            for name in [*now, *(n for n in saved if n not in now)]
            if now.get(name) != saved.get(name)
        ]
        if problems:
            raise ConfigError(problems)

    def _draw(self, name: str, step: int, after: GroupRequest | None = None) -> GroupRequest:
        drawn = self._take(name, step) or self._cursors[name].take(())
        assert drawn is not None  # a source has an item
        return self._order(name, step, drawn, after)

    def _take(self, name: str, step: int, *, spare: bool = False) -> Drawn | None:
        """Draw an item that is not in the step yet; None if the source has no other, or for a
        spare no other that its window lets come."""
        used, cursor = self._used.setdefault(step, {}).setdefault(name, set()), self._cursors[name]
        if len(used) >= self._sources[name].size:
            return None
        take = cursor.take_spare if spare and isinstance(cursor, LivePool) else cursor.take
        drawn = self._feedback.take_returned(name, used) or take(used)
        if drawn is not None:
            used.add(drawn[0])
        return drawn

    def _order(
        self, name: str, step: int, drawn: Drawn, after: GroupRequest | None
    ) -> GroupRequest:
        item, epoch = drawn
        task = self._feedback.task(self._sources[name], name, item, step)
        request = self._request(task, step, format_id(task.task_id, epoch, 0))
        self._feedback.drawn(request, item, after=after)
        return request

    def _take_spare(self, request: GroupRequest) -> GroupRequest | None:
        """Return a request for a spare of the same place; None when it has none left."""
        drawn = self._feedback.take_spare(request)
        return drawn and self._order(request.task.source, request.step, drawn, request)

    def _request(self, task: Task, step: int, group_id: str) -> GroupRequest:
        source = self._cfg.source(task.source)
        return GroupRequest(
            group_id=group_id,
            task=task,
            group_size=source.group_size,
            sampling=Sampling(
                temperature=source.sampling.temperature, max_tokens=source.sampling.max_tokens
            ),
            step=step,
        )


def format_id(task_id: str, epoch: int, attempt: int) -> str:
    """Return the group id of one attempt at a task in an epoch."""
    return f"{task_id}#e{epoch}a{attempt}"


def parse_group_id(group_id: str) -> tuple[str, int, int]:
    """Return (task_id, epoch, attempt); ValueError for an id that no mixer made."""
    match = _GROUP_ID.match(group_id)
    if match is None:
        raise ValueError(f"{group_id!r} is not `<task_id>#e<epoch>a<attempt>`")
    return match["task"], int(match["epoch"]), int(match["attempt"])


def open_source(cfg: SourceConfig) -> Source:
    """Open the source; ConfigError names every problem with its data."""
    given = [key for key in ("procedural", "jsonl") if getattr(cfg.data, key) is not None]
    if len(given) != 1:
        raise ConfigError(
            Problem(
                where=f"sources.{cfg.name}.data",
                what="has both `procedural` and `jsonl`" if given else "has no data",
                fix="Give exactly one of `procedural: reasoning_gym/<dataset>` and `jsonl: <path>`",
            )
        )
    if cfg.data.jsonl is not None:
        return JsonlSource(cfg)
    return ProceduralSource(cfg) if cfg.data.curriculum.start is None else CurriculumSource(cfg)


def _open_all(cfg: RunConfig) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    problems: list[Problem] = []
    for source in cfg.sources:
        try:
            sources[source.name] = open_source(source)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return sources


def validate_sources(cfg: RunConfig, *, generate: bool = True) -> list[Problem]:
    """Return every problem with the sources' data.

    Args:
        generate: also import reasoning-gym (seconds) and make the held-out items; without it,
            procedural sources are checked by name alone.
    """
    problems: list[Problem] = []
    for source in cfg.sources:
        try:
            if generate or source.data.procedural is None or source.data.jsonl is not None:
                open_pool(source, open_source(source), cfg.seed)
            else:
                dataset_name(source)
        except ConfigError as error:
            problems.extend(error.problems)
    return problems


def source_warnings(sources: Sequence[SourceConfig]) -> list[Problem]:
    """Return what is allowed but not vouched for: reasoning-gym datasets that nobody vetted."""
    return [
        Problem(
            where=f"sources.{source.name}.data.procedural",
            what=f"{source.data.procedural} is not among the datasets whose scorer was checked",
            fix="Look at some graded rollouts before trusting its reward.",
        )
        for source in sources
        if (source.data.procedural or "").startswith(PREFIX)
        and (source.data.procedural or "").removeprefix(PREFIX) not in VETTED
    ]
