"""A graded group becomes flat training samples; per-source settings become per-token streams."""

from collections.abc import Iterator, Sequence

import numpy as np

from configs.schema import SourceConfig
from rollouts.advantages import Estimator, group_advantages
from rollouts.types import Rollout, RolloutGroup, TrainingSample


def to_training_samples(
    group: RolloutGroup, source: SourceConfig, kl_coef: float, estimator: Estimator
) -> tuple[TrainingSample, ...]:
    """Return a sample for each rollout with a reward, in order.

    The loss mask is true on sampled tokens alone: a sampled end-of-sequence token is among them,
    and none is added to a truncated rollout. All turns of a rollout share its advantage.
    """
    advantages = group_advantages([r.reward for r in group.rollouts], estimator)
    return tuple(
        _sample(group, rollout, advantage, source.loss_weight, kl_coef)
        for rollout, advantage in zip(group.rollouts, advantages, strict=True)
        if advantage is not None
    )


def _sample(
    group: RolloutGroup, rollout: Rollout, advantage: float, loss_weight: float, kl_coef: float
) -> TrainingSample:
    ids = [a for t in rollout.turns for a in (t.prompt_ids, t.completion.token_ids)]
    mask = [
        a
        for t in rollout.turns
        for a in (np.zeros(len(t.prompt_ids), bool), np.ones(len(t.completion.token_ids), bool))
    ]
    logprobs = [
        a
        for t in rollout.turns
        for a in (np.zeros(len(t.prompt_ids), np.float32), t.completion.logprobs)
    ]
    loss_mask = np.concatenate(mask)
    length = len(loss_mask)

    def stream(value: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.full(length, value, np.float32)

    return TrainingSample(
        group_id=group.request.group_id,
        index=rollout.index,
        token_ids=np.concatenate(ids).astype(np.int32),
        loss_mask=loss_mask,
        rollout_logprobs=np.concatenate(logprobs).astype(np.float32),
        advantages=stream(advantage) * loss_mask,
        loss_weight=stream(loss_weight),
        kl_coef=stream(kl_coef),
        temperature=stream(group.request.sampling.temperature),
    )


def sample_bytes(sample: TrainingSample) -> int:
    """Return the bytes of a sample's arrays."""
    arrays = (
        sample.token_ids,
        sample.loss_mask,
        sample.rollout_logprobs,
        sample.advantages,
        sample.loss_weight,
        sample.kl_coef,
        sample.temperature,
    )
    return sum(a.nbytes for a in arrays)


def chunk_for_store(
    samples: Sequence[TrainingSample], max_bytes: int
) -> Iterator[tuple[TrainingSample, ...]]:
    """Cut samples, in order, into chunks of at most `max_bytes`, or of one larger sample."""
    chunk: list[TrainingSample] = []
    held = 0
    for sample in samples:
        size = sample_bytes(sample)
        if chunk and held + size > max_bytes:
            yield tuple(chunk)
            chunk, held = [], 0
        chunk.append(sample)
        held += size
    if chunk:
        yield tuple(chunk)
