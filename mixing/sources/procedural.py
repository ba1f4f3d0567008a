"""Items made on the fly by reasoning-gym, from a seed.

reasoning-gym draws item i of seed s from the number s + i: the items of two near seeds are the
same items, shifted. So no split by seed alone is safe. Held-out items are made first, and a
training item whose question is among theirs is passed over; the two sets are disjoint by that.
"""

import difflib
import importlib
import json
import warnings
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Protocol, cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.schema import SourceConfig
from mixing.sources.source import digest, with_instruction
from mixing.sources.vetted import REFUSED
from rollouts.types import Message, Task

PREFIX = "reasoning_gym/"
_PROBES = 10_000
"""Raw items tried for one training item before the question space is called too small."""
_RAW_SIZE = 2**40
_CACHED = 8192


class _Dataset(Protocol):
    """What we use of reasoning-gym's ProceduralDataset."""

    def __getitem__(self, idx: int) -> Mapping[str, object]: ...


class GymAttribute(Protocol):
    """What we use of reasoning-gym's attribute definitions, scalar and range."""

    levels: list[object]


class GymCurriculum(Protocol):
    """What we use of reasoning-gym's BaseCurriculum."""

    @property
    def attributes(self) -> Mapping[str, GymAttribute]: ...

    def set_attr_level(self, attr_name: str, level: int) -> None: ...

    def generate_configuration(self, *, context: object) -> object: ...


class ReasoningGym(Protocol):
    """What we use of reasoning-gym's factory module."""

    DATASETS: Mapping[str, object]

    def create_dataset(self, name: str, **kwargs: object) -> _Dataset: ...

    def has_curriculum(self, name: str) -> bool: ...

    def create_curriculum(self, name: str) -> GymCurriculum: ...


class ProceduralSource:
    """A reasoning-gym dataset: `size` training items, `held_out` others."""

    def __init__(self, cfg: SourceConfig, *, taken: Collection[str] = ()):
        """Args:
        taken: questions that are neither held out here nor trained on.
        """
        self._cfg = cfg
        self._where = f"sources.{cfg.name}.data"
        self._dataset_name = dataset_name(cfg)
        stream = digest(f"{cfg.data.seed}/held-out")
        self._raw_train = self._create(cfg.data.seed)
        self._raw_held_out = self._create(int(stream, 16) % 2**31)
        self._held_out_questions = set(taken)
        self._held_out = self._make_held_out()
        self.keep_out({question(t) for t in self._held_out})
        self.task = lru_cache(maxsize=_CACHED)(self._make)

    @property
    def size(self) -> int:
        """Training items of an epoch."""
        return self._cfg.data.size

    @property
    def fingerprint(self) -> str:
        """Hash of the dataset, its arguments, seed and sizes."""
        return digest(self._cfg.data.model_dump_json() + self._cfg.instruction)

    def offline_rates(self) -> None:
        """Return nothing: items made on the fly have no columns."""

    def held_out(self) -> tuple[Task, ...]:
        """Return the evaluation items."""
        return self._held_out

    def keep_out(self, questions: Collection[str]) -> None:
        """Never train on these questions either; ConfigError if they are most of all there are."""
        self._held_out_questions |= set(questions)
        self._check_room()

    def _make(self, item: int) -> Task:
        """Return training item `item`: the first of item, item + size, item + 2 size, ... in the
        raw stream whose question is not held out."""
        if not 0 <= item < self.size:
            raise IndexError(f"{self._cfg.name} has no item {item}; its size is {self.size}")
        for probe in range(_PROBES):
            task = self._task(self._raw_train, item + probe * self.size, f"train/{item}")
            if question(task) not in self._held_out_questions:
                return task
        raise ConfigError(self._too_small(f"{_PROBES} items in a row have held-out questions"))

    def _make_held_out(self) -> tuple[Task, ...]:
        tasks: dict[str, Task] = {}
        wanted = self._cfg.data.held_out
        tries = 20 * wanted + 200
        for raw in range(tries):
            if len(tasks) == wanted:
                break
            task = self._task(self._raw_held_out, raw, f"held_out/{len(tasks)}")
            if question(task) not in self._held_out_questions:
                tasks.setdefault(question(task), task)
        if len(tasks) < wanted:
            raise ConfigError(self._too_small(f"{tries} items had {len(tasks)} distinct questions"))
        return tuple(tasks.values())

    def _check_room(self) -> None:
        """Refuse a held-out set that takes up most of the question space."""
        lead = 0
        for raw in range(200):
            task = self._task(self._raw_train, raw, "train/probe")
            lead += 1 if question(task) not in self._held_out_questions else -1
            if lead == 4:
                return
        raise ConfigError(self._too_small("the held-out items are most of all there are"))

    def _too_small(self, why: str) -> Problem:
        return Problem(
            where=f"{self._where}.held_out",
            what=f"{self._cfg.data.procedural} with these args has too few different questions for "
            f"{self._cfg.data.held_out} held-out items ({why})",
            fix="Lower `held_out`, or widen the dataset's `args`.",
        )

    def _task(self, dataset: _Dataset, raw: int, item_id: str) -> Task:
        entry = _json_entry(dataset[raw], self._where)
        answer = entry["answer"]
        prompt = (Message(role="user", content=str(entry["question"])),)
        return Task(
            task_id=f"{self._cfg.name}/{item_id}",
            source=self._cfg.name,
            prompt=with_instruction(self._cfg.instruction, prompt),
            answer=None if answer is None else str(answer),
            metadata={
                "dataset": self._dataset_name,
                "args": self._cfg.data.args,
                "entry": entry,
            },
        )

    def _create(self, seed: int) -> _Dataset:
        gym = load_gym(self._where)
        args = self._cfg.data.args
        if clash := {"seed", "size"} & set(args):
            what = f"{sorted(clash)} in `args`"
            raise ConfigError(
                Problem(where=f"{self._where}.args", what=what, fix="They are keys of `data`.")
            )
        if self._dataset_name not in gym.DATASETS:
            near = difflib.get_close_matches(self._dataset_name, list(gym.DATASETS), n=1)
            raise ConfigError(
                Problem(
                    where=f"{self._where}.procedural",
                    what=f"reasoning-gym has no dataset {self._dataset_name!r}",
                    fix=f"Did you mean `{PREFIX}{near[0]}`?" if near else "",
                )
            )
        try:
            return gym.create_dataset(self._dataset_name, seed=seed, size=_RAW_SIZE, **args)
        except (TypeError, ValueError, AssertionError, KeyError) as error:
            problem = Problem(
                where=f"{self._where}.args",
                what=f"reasoning-gym's {self._dataset_name} refuses {args}: {error}",
            )
            raise ConfigError(problem) from error


