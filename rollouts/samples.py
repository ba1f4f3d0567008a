"""A graded group becomes training samples: turns merged, per-source settings made streams."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from configs.schema import SourceConfig
from rollouts.advantages import Estimator, group_advantages
from rollouts.types import (
    F32,
    Rollout,
    RolloutGroup,
    RolloutStatus,
    TrainingSample,
)


def to_training_samples(
    group: RolloutGroup, source: SourceConfig, kl_coef: float, estimator: Estimator
) -> tuple[TrainingSample, ...]:
    """Return one sample for each valid rollout, in the group's order.

    Invalid rollouts take no part in the advantages. Samples with advantage 0 are kept: their
    tokens count in the step's denominator, and the KL still acts on them.

    Args:
        kl_coef: the source's KL coefficient.

    Raises:
        ValueError: a rollout's streams do not fit together, or its first token is a sampled one.
    """
    rewards = [_reward(rollout) for rollout in group.rollouts]
    advantages = group_advantages(rewards, estimator)
    return tuple(
        _sample(group, rollout, float(advantages[place]), source, kl_coef)
        for place, rollout in enumerate(group.rollouts)
        if rewards[place] is not None
    )


def _reward(rollout: Rollout) -> float | None:
    return None if rollout.status is RolloutStatus.INVALID else rollout.reward


def _sample(
    group: RolloutGroup, rollout: Rollout, advantage: float, source: SourceConfig, kl_coef: float
) -> TrainingSample:
    """Lay the turns end to end. Sampled tokens (a sampled end-of-sequence included) are in the
    loss; prompts, the environment's words and the template's tokens are not. Nothing is added."""
    where = f"{group.request.group_id}, rollout {rollout.index}"
    if not rollout.turns or len(rollout.turns[0].prompt_ids) == 0:
        raise ValueError(f"{where} has no prompt: nothing predicts its first token")
    for turn in rollout.turns:
        done = turn.completion
        if len(done.logprobs) != len(done.token_ids) or not np.isfinite(done.logprobs).all():
            raise ValueError(f"{where}: a completion's logprobs are not one finite number a token")
    pieces = [ids for t in rollout.turns for ids in (t.prompt_ids, t.completion.token_ids)]
    sampled = [place % 2 == 1 for place in range(len(pieces))]
    mask = np.concatenate([np.full(len(p), s) for p, s in zip(pieces, sampled, strict=True)])
    logprobs = np.zeros(len(mask), np.float32)
    logprobs[mask] = np.concatenate([turn.completion.logprobs for turn in rollout.turns])

    def stream(value: float | None) -> F32:
        return np.full(len(mask), np.nan if value is None else value, np.float32)

    return TrainingSample(
        group_id=group.request.group_id,
        index=rollout.index,
        token_ids=np.concatenate(pieces).astype(np.int32, copy=False),
        loss_mask=mask,
        rollout_logprobs=logprobs,
        advantages=np.where(mask, np.float32(advantage), np.float32(0)),
        loss_weight=stream(source.loss_weight),
        kl_coef=stream(kl_coef),
        clip_low=stream(source.clip_low),
        clip_high=stream(source.clip_high),
        temperature=stream(group.request.sampling.temperature),
    )


def num_bytes(sample: TrainingSample) -> int:
    """Return the size of a sample's arrays."""
    values = (getattr(sample, field.name) for field in fields(sample))
    return sum(value.nbytes for value in values if isinstance(value, np.ndarray))


def chunk_for_store(
    samples: Sequence[TrainingSample], max_bytes: int
) -> list[tuple[TrainingSample, ...]]:
    """Split samples, in order, into runs of at most `max_bytes`; a longer sample stands alone."""
    chunks: list[tuple[TrainingSample, ...]] = []
    run: list[TrainingSample] = []
    size = 0
    for sample in samples:
        own = num_bytes(sample)
        if run and size + own > max_bytes:
            chunks.append(tuple(run))
            run, size = [], 0
        run.append(sample)
        size += own
    if run:
        chunks.append(tuple(run))
    return chunks
