"""Built-in graders: plain functions `(rollout, task, **args) -> float`.

They run in the worker processes of `rewards.pool` alone: some of what they call (reasoning-gym's
scorers) evaluates model text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

from configs.errors import ConfigError, Problem
from configs.plugs import bind, resolve
from configs.schema import PlugConfig, SourceConfig
from rollouts.types import Rollout, Task

Grader = Callable[..., float]
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def exact(rollout: Rollout, task: Task) -> float:
    """1 if the last completion, stripped, is the task's answer."""
    if task.answer is None:
        raise ValueError(f"task {task.task_id} has no answer to compare with")
    return float(rollout.last_text.strip() == task.answer.strip())


def format(rollout: Rollout, task: Task, *, pattern: str) -> float:
    """1 if the regular expression matches the whole last completion, stripped."""
    return float(re.fullmatch(pattern, rollout.last_text.strip(), re.DOTALL) is not None)


def reasoning_gym(
    rollout: Rollout,
    task: Task,
    *,
    binary: bool = True,
    extract: Literal["text", "tag"] = "text",
) -> float:
    """Score by the reasoning-gym dataset that made the task.

    Args:
        binary: only a full score counts, as 1; reasoning-gym pays partial credit for answers that
            merely contain the right one.
        extract: grade the whole text, or what stands in the last <answer> tag (0 without one).
    """
    import reasoning_gym as gym

    text = rollout.last_text.strip()
    if extract == "tag":
        found = _TAG.findall(text)
        if not found:
            return 0.0
        text = found[-1].strip()
    dataset = task.metadata.get("dataset")
    if not isinstance(dataset, str):
        raise ValueError(f"task {task.task_id} was not made by reasoning-gym")
    entry = cast(dict[str, Any], task.metadata["entry"])
    score = float(gym.get_score_answer_fn(dataset)(text, entry))
    return float(score >= 1.0) if binary else score


BUILT_IN: Mapping[str, Grader] = {
    "exact": exact,
    "format": format,
    "reasoning_gym": reasoning_gym,
}


def resolve_grader(plug: PlugConfig, *, where: str) -> Grader:
    """Return a grader with its arguments bound; ConfigError if it is none."""
    found = resolve(plug.use, BUILT_IN, where=f"{where}.use")
    return bind(found, plug.args, parameters=("rollout", "task"), where=f"{where}.args")


def validate_rewards(sources: Sequence[SourceConfig]) -> list[Problem]:
    """Return what is wrong with the sources' rewards, before any actor starts."""
    problems: list[Problem] = []
    for source in sources:
        where = f"sources.{source.name}.rewards"
        if not source.rewards:
            problems.append(Problem(where=where, what="needs at least one reward"))
        names = [r.name for r in source.rewards]
        for name in sorted({n for n in names if names.count(n) > 1}):
            problems.append(Problem(where=where, what=f"two parts are called {name!r}"))
        for reward in source.rewards:
            try:
                resolve_grader(reward, where=f"{where}.{reward.name}")
            except ConfigError as error:
                problems.extend(error.problems)
            if reward.use == "reasoning_gym" and source.data.procedural is None:
                what = "the grader `reasoning_gym` needs tasks made by reasoning-gym"
                problems.append(Problem(where=f"{where}.{reward.name}.use", what=what))
    return problems
