"""Held-out evaluation: every held-out item, sampled by the engines under one policy version."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.groups import RewardFleet, RolloutFleet
from configs.schema import RunConfig, SourceConfig
from mixing.mixer import Mixer
from orchestrator.clock import PhaseClock
from orchestrator.producer import sample_and_grade
from rollouts.types import GroupRequest, GroupSummary, Sampling

log = logging.getLogger("braid.evaluator")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One source's held-out figures."""

    step: int
    source: str
    n: int
    """Rollouts with a reward."""
    invalid: int
    """Rollouts whose generation or grading failed; left out of the figures."""
    pass_rate: float
    reward_mean: float
    completion_tokens_mean: float


async def evaluate(
    cfg: RunConfig,
    *,
    step: int,
    mixer: Mixer,
    rollout: RolloutFleet,
    reward: RewardFleet,
    clock: PhaseClock,
) -> tuple[EvalResult, ...]:
    """Sample and grade all held-out items of every source.

    Args:
        step: training steps done, that is, the version of the policy evaluated.
    """
    with clock.phase("evaluate"):
        requests = [r for s in cfg.sources for r in _requests(cfg, s, mixer, step)]
        groups = await asyncio.gather(
            *(sample_and_grade(rollout, reward, clock, r) for r in requests)
        )
        by_source: Mapping[str, Sequence[GroupSummary]] = {
            s.name: [g for g in groups if g.source == s.name] for s in cfg.sources
        }
    return tuple(_figures(cfg, step, name, own) for name, own in by_source.items())


def _requests(cfg: RunConfig, source: SourceConfig, mixer: Mixer, step: int) -> list[GroupRequest]:
    temperature = cfg.eval.temperature or source.sampling.temperature
    sampling = Sampling(temperature=temperature, max_tokens=source.sampling.max_tokens)
    return [
        GroupRequest(
            group_id=f"{task.task_id}#eval{step}",
            task=task,
            group_size=cfg.eval.samples,
            sampling=sampling,
            step=-1,
        )
        for task in mixer.held_out(source.name)
    ]


def _figures(cfg: RunConfig, step: int, source: str, groups: Sequence[GroupSummary]) -> EvalResult:
    rollouts = [r for g in groups for r in g.rollouts]
    rewards = np.array([r.reward for r in rollouts if r.reward is not None])
    invalid = len(rollouts) - len(rewards)
    if invalid:
        log.warning("evaluation at step %d: %d invalid rollouts of %s", step, invalid, source)
    nothing = len(rewards) == 0
    return EvalResult(
        step=step,
        source=source,
        n=len(rewards),
        invalid=invalid,
        pass_rate=float("nan") if nothing else float((rewards >= cfg.eval.pass_threshold).mean()),
        reward_mean=float("nan") if nothing else float(rewards.mean()),
        completion_tokens_mean=float(np.mean([r.num_completion_tokens for r in rollouts] or [0])),
    )
