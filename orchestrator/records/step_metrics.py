"""What a training step is worth knowing by: one flat object, with every statistic per source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.evaluation import eval_settings
from configs.schema import RunConfig, SourceConfig
from orchestrator.publisher import SyncReport
from orchestrator.records.source_metrics import ALL, TRAINED, Pool, pool_metrics
from rollouts.staleness import staleness
from rollouts.types import GroupSummary, StepResult

UNITS = ("groups", "samples", "loss_tokens")
"""In which a share may be meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStep:
    """A step that was trained, as the loop reports it."""

    step: int
    groups: Sequence[GroupSummary]
    """Those trained on."""
    rejected: Sequence[GroupSummary]
    """Graded for this step and not trained on."""
    shares: Mapping[str, float]
    """Share that each source was due, of 1; a source that is left out was due nothing."""
    result: StepResult


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBooks:
    """What is known of the step once the engines hold its weights."""

    sync: SyncReport
    wall_s: float
    """Seconds since the last step's report."""
    split: Mapping[str, float]
    """Those seconds by phase of `orchestrator.clock`."""
    ledger: Mapping[str, float]
    """The ledger's sums, as metrics."""
    difficulty: Mapping[str, float]
    """Where windows and curricula stand, as metrics."""
    judges: Mapping[str, float]
    """What judges did since the last step, as metrics."""


def step_metrics(cfg: RunConfig, done: TrainedStep) -> dict[str, float]:
    """Return the flat metrics of one step, which the monitors are shown; `book_metrics` adds what
    comes later, `orchestrator.records.run_totals` the sums so far."""
    groups, version = done.groups, done.step - 1
    tokens = sum(
        r.num_completion_tokens for g in groups for r in (*g.rollouts, *filter(None, [g.greedy]))
    )
    graded = {s.name for s in cfg.sources if s.rewards}
    rewards = np.array([r for g in groups if g.source in graded for r in g.rewards])
    ages = [staleness(g, version) for g in groups]
    metrics: dict[str, float] = {
        "step": done.step,
        "policy_version": done.result.policy_version,
        "groups": len(groups),
        "completion_tokens": tokens,
        "staleness/max": max(ages),
        "staleness/mean": float(np.mean(ages)),
    }
    if len(rewards):
        metrics["reward/mean"] = float(rewards.mean())
        metrics["reward/std"] = float(rewards.std())
    metrics.update((f"train/{k}", v) for k, v in done.result.metrics.items())
    for source in cfg.sources:
        metrics.update(_source(cfg, source, done))
    return metrics


def book_metrics(done: StepBooks, *, completion_tokens: float) -> dict[str, float]:
    """Return the rest of a step's metrics.

    Args:
        completion_tokens: of the step, as its other metrics tell.
    """
    metrics: dict[str, float] = {
        "completion_tokens_per_s": completion_tokens / done.wall_s,
        "sync/bytes": done.sync.bytes,
        **done.ledger,
        **done.difficulty,
        **done.judges,
    }
    if done.sync.gap_median is not None and done.sync.gap_max is not None:
        metrics["sync/logprob_gap_median"] = done.sync.gap_median
        metrics["sync/logprob_gap_max"] = done.sync.gap_max
    return {**metrics, **_times(done)}


def _times(done: StepBooks) -> dict[str, float]:
    """Split the wall time; the sync phase by what the sync itself reported."""
    times = {f"time/{name}": seconds for name, seconds in done.split.items() if name != "sync"}
    reported = sum(done.sync.seconds.values())
    for name, seconds in done.sync.seconds.items():
        times[f"time/sync_{name}"] = seconds
    times["time/sync_verify"] = max(0.0, done.split["sync"] - reported)
    times["time/step"] = done.wall_s
    return times


def _source(cfg: RunConfig, source: SourceConfig, done: TrainedStep) -> dict[str, float]:
    name = source.name
    trained = [g for g in done.groups if g.source == name]
    graded = [*trained, *(g for g in done.rejected if g.source == name)]
    found: dict[str, float] = {}
    for kind, groups in ((ALL, graded), (TRAINED, trained)):
        if groups:
            pool = Pool(
                kind,
                groups,
                pass_threshold=eval_settings(cfg, source).pass_threshold,
                version=done.step - 1,
                gated={gate.part for gate in source.objective.gates},
                rewarded=bool(source.rewards),
            )
            found.update((f"{kind}/{key}", value) for key, value in pool_metrics(pool))
    if graded:
        found["survival"] = len(trained) / len(graded)
    found.update(_shares(name, done, trained))
    return {f"source/{name}/{key}": value for key, value in found.items()}


def _shares(name: str, done: TrainedStep, trained: Sequence[GroupSummary]) -> dict[str, float]:
    """Return what the source had of the step, in counts and as shares, and what it was due."""
    own, whole = _in_units(trained), _in_units(done.groups)
    return {
        **own,
        "share/target": done.shares.get(name, 0.0),
        **{f"share/{unit}": count / whole[unit] for unit, count in own.items()},
    }


def _in_units(groups: Sequence[GroupSummary]) -> dict[str, int]:
    """Count trained groups in each of `UNITS`."""
    counts = (
        len(groups),
        sum(len(g.samples) for g in groups),
        sum(s.num_loss_tokens for g in groups for s in g.samples),
    )
    return dict(zip(UNITS, counts, strict=True))
