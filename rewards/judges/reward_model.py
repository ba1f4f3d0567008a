"""The grader `reward_model`: the number that a sequence classifier gives the conversation."""

import math

from configs.graders.judged import RewardModelGrader
from rewards.score import Score
from rewards.services import Services
from rewards.subject import Subject
from rollouts.types import Message


async def evaluate_reward_model(
    cfg: RewardModelGrader, subject: Subject, services: Services, path: str
) -> Score:
    """Score prompt and last answer, as the model's own chat template writes them.

    Raises:
        GradeFailed: the model did not answer, or the conversation is too long for it.
    """
    answer = Message(role="assistant", content=subject.rollout.last_text)
    raw = await services.reward_models[cfg.model].score((*subject.task.prompt, answer))
    squashed = 0.5 * (1 + math.tanh(raw / 2)) if cfg.transform == "sigmoid" else raw
    return Score(value=cfg.scale * squashed + cfg.offset, notes={"raw": raw})
