"""reasoning-gym datasets whose difficulty follows the policy.

A level is a number; each attribute of the dataset's own curriculum stands at that level, or at its
highest where it has fewer. An item is made at the level in force when it is drawn, and its id
names the level. Held-out items are spread over all levels and never change; no training item of
any level has the question of one.
"""

import dataclasses
import importlib
import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypedDict, cast

from pydantic import JsonValue

from configs.data import DataConfig
from configs.errors import ConfigError, Problem
from configs.schema import SourceConfig
from mixing.sources.procedural import (
    GymAttribute,
    GymCurriculum,
    ProceduralSource,
    dataset_name,
    load_gym,
    question,
)
from mixing.sources.source import digest
from rollouts.types import Task

_CANNOT_MAKE = (ConfigError, ArithmeticError, AssertionError, LookupError, TypeError, ValueError)
"""What reasoning-gym raises where a level's arguments leave nothing to generate from."""
_LEVEL = re.compile(r"/train/L(?P<level>\d+)/\d+$")


class CurriculumState(TypedDict):
    """Where a curriculum stands, as JSON."""

    level: int
    recent: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumSnapshot:
    """Where a source's curriculum stands."""

    level: int
    top: int
    recent: float | None
    """Mean pass rate of the last groups at this level; None before the first."""


class Curriculum:
    """The level in force: one up when the last `patience` groups at it are above the window on
    average, one down when below."""

    def __init__(self, window: tuple[float, float], *, start: int, top: int, patience: int):
        self._low, self._high = window
        self._top, self._patience = top, patience
        self._level = start
        self._recent: list[float] = []

    @property
    def level(self) -> int:
        """The level at which items are made now."""
        return self._level

    def observe(self, level: int, pass_rate: float) -> None:
        """Take in one graded group; one that was drawn at another level does not count."""
        if level != self._level:
            return
        self._recent = [*self._recent, pass_rate][-self._patience :]
        if len(self._recent) < self._patience:
            return
        mean = sum(self._recent) / self._patience
        moved = self._level + int(mean > self._high) - int(mean < self._low)
        if 0 <= moved <= self._top and moved != self._level:
            self._level, self._recent = moved, []

    def snapshot(self) -> CurriculumSnapshot:
        """Return where it stands, for metrics."""
        recent = sum(self._recent) / len(self._recent) if self._recent else None
        return CurriculumSnapshot(level=self._level, top=self._top, recent=recent)

    def state_dict(self) -> CurriculumState:
        """Return the level and the pass rates that decide about the next."""
        return {"level": self._level, "recent": list(self._recent)}

    def load_state_dict(self, state: CurriculumState) -> None:
        """Go on where another stopped."""
        self._level, self._recent = state["level"], list(state["recent"])


class CurriculumSource:
    """A procedural source with a level."""

    def __init__(self, cfg: SourceConfig):
        """Raises:
        ConfigError: the dataset has no curriculum, or refuses a level.
        """
        self._cfg = cfg
        self._levels = _open_levels(cfg, level_args(cfg))
        self.curriculum = Curriculum(
            cfg.difficulty.window or (0.0, 1.0),  # no window is refused by validate_run
            start=cfg.data.curriculum.start or 0,
            top=len(self._levels) - 1,
            patience=cfg.data.curriculum.patience,
        )
        self._held_out = tuple(
            _renamed(task, f"{cfg.name}/held_out/L{level}/{i}")
            for level, source in enumerate(self._levels)
            for i, task in enumerate(source.held_out())
        )

    @property
    def size(self) -> int:
        """Training items of an epoch, at any level."""
        return self._cfg.data.size

    @property
    def fingerprint(self) -> str:
        """Hash of the dataset, its arguments at each level, seed and sizes."""
        return digest("/".join(level.fingerprint for level in self._levels))

    def task(self, item: int) -> Task:
        """Return training item `item` at the level in force."""
        return self.task_at(self.curriculum.level, item)

    def task_at(self, level: int, item: int) -> Task:
        """Return training item `item` at a level; always the same for the same two numbers."""
        return _renamed(self._levels[level].task(item), f"{self._cfg.name}/train/L{level}/{item}")

    def offline_rates(self) -> None:
        """Return nothing: items made on the fly have no columns."""

    def held_out(self) -> tuple[Task, ...]:
        """Return the evaluation items, of all levels."""
        return self._held_out


def level_of(task_id: str) -> int:
    """Return the level at which a training task was made; ValueError if its id names none."""
    match = _LEVEL.search(task_id)
    if match is None:
        raise ValueError(f"{task_id!r} is not `<source>/train/L<level>/<item>`")
    return int(match["level"])


