"""Evaluate a grader tree: rules in killable processes, composition and judges here."""

import asyncio
import math
from collections.abc import Awaitable

from configs.graders.union import GraderConfig
from rewards.registry import COMPUTE, load_evaluator
from rewards.score import FailureKind, GradeFailed, Score
from rewards.services import Services
from rewards.subject import Subject


async def evaluate(cfg: GraderConfig, subject: Subject, services: Services, path: str) -> Score:
    """Return the score of one answer.

    Args:
        path: where the grader stands, `source/part.sub`; the name by which workers know it.

    Raises:
        GradeFailed: it cannot be judged.
    """
    if cfg.type in COMPUTE:
        score = await services.compute(path, subject)
    else:
        score = await _in_time(load_evaluator(cfg.type)(cfg, subject, services, path), cfg, path)
    if not math.isfinite(score.value):
        raise GradeFailed(FailureKind.NOT_A_NUMBER, f"{path} scored {score.value}")
    return score


async def _in_time(scoring: Awaitable[Score], cfg: GraderConfig, path: str) -> Score:
    """Await a score as long as the grader's own `timeout_s` lets it; judges have deadlines too."""
    if cfg.timeout_s is None:
        return await scoring
    try:
        async with asyncio.timeout(cfg.timeout_s):
            return await scoring
    except TimeoutError:
        why = f"{path}: no score within {cfg.timeout_s:g} s"
        raise GradeFailed(FailureKind.TIMEOUT, why) from None
