"""The mix: which tasks each step trains on, and which ones evaluation asks.

Everything here is a function of the recipe, its data and the calls made so far: a mixer that is
given another's `state_dict` goes on as the other would have.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.schema import RunConfig, SourceConfig
from mixing.cursor import Cursor, CursorState
from mixing.jsonl import JsonlSource
from mixing.procedural import PREFIX, ProceduralSource, dataset_name
from mixing.quota import Quota, interleave
from mixing.sources import Source
from mixing.vetted import VETTED
from rollouts.types import GroupRequest, Sampling, Task

_GROUP_ID = re.compile(r"^(?P<task>.*)#e(?P<epoch>\d+)a(?P<attempt>\d+)$")


class _State(TypedDict):
    """A mixer's state, as JSON."""

    last_step: int | None
    credit: dict[str, str]
    cursors: dict[str, CursorState]
    used: dict[str, dict[str, list[int]]]
    fingerprints: dict[str, str]


class Mixer:
    """Plans the groups of each step. Made once, on the driver.

    Args:
        sources: the recipe's, opened; None opens them here.

    Raises:
        ConfigError: with every problem of every source's data.
    """

    def __init__(self, cfg: RunConfig, sources: Mapping[str, Source] | None = None):
        self._cfg = cfg
        self._sources = open_sources(cfg) if sources is None else sources
        self._quota = Quota({s.name: s.weight for s in cfg.sources}, cfg.batch.groups_per_step)
        self._cursors = {
            name: Cursor(name, source.size, cfg.seed) for name, source in self._sources.items()
        }
        self._last_step: int | None = None
        self._used: dict[int, dict[str, list[int]]] = {}
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
        return tuple(self._draw(name, step) for name in interleave(self._quota.next_counts()))

    def target_shares(self) -> Mapping[str, float]:
        """Return the share, of 1, that each source is due of a step."""
        groups = self._cfg.batch.groups_per_step
        return {name: float(target / groups) for name, target in self._quota.targets.items()}

    def retry(self, request: GroupRequest) -> GroupRequest | None:
        """Return the same task's next attempt; None when it had `batch.max_attempts` already."""
        task_id, epoch, attempt = parse_group_id(request.group_id)
        if attempt >= self._cfg.batch.max_attempts:
            return None
        return self._request(request.task, request.step, format_id(task_id, epoch, attempt + 1))

    def replace(self, request: GroupRequest) -> GroupRequest:
        """Return a request for a fresh task of the same source, for the same step."""
        return self._draw(request.task.source, request.step)

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
            "used": {str(s): {n: list(i) for n, i in u.items()} for s, u in self._used.items()},
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
        self._quota.load_state_dict(saved["credit"])
        for name, cursor in self._cursors.items():
            cursor.load_state_dict(saved["cursors"][name])
        self._used = {int(s): {n: list(i) for n, i in u.items()} for s, u in saved["used"].items()}
        for name, source in self._sources.items():
            if saved["fingerprints"][name] != source.fingerprint:
                self._cursors[name].skip_epoch(saved["cursors"][name])
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

    def _draw(self, name: str, step: int) -> GroupRequest:
        used = self._used.setdefault(step, {}).setdefault(name, [])
        item, epoch = self._cursors[name].take(avoid=used)
        used.append(item)
        task = self._sources[name].task(item)
        return self._request(task, step, format_id(task.task_id, epoch, 0))

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
    return JsonlSource(cfg) if cfg.data.jsonl is not None else ProceduralSource(cfg)


def open_sources(cfg: RunConfig) -> dict[str, Source]:
    """Open every source by name; ConfigError names every problem with all their data."""
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
                open_source(source)
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
