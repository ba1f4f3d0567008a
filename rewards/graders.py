"""Graders: plain functions `(rollout, task, **args) -> float`, and which ones are built in.

A grader that cannot judge raises; the rollout is then invalid and never counts as a reward of 0.
They run in the main thread of a killable process (`rewards.worker`), so signal.alarm works.
"""

import importlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, Protocol, cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.graders.answers import FunctionGrader, ReasoningGymGrader
from configs.graders.union import GraderConfig
from configs.plugs import bind, resolve
from configs.schema import SourceConfig
from rewards.registry import check_grader, children
from rewards.shape import check_pattern
from rewards.subject import Subject
from rollouts.types import Rollout, Task

Grader = Callable[[Rollout, Task], object]
"""A grader with its arguments bound; what it returns is checked to be a finite number."""

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class _Dataset(Protocol):
    def score_answer(self, answer: str, entry: Mapping[str, JsonValue]) -> float: ...


class _Factory(Protocol):
    def create_dataset(self, name: str, **kwargs: JsonValue) -> _Dataset: ...


def reasoning_gym(
    rollout: Rollout, task: Task, *, binary: bool = True, extract: Literal["all", "tag"] = "all"
) -> float:
    """Score the answer with the reasoning-gym dataset that made the task.

    Args:
        binary: pay 1 for a full score and 0 for less; False pays the dataset's partial score.
        extract: `all` takes the whole last text, `tag` what the last <answer>...</answer> holds
            (0 if there is none).
    """
    answer = rollout.last_text.strip()
    if extract == "tag":
        found = _TAG.findall(rollout.last_text)
        if not found:
            return 0.0
        answer = found[-1].strip()
    dataset = _dataset(str(task.metadata["dataset"]), json.dumps(task.metadata.get("args", {})))
    entry = cast("dict[str, JsonValue]", task.metadata["entry"])
    score = float(dataset.score_answer(answer, entry))
    # not `>=`: spell_backward sums the partial credit of "the answer and more" to a hair over 1
    return float(score == 1.0) if binary else score


@lru_cache(maxsize=256)
def _dataset(name: str, args: str) -> _Dataset:
    importlib.import_module("reasoning_gym")  # registers the datasets
    factory = cast(_Factory, importlib.import_module("reasoning_gym.factory"))
    return factory.create_dataset(name, seed=0, size=1, **json.loads(args))


def exact(rollout: Rollout, task: Task) -> float:
    """Pay 1 if the last text, stripped, is the task's answer, else 0."""
    if task.answer is None:
        raise ValueError(f"{task.task_id} has no answer to compare with")
    return float(rollout.last_text.strip() == task.answer.strip())


def format_matches(rollout: Rollout, task: Task, *, pattern: str) -> float:
    """Pay 1 if the whole last text matches the regular expression (`.` matches newlines too)."""
    return float(re.fullmatch(pattern, rollout.last_text, re.DOTALL) is not None)


def environment_part(
    rollout: Rollout, task: Task, *, part: str, missing: float | None = None
) -> float:
    """Pay what the environment itself gave under the name `part`.

    Args:
        missing: paid where the episode ended without it; empty makes such a rollout invalid.
    """
    given = rollout.reward_parts.get(part, missing)
    if given is None:
        raise LookupError(f"no part {part!r} from the environment: {sorted(rollout.reward_parts)}")
    return given


BUILT_IN: Mapping[str, Callable[..., float]] = {
    "reasoning_gym": reasoning_gym,
    "exact": exact,
    "format": format_matches,
    "environment": environment_part,
}


def prepare_function(cfg: FunctionGrader, where: str) -> Callable[[Subject], object]:
    """Return the function with its arguments bound; what it needs is imported."""
    function = resolve_function(cfg, where=where)
    if cfg.use == "reasoning_gym":
        importlib.import_module("reasoning_gym")
    return lambda subject: function(subject.rollout, subject.task)


def prepare_reasoning_gym(cfg: ReasoningGymGrader, where: str) -> Callable[[Subject], float]:
    """Return the scoring by the dataset that made the task; the library is imported."""
    importlib.import_module("reasoning_gym")
    return lambda subject: reasoning_gym(
        subject.rollout, subject.task, binary=cfg.binary, extract=cfg.extract
    )


def resolve_function(cfg: FunctionGrader, *, where: str = "") -> Grader:
    """Return the function with its arguments bound.

    Raises:
        ConfigError: it cannot be imported, or does not fit `(rollout, task, **args)`.
    """
    found = resolve(cfg.use, BUILT_IN, where=where)
    if inspect.iscoroutinefunction(found):
        what = f"{cfg.use!r} is `async def`; graders are plain functions"
        raise ConfigError(Problem(where=where, what=what, fix="Write it as `def`."))
    grader = bind(found, cfg.args, parameters=("rollout", "task"), use=cfg.use, where=where)
    if cfg.use == "format":
        bad = check_pattern(str(cfg.args["pattern"]), f"{where}.args.pattern")
        if bad:
            raise ConfigError(bad)
    return grader


def check_function(cfg: FunctionGrader, where: str) -> list[Problem]:
    """Return what is wrong with the function and its arguments."""
    try:
        resolve_function(cfg, where=where)
    except ConfigError as error:
        return list(error.problems)
    return []


def validate_rewards(sources: Sequence[SourceConfig]) -> list[Problem]:
    """Return every problem with the sources' graders; modules are imported, nothing is graded."""
    problems: list[Problem] = []
    for source in sources:
        where = f"sources.{source.name}.rewards"
        if not source.rewards and source.distill is None:
            problems.append(Problem(where=where, what="is empty", fix="Add a grader."))
        names = [reward.name for reward in source.rewards]
        for name in sorted({n for n in names if names.count(n) > 1}):
            problems.append(Problem(where=f"{where}.{name}", what="two parts have this name"))
        for reward in source.rewards:
            if source.data.procedural is None and _scores_by_gym(reward.definition):
                problems.append(
                    Problem(
                        where=f"{where}.{reward.name}",
                        what="`reasoning_gym` grades tasks of `data.procedural` alone",
                        fix="Use `exact`, or a grader of your own.",
                    )
                )
            at = "" if reward.grader is None else ".grader"
            problems.extend(check_grader(reward.definition, f"{where}.{reward.name}{at}"))
        if source.gold is not None:
            problems.extend(check_grader(source.gold.grader, f"sources.{source.name}.gold.grader"))
    return problems


def _scores_by_gym(cfg: GraderConfig) -> bool:
    """Whether a grader, or one that it is made of, needs reasoning-gym's tasks."""
    uses = isinstance(cfg, FunctionGrader) and cfg.use == "reasoning_gym"
    below = any(_scores_by_gym(child) for _, child in children(cfg))
    return uses or isinstance(cfg, ReasoningGymGrader) or below
