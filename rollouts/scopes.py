"""Advantages over a whole step: what the reward actors, who see one group each, cannot know.

An estimator centres the rewards of its group. With `advantage_scope: source` or `batch` its
advantages are then divided by their standard deviation over the step's valid rollouts of that
source, or of all sources with scope `batch`; the mean over these is subtracted first under the
estimators that know no group. Means and variances of each sample are known before the step is
trained, so the factor is worked out there and applied by whoever fetches the sample: no packing,
number of ranks or cut into mini-batches can change it, and no token passes the driver.

A sample weighs 1 in such a mean, however long it is; but where a critic gives each token an
advantage of its own, tokens weigh 1 (whitening over the step's loss tokens, as in PPO).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from configs.estimators import traits
from configs.plug import PlugConfig
from configs.schema import RunConfig, SourceConfig
from rollouts.advantages import STD_EPS
from rollouts.types import (
    GroupSummary,
    MicroBatchPlan,
    Ref,
    SampleHandle,
    TrainBatch,
    TrainingSample,
)


class Pool(NamedTuple):
    """Those whose advantages are normalised together."""

    name: str
    """`group` where nobody's are."""
    centred: bool
    """Whether their mean is subtracted."""
    by_token: bool
    """Whether tokens weigh 1, and not samples."""


def estimator_plug(source: SourceConfig) -> PlugConfig:
    """Return the estimator of a source's groups: `grpo` divides by the spread of the group only
    where that is the scope, else it leaves r - mean for `scale_advantages` to divide. GDPO does
    both: each part in its group, then their sum over the step."""
    if source.objective.combine == "normalize_then_sum":
        return source.advantage
    if source.scope != "group" and source.advantage.use == "grpo":
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


def sample_handle(sample: TrainingSample, *, ref: Ref, row: int) -> SampleHandle:
    """Return what a step is planned from, of a sample that lies at `row` of what `ref` names."""
    return SampleHandle(
        ref=ref,
        row=row,
        num_tokens=len(sample.token_ids),
        num_loss_tokens=int(sample.loss_mask.sum()),
        advantage=mean_advantage(sample),
        advantage_variance=advantage_variance(sample),
        needs_values=sample.gae is not None,
    )


def scale_step(
    cfg: RunConfig, groups: Sequence[GroupSummary], batch: TrainBatch
) -> tuple[list[GroupSummary], TrainBatch]:
    """Return a step's groups and its plan, their samples with what normalises their advantages.

    Args:
        batch: the plan of the groups' samples, with the critic's figures of those that need them.
    """
    planned = {_key(s): s for p in _plans(batch) for s in p.samples}
    scored = [replace(g, samples=tuple(planned.get(_key(s), s) for s in g.samples)) for g in groups]
    done = scale_advantages(cfg, scored)
    final = {_key(s): s for g in done for s in g.samples}

    def renewed(plan: MicroBatchPlan) -> MicroBatchPlan:
        return replace(plan, samples=tuple(final[_key(s)] for s in plan.samples))

    minibatches = tuple(
        replace(m, grid=tuple(tuple(map(renewed, row)) for row in m.grid))
        for m in batch.minibatches
    )
    return done, replace(batch, minibatches=minibatches)


def _plans(batch: TrainBatch) -> list[MicroBatchPlan]:
    return [plan for m in batch.minibatches for row in m.grid for plan in row]


def _key(sample: SampleHandle) -> tuple[object, int]:
    return sample.ref, sample.row


def scale_advantages(cfg: RunConfig, groups: Sequence[GroupSummary]) -> list[GroupSummary]:
    """Return the groups of a step, their samples with the shift and factor of their advantages.

    `source`: task advantage normalisation (AgentRL, arXiv:2510.04206), and the batch normalisation
    of GDPO (arXiv:2601.05242), which `objective.combine: normalize_then_sum` has under scope
    `group` too. `batch`: REINFORCE++, (A - mean) / std over the step of A = r, or with baseline of
    A = r - mean of the group, whose mean is 0 as it is in each group (arXiv:2501.03262).
    """
    pools = {s.name: _pool(s) for s in cfg.sources}
    samples: dict[Pool, list[SampleHandle]] = {}
    for group in groups:
        samples.setdefault(pools[group.source], []).extend(group.samples)
    normal = {pool: _normal(pool, own) for pool, own in samples.items()}
    return [_normalised(group, *normal[pools[group.source]]) for group in groups]


def _normalised(group: GroupSummary, shift: float, scale: float) -> GroupSummary:
    if (shift, scale) == (0, 1):
        return group
    samples = tuple(replace(s, advantage_shift=shift, advantage_scale=scale) for s in group.samples)
    return replace(group, samples=samples)


def _pool(source: SourceConfig) -> Pool:
    """Return those with whom the source's advantages share mean and deviation."""
    scope, known = source.scope, traits(source.advantage.use)
    if scope == "group" and source.objective.combine == "normalize_then_sum":
        scope = "source"
    name = f"source/{source.name}" if scope == "source" else scope
    return Pool(name=name, centred=known.centred, by_token=known.values)


def _normal(pool: Pool, samples: Sequence[SampleHandle]) -> tuple[float, float]:
    """Return the pool's shift and factor, 1 / (std + STD_EPS); 0 and 1 where none is asked for, and
    a factor of 1 where there is no spread.

    What is not centred here is spread about 0: about a mean that stays in, advantages nearly alike
    would make a factor without bound, as where all beat a baseline from outside (`remax`).
    The spread is that of tokens, also where those of each sample weigh 1 together: where only
    tokens differ, means of samples nearly alike would make a factor without bound.
    """
    counts = np.array([s.num_loss_tokens if pool.by_token else 1 for s in samples], np.float64)
    if pool.name == "group" or counts.sum() == 0:
        return 0.0, 1.0
    weights = counts / counts.sum()
    means = np.array([s.advantage for s in samples], np.float64)
    within = np.array([s.advantage_variance for s in samples], np.float64)
    centre = float(weights @ means) if pool.centred else 0.0
    std = float(np.sqrt(weights @ ((means - centre) ** 2 + within)))
    return centre, 1.0 if std == 0 else 1 / (std + STD_EPS)


def scaled(sample: TrainingSample, scale: float, shift: float = 0.0) -> TrainingSample:
    """Return the sample with its loss tokens' advantages shifted and multiplied, and what its
    teacher says added."""
    advantages = sample.advantages
    if (shift, scale) != (0, 1):
        moved = (advantages - shift) * np.float32(scale)
        advantages = np.where(sample.loss_mask, moved, 0).astype(np.float32)
    elif sample.taught is None:
        return sample
    if sample.taught is not None:
        advantages = advantages + sample.taught
    return replace(sample, advantages=advantages, taught=None)