def level_args(cfg: SourceConfig) -> list[dict[str, JsonValue]]:
    """Return the dataset's arguments at each level, from 0 to the highest."""
    name, data = dataset_name(cfg), cfg.data
    where = f"sources.{cfg.name}.data.curriculum"
    gym = load_gym(f"sources.{cfg.name}.data")
    if not gym.has_curriculum(name):
        what = f"reasoning-gym's {name} has no curriculum"
        raise ConfigError(Problem(where=where, what=what, fix="Remove it, or set `args` instead."))
    curriculum = gym.create_curriculum(name)
    tops = _attribute_tops(curriculum, data, where)
    fields = {field for attribute in tops for field in _fields(curriculum.attributes[attribute])}
    if clash := sorted(fields & set(data.args)):
        what = f"{', '.join(clash)} in `args`, which the curriculum sets"
        fix = "Remove them, or leave the attribute out of `curriculum.attributes`."
        raise ConfigError(Problem(where=f"sources.{cfg.name}.data.args", what=what, fix=fix))
    coaching = cast(_Coaching, importlib.import_module("reasoning_gym.coaching.base_curriculum"))
    context = coaching.DefaultCurriculumContext(mode=data.curriculum.ranges)
    found: list[dict[str, JsonValue]] = []
    for level in range(_top(cfg, tops, where) + 1):
        for attribute, top in tops.items():
            curriculum.set_attr_level(attribute, min(level, top))
        made = curriculum.generate_configuration(context=context)
        moved = {field: getattr(made, field) for field in sorted(fields)}
        found.append({**data.args, **json.loads(json.dumps(moved))})
    return found


def _attribute_tops(curriculum: GymCurriculum, data: DataConfig, where: str) -> dict[str, int]:
    """Return the attributes that move and the highest level of each; an interval between two
    levels ends with the last but one."""
    last = {
        name: max(0, len(a.levels) - 1 - int(getattr(a, "ensure_interval", False)))
        for name, a in curriculum.attributes.items()
    }
    chosen = dict(data.curriculum.attributes) or last
    problems = [
        Problem(
            where=f"{where}.attributes.{name}",
            what=f"is no attribute of {data.procedural}"
            if name not in last
            else f"is {top}, but the attribute's highest level is {last[name]}",
            fix=f"Attributes: {', '.join(f'{n} (0 to {t})' for n, t in last.items())}.",
        )
        for name, top in chosen.items()
        if top > last.get(name, -1)
    ]
    if problems:
        raise ConfigError(problems)
    return chosen


def _top(cfg: SourceConfig, tops: Mapping[str, int], where: str) -> int:
    """Return the highest level; ConfigError where the recipe's levels do not fit the dataset."""
    data, most = cfg.data, max(tops.values(), default=0)
    asked = most if data.curriculum.max_level is None else data.curriculum.max_level
    top = min(asked, most)
    levels = f"The levels of {data.procedural} are 0 to {most}."
    problems: list[Problem] = []
    if asked > most:
        what = f"is {asked}, too high"
        problems.append(Problem(where=f"{where}.max_level", what=what, fix=levels))
    if (data.curriculum.start or 0) > top:
        problems.append(
            Problem(
                where=f"{where}.start",
                what=f"is {data.curriculum.start}, above the highest level {top}",
                fix=levels,
            )
        )
    if data.held_out <= top:
        problems.append(
            Problem(
                where=f"sources.{cfg.name}.data.held_out",
                what=f"is {data.held_out}, fewer than the {top + 1} levels over which held-out "
                "items are spread",
                fix=f"Raise it to {top + 1}, or lower curriculum.max_level.",
            )
        )
    if problems:
        raise ConfigError(problems)
    return top


def _open_levels(
    cfg: SourceConfig, args: list[dict[str, JsonValue]]
) -> tuple[ProceduralSource, ...]:
    """Open each level as a source of its own; none trains on what any of them holds out."""
    share, more = divmod(cfg.data.held_out, len(args))
    held_out: set[str] = set()
    levels: list[ProceduralSource] = []
    for level, own in enumerate(args):
        data = cfg.data.model_copy(update={"args": own, "held_out": share + int(level < more)})
        with _at_level(cfg, level, own):
            source = ProceduralSource(cfg.model_copy(update={"data": data}), taken=held_out)
        held_out |= {question(task) for task in source.held_out()}
        levels.append(source)
    for level, source in enumerate(levels):
        with _at_level(cfg, level, args[level]):
            source.keep_out(held_out)
    return tuple(levels)


@contextmanager
def _at_level(cfg: SourceConfig, level: int, args: Mapping[str, JsonValue]) -> Generator[None]:
    """Say at which level a dataset failed, for a curriculum may ask for more than it can make."""
    try:
        yield
    except _CANNOT_MAKE as error:
        why = [p.what for p in error.problems] if isinstance(error, ConfigError) else [repr(error)]
        fix = "Choose the `attributes` that move, or remove the curriculum."
        if level:
            fix = f"Set curriculum.max_level to {level - 1}, or choose `attributes`."
        problem = Problem(
            where=f"sources.{cfg.name}.data.curriculum",
            what=f"level {level} ({dict(args)}) cannot be made: {'; '.join(why)}",
            fix=fix,
        )
        raise ConfigError(problem) from error


def _renamed(task: Task, task_id: str) -> Task:
    return dataclasses.replace(task, task_id=task_id)


class _Coaching(Protocol):
    """What we use of reasoning-gym's base_curriculum module."""

    def DefaultCurriculumContext(self, mode: str) -> object: ...


def _fields(attribute: GymAttribute) -> tuple[str, ...]:
    """Return the dataset's arguments that an attribute sets."""
    names = ("field_name", "lower_field_name", "upper_field_name")
    return tuple(str(getattr(attribute, n)) for n in names if hasattr(attribute, n))
