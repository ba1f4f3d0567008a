"""Advantages over a whole step: what the reward actors, who see one group each, cannot know.

An estimator centres the rewards of its group. With `advantage_scope: source` or `batch` its
advantages are then divided by their standard deviation over the step's valid rollouts of that
source, or of all sources with scope `batch`. Rewards of the step are known when it is planned, so
the factor is worked out there and applied by whoever fetches the sample: no packing, number of
ranks or cut into mini-batches can change it, and no token passes the driver.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from configs.plug import PlugConfig
from configs.schema import RunConfig, SourceConfig
from rollouts.advantages import STD_EPS
from rollouts.types import GroupSummary, SampleHandle, TrainingSample


def estimator_plug(source: SourceConfig) -> PlugConfig:
    """Return the estimator of a source's groups: `grpo` divides by the spread of the group only
    where that is the scope, else it leaves r - mean for `scale_advantages` to divide. GDPO does
    both: each part in its group, then their sum over the step."""
    if source.objective.combine == "normalize_then_sum":
        return source.advantage
    if source.advantage_scope != "group" and source.advantage.use == "grpo":
        return PlugConfig(use="mean_baseline", args=source.advantage.args)
    return source.advantage


def mean_advantage(sample: TrainingSample) -> float:
    """Return the mean advantage of a sample's loss tokens; of an outcome reward, that of each."""
    mine = sample.advantages[sample.loss_mask]
    return float(mine.mean(dtype=np.float64)) if len(mine) else 0.0


def advantage_variance(sample: TrainingSample) -> float:
    """Return the variance of the advantage over a sample's loss tokens; of an outcome reward, 0."""
    mine = sample.advantages[sample.loss_mask]
    return float(mine.var(dtype=np.float64)) if len(mine) else 0.0


def scale_advantages(cfg: RunConfig, groups: Sequence[GroupSummary]) -> list[GroupSummary]:
    """Return the groups of a step, their samples with the factor on their advantages.

    `source`: task advantage normalisation (AgentRL, arXiv:2510.04206), and the batch normalisation
    of GDPO (arXiv:2601.05242), which `objective.combine: normalize_then_sum` has under scope
    `group` too. `batch`: REINFORCE++ with
    baseline, (A - mean) / std over the step of A = r - mean of the group (arXiv:2501.03262); the
    mean is 0, as it is in each group.
    """
    pools = {s.name: _pool(s) for s in cfg.sources}
    samples: dict[str, list[SampleHandle]] = {}
    for group in groups:
        samples.setdefault(pools[group.source], []).extend(group.samples)
    scales = _scales(samples)
    return [_with_scale(group, scales[pools[group.source]]) for group in groups]


def _with_scale(group: GroupSummary, scale: float) -> GroupSummary:
    if scale == 1:
        return group
    samples = tuple(replace(s, advantage_scale=scale) for s in group.samples)
    return replace(group, samples=samples)


def _pool(source: SourceConfig) -> str:
    """Return the name of those whose standard deviation the source's advantages share."""
    scope = source.advantage_scope
    if scope == "group" and source.objective.combine == "normalize_then_sum":
        scope = "source"
    return f"source/{source.name}" if scope == "source" else scope


def _scales(pools: Mapping[str, Sequence[SampleHandle]]) -> dict[str, float]:
    """Return 1 / (std + STD_EPS) by pool; 1 where there is no spread, or none is asked for.

    The spread is that of tokens, those of each sample weighing 1 together: where only tokens
    differ, means of samples nearly alike would make a factor without bound.
    """
    scales: dict[str, float] = {}
    for pool, samples in pools.items():
        std = 0.0
        if samples:
            between = np.var(np.array([s.advantage for s in samples], np.float64))
            within = np.mean(np.array([s.advantage_variance for s in samples], np.float64))
            std = float(np.sqrt(between + within))
        scales[pool] = 1.0 if pool == "group" or std == 0 else 1 / (std + STD_EPS)
    return scales


def scaled(sample: TrainingSample, scale: float) -> TrainingSample:
    """Return the sample with its advantages multiplied, and what its teacher says added."""
    if scale != 1:
        sample = replace(sample, advantages=sample.advantages * np.float32(scale))
    if sample.taught is None:
        return sample
    return replace(sample, advantages=sample.advantages + sample.taught, taught=None)
