"""Held-out evaluation: every held-out item, sampled by the engines under one policy version.

Nothing here touches training's counters: an invalid rollout of an evaluation is left out of the
figures and shown beside them, and counts neither as a failed group nor in an error rate.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from pydantic import JsonValue

from actors.errors import RunError
from actors.groups import ReferenceFleet, RewardFleet, RolloutFleet
from configs.evaluation import EvalSettings, eval_settings
from configs.schema import RunConfig
from mixing.mixer import Mixer
from orchestrator.at_once import at_once
from orchestrator.clock import PhaseClock
from orchestrator.producer import sample_and_grade
from rollouts.pass_rates import pass_at_k, pass_rate
from rollouts.types import GroupRequest, GroupSummary, RolloutStatus, Sampling

log = logging.getLogger("braid.evaluator")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One source's held-out figures, and how they were measured."""

    step: int
    source: str
    n: int
    """Rollouts with a reward; all figures but `invalid` are over these."""
    invalid: int
    """Rollouts whose generation or grading failed."""
    pass_rate: float
    """Passed rollouts over n; NaN, like all below, where n is 0."""
    pass_rate_stderr: float
    pass_rate_low: float
    """95% interval."""
    pass_rate_high: float
    pass_at: Mapping[int, float]
    """pass@k over the items with k or more valid rollouts."""
    reward_mean: float
    reward_stderr: float
    """The samples of one item taken as a cluster; NaN where the evaluation had one item."""
    completion_tokens_mean: float
    truncated: float
    items: int
    """Held-out items asked."""
    samples: int
    temperature: float
    max_tokens: int
    pass_threshold: float
    kl_start: float | None = None
    """KL(policy || start) over the evaluated completions, in nats a completion; None where no
    reference holds the start, or where completions are not drawn at the policy's temperature."""
    kl_start_stderr: float | None = None
    kl_start_token: float | None = None
    """The same in nats a token."""

    def record(self) -> dict[str, JsonValue]:
        """Return the figures as a line of eval.jsonl, pass@k flat."""
        figures = asdict(self)
        figures.update({f"pass@{k}": chance for k, chance in figures.pop("pass_at").items()})
        return figures


async def evaluate(
    cfg: RunConfig,
    *,
    sources: Sequence[str],
    step: int,
    mixer: Mixer,
    rollout: RolloutFleet,
    reward: RewardFleet,
    clock: PhaseClock,
    start: ReferenceFleet | None = None,
) -> tuple[EvalResult, ...]:
    """Sample and grade the held-out items of some sources.

    Args:
        start: scores by the policy that the run began with, where it is held.
        step: training steps done, that is, the version of the policy evaluated.

    Raises:
        RunError: a completion was sampled under another version.
    """
    settings = {name: eval_settings(cfg, cfg.source(name)) for name in sources}
    with clock.phase("evaluate"):
        requests = [r for name in sources for r in _requests(name, settings[name], mixer, step)]
        groups = await at_once(cfg, requests, lambda r: sample_and_grade(rollout, reward, clock, r))
        _assert_one_version(groups, step)
        of = {name: [g for g in groups if g.source == name] for name in sources}
        far = {name: await _distance(start, settings[name], of[name]) for name in sources}
    return tuple(
        replace(measure(name, step, settings[name], of[name]), **far[name]) for name in sources
    )


async def _distance(
    start: ReferenceFleet | None, settings: EvalSettings, groups: Sequence[GroupSummary]
) -> dict[str, float]:
    """Measure how far a source's completions are from what the start would have written."""
    if start is None or settings.temperature == 0:
        return {}
    found = await start.distance([g.group_ref for g in groups])
    return {
        "kl_start": found.mean,
        "kl_start_stderr": found.stderr,
        "kl_start_token": found.per_token,
    }


def _requests(
    source: str, settings: EvalSettings, mixer: Mixer, step: int
) -> Sequence[GroupRequest]:
    sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_tokens)
    return [
        GroupRequest(
            group_id=f"{task.task_id}#eval{step}",
            task=task,
            group_size=settings.samples,
            sampling=sampling,
            step=-1,
        )
        for task in mixer.held_out(source)[: settings.n]
    ]


def _assert_one_version(groups: Sequence[GroupSummary], step: int) -> None:
    for group in groups:
        sampled = any(r.num_completion_tokens for r in group.rollouts)
        if sampled and (group.oldest_version, group.newest_version) != (step, step):
            raise RunError(
                f"evaluation of version {step}: {group.group_id} was sampled under versions "
                f"{group.oldest_version} to {group.newest_version}"
            )


def measure(
    source: str, step: int, settings: EvalSettings, groups: Sequence[GroupSummary]
) -> EvalResult:
    """Reduce a source's graded items to its figures."""
    valid = [r for g in groups for r in g.rollouts if r.reward is not None]
    invalid = sum(len(g.rollouts) for g in groups) - len(valid)
    if invalid:
        log.warning("evaluation at step %d: %d invalid rollouts of %s", step, invalid, source)
    items = [
        (sum(reward >= settings.pass_threshold for reward in g.rewards), len(g.rewards))
        for g in groups
    ]
    measured = pass_rate(items)
    return EvalResult(
        step=step,
        source=source,
        n=len(valid),
        invalid=invalid,
        pass_rate=measured.rate,
        pass_rate_stderr=measured.stderr,
        pass_rate_low=measured.low,
        pass_rate_high=measured.high,
        pass_at={
            k: _mean([pass_at_k(n, passed, k) for passed, n in items if n >= k])
            for k in settings.pass_at
        },
        reward_mean=_mean([r.reward for r in valid if r.reward is not None]),
        reward_stderr=_clustered_stderr([g.rewards for g in groups if g.rewards]),
        completion_tokens_mean=_mean([r.num_completion_tokens for r in valid]),
        truncated=_mean([r.status is RolloutStatus.TRUNCATED for r in valid]),
        items=len(groups),
        samples=settings.samples,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        pass_threshold=settings.pass_threshold,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _clustered_stderr(items: Sequence[Sequence[float]]) -> float:
    """Return the standard error of the mean over all rewards, those of one item as a cluster."""
    count = sum(map(len, items))
    if len(items) < 2:
        return math.nan
    mean = sum(map(sum, items)) / count
    squares = sum((sum(rewards) - len(rewards) * mean) ** 2 for rewards in items)
    return math.sqrt(squares * len(items) / (len(items) - 1)) / count