def dataset_name(cfg: SourceConfig) -> str:
    """Return the reasoning-gym dataset of a procedural source; ConfigError if it is unfit."""
    where = f"sources.{cfg.name}.data.procedural"
    given = cfg.data.procedural or ""
    name = given.removeprefix(PREFIX)
    if name == given or not name:
        raise ConfigError(
            Problem(
                where=where, what=f"{given!r} is unknown", fix=f"Write it as `{PREFIX}<dataset>`."
            )
        )
    if name in REFUSED:
        raise ConfigError(
            Problem(
                where=where,
                what=f"{given} cannot be trained on: {REFUSED[name]}",
                fix="Choose another dataset; mixing/sources/vetted.py lists those checked.",
            )
        )
    return name


def load_gym(where: str) -> ReasoningGym:
    """Import reasoning-gym (seconds), or say that it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of a package that it needs
            importlib.import_module("reasoning_gym")  # registers the datasets
        return cast(ReasoningGym, importlib.import_module("reasoning_gym.factory"))
    except ModuleNotFoundError as error:
        problem = Problem(
            where=f"{where}.procedural",
            what=f"reasoning-gym cannot be imported: no module {error.name!r}",
            fix="Install it: `pip install reasoning-gym`.",
        )
        raise ConfigError(problem) from error


def question(task: Task) -> str:
    """Return the bare question of a reasoning-gym task."""
    entry = cast("dict[str, JsonValue]", task.metadata["entry"])
    return str(entry["question"])


def _json_entry(entry: Mapping[str, object], where: str) -> dict[str, JsonValue]:
    """Return the entry as plain JSON, as the grader's process will see it."""
    try:
        return json.loads(json.dumps(entry))
    except (TypeError, ValueError) as error:
        problem = Problem(where=where, what=f"the dataset's entries are not JSON: {error}")
        raise ConfigError(problem) from error
