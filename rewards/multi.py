"""The `multi` grader: a formula of other graders' scores."""

import asyncio
from collections.abc import Sequence
from functools import lru_cache

from configs.errors import ConfigError, Problem
from configs.graders.rft import MultiGrader
from rewards.evaluate import evaluate
from rewards.formula import Formula, compile_formula, is_identifier
from rewards.score import GradeFailed, Score, Usage
from rewards.services import Services
from rewards.subject import Subject

_SUFFIX = "_score"
"""A formula may call the grader `style` also `style_score`."""


async def evaluate_multi(
    cfg: MultiGrader, subject: Subject, services: Services, path: str
) -> Score:
    """Return the formula of all parts, graded at the same time.

    Raises:
        GradeFailed: a part cannot be judged, or the formula has no value.
    """
    graded = await asyncio.gather(
        *(evaluate(part, subject, services, f"{path}.{key}") for key, part in cfg.graders.items()),
        return_exceptions=True,
    )
    scores: dict[str, Score] = {}
    for key, result in zip(cfg.graders, graded, strict=True):
        if isinstance(result, GradeFailed):
            raise GradeFailed(result.kind, f"{key}: {result.message}") from result
        if isinstance(result, BaseException):
            raise result
        scores[key] = result
    values = {key: score.value for key, score in scores.items()}
    formula = _formula(cfg.calculate_output, tuple(_names(cfg)), "calculate_output")
    return Score(
        value=formula({f"{key}{_SUFFIX}": v for key, v in values.items()} | values),
        parts=values,
        usage=add_usage(list(scores.values())),
        notes={key: dict(score.notes) for key, score in scores.items() if score.notes},
    )


def check_multi(cfg: MultiGrader, where: str) -> list[Problem]:
    """Return what is wrong with the names and the formula."""
    problems: list[Problem] = []
    if not cfg.graders:
        problems.append(Problem(where=f"{where}.graders", what="is empty", fix="Add a grader."))
    for key in cfg.graders:
        if not is_identifier(key):
            fix = "Use letters, digits and `_`, not beginning with a digit."
            what = f"{key!r} cannot be named in a formula"
            problems.append(Problem(where=f"{where}.graders", what=what, fix=fix))
    try:
        _formula(cfg.calculate_output, tuple(_names(cfg)), f"{where}.calculate_output")
    except ConfigError as error:
        problems.extend(error.problems)
    return problems


def add_usage(scores: Sequence[Score]) -> dict[str, Usage]:
    """Return what all scores together cost, by judge model."""
    total: dict[str, Usage] = {}
    for score in scores:
        for model, used in score.usage.items():
            had = total.get(model, Usage())
            total[model] = Usage(
                prompt_tokens=had.prompt_tokens + used.prompt_tokens,
                completion_tokens=had.completion_tokens + used.completion_tokens,
                cached_tokens=had.cached_tokens + used.cached_tokens,
            )
    return total


def _names(cfg: MultiGrader) -> list[str]:
    return [*cfg.graders, *(f"{key}{_SUFFIX}" for key in cfg.graders)]


@lru_cache(maxsize=256)
def _formula(text: str, names: tuple[str, ...], where: str) -> Formula:
    return compile_formula(text, names, where=where)
