"""Evaluate a grader tree: rules in killable processes, composition and judges here."""

import math

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
        score = await load_evaluator(cfg.type)(cfg, subject, services, path)
    if not math.isfinite(score.value):
        raise GradeFailed(FailureKind.NOT_A_NUMBER, f"{path} scored {score.value}")
    return score
