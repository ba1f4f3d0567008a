"""The mix: which tasks each step trains on, and which ones evaluation asks.

Everything here is a function of the recipe, its data and the calls made so far: a mixer that is
given another's `state_dict` goes on as the other would have.
"""

import re
from collections.abc import Mapping
from typing import TypedDict, cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.schema import RunConfig
from mixing.cursor import Cursor, CursorState
from mixing.opening import open_sources
from mixing.quota import Quota, interleave
from mixing.sources import Source
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

        Raises:
            ConfigError: sources came, went, or changed their data since.
        """
        saved = cast(_State, state)
        self._refuse_other_data(saved["fingerprints"])
        self._last_step = saved["last_step"]
        self._quota.load_state_dict(saved["credit"])
        for name, cursor in self._cursors.items():
            cursor.load_state_dict(saved["cursors"][name])
        self._used = {int(s): {n: list(i) for n, i in u.items()} for s, u in saved["used"].items()}

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
