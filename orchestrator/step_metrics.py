"""What a training step is worth knowing by: one flat object, with every statistic per source.

Rewards are over valid rollouts; lengths and rates over all of them. Nothing averages averages: a
mean is made once, from the rollouts it is about.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.publisher import SyncReport
from rollouts.staleness import staleness
from rollouts.types import GroupSummary, RolloutStats, RolloutStatus, StepResult


def step_metrics(
    *,
    step: int,
    groups: Sequence[GroupSummary],
    result: StepResult,
    sync: SyncReport,
    wall_s: float,
    split: Mapping[str, float],
    failed_groups: int,
) -> dict[str, float]:
    """Return the flat metrics of one step.

    Args:
        wall_s: seconds since the last step's metrics.
        split: those seconds by phase of `orchestrator.clock`.
    """
    tokens = sum(r.num_completion_tokens for g in groups for r in g.rollouts)
    metrics: dict[str, float] = {
        "step": step,
        "policy_version": result.policy_version,
        "groups": len(groups),
        "groups_failed_total": failed_groups,
        "completion_tokens": tokens,
        "completion_tokens_per_s": tokens / wall_s,
        "staleness/max": max(staleness(g, step - 1) for g in groups),
        "staleness/mean": float(np.mean([staleness(g, step - 1) for g in groups])),
        "sync/bytes": sync.bytes,
    }
    if sync.gap_median is not None and sync.gap_max is not None:
        metrics["sync/logprob_gap_median"] = sync.gap_median
        metrics["sync/logprob_gap_max"] = sync.gap_max
    metrics.update(_times(wall_s, split, sync))
    metrics.update((f"train/{k}", v) for k, v in result.metrics.items())
    metrics.update(_rewards("reward", groups))
    for name in dict.fromkeys(g.source for g in groups):
        own = [g for g in groups if g.source == name]
        metrics.update(_rewards(f"source/{name}/reward", own))
        metrics.update(_source(f"source/{name}", own, len(groups)))
    return metrics


def _times(wall_s: float, split: Mapping[str, float], sync: SyncReport) -> dict[str, float]:
    """Split the wall time; the sync phase by what the sync itself reported."""
    times = {f"time/{name}": seconds for name, seconds in split.items() if name != "sync"}
    reported = sum(sync.seconds.values())
    for name, seconds in sync.seconds.items():
        times[f"time/sync_{name}"] = seconds
    times["time/sync_verify"] = max(0.0, split["sync"] - reported)
    times["time/step"] = wall_s
    return times


def _rewards(prefix: str, groups: Sequence[GroupSummary]) -> dict[str, float]:
    rewards = np.array([r for g in groups for r in g.rewards])
    if not len(rewards):
        return {}
    return {
        f"{prefix}/mean": float(rewards.mean()),
        f"{prefix}/std": float(rewards.std()),
        f"{prefix}/p10": float(np.quantile(rewards, 0.1)),
        f"{prefix}/p90": float(np.quantile(rewards, 0.9)),
    }


def _source(prefix: str, groups: Sequence[GroupSummary], all_groups: int) -> dict[str, float]:
    rollouts = [r for g in groups for r in g.rollouts]
    lengths = np.array([r.num_completion_tokens for r in rollouts])
    spreads = [max(g.rewards) - min(g.rewards) for g in groups if g.rewards]
    found = {
        f"{prefix}/groups": len(groups),
        f"{prefix}/share": len(groups) / all_groups,
        f"{prefix}/samples": sum(len(g.samples) for g in groups),
        f"{prefix}/loss_tokens": sum(s.num_loss_tokens for g in groups for s in g.samples),
        f"{prefix}/length/mean": float(lengths.mean()),
        f"{prefix}/length/p95": float(np.quantile(lengths, 0.95)),
        f"{prefix}/truncated": _rate(rollouts, RolloutStatus.TRUNCATED),
        f"{prefix}/invalid": _rate(rollouts, RolloutStatus.INVALID),
        f"{prefix}/zero_variance": float(np.mean([s < 1e-6 for s in spreads])),
        f"{prefix}/generate_s": float(np.mean([g.generate_s for g in groups])),
        f"{prefix}/grade_s": float(np.mean([g.grade_s for g in groups])),
    }
    for part in dict.fromkeys(p for r in rollouts for p in r.reward_parts):
        values = [r.reward_parts[part] for r in rollouts if part in r.reward_parts]
        found[f"{prefix}/reward_part/{part}"] = float(np.mean(values))
    return found


def _rate(rollouts: Sequence[RolloutStats], status: RolloutStatus) -> float:
    return sum(r.status is status for r in rollouts) / len(rollouts)
