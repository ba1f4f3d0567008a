"""A graded group becomes training samples: turns merged, per-source settings made streams."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from configs.estimators import GaeConfig, traits
from configs.objective import CreditConfig
from configs.schema import RewardConfig, SourceConfig
from rollouts.advantages import AnyEstimator, GroupAdvantages, estimate
from rollouts.credit import group_credit
from rollouts.objective import gate
from rollouts.types import (
    F32,
    Boundary,
    GaeTerms,
    Rollout,
    RolloutError,
    RolloutGroup,
    RolloutStats,
    RolloutStatus,
    TrainingSample,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCredits:
    """What became of a group's rewards. Places are those of the valid rollouts, in order."""

    valid: tuple[Rollout, ...]
    advantages: GroupAdvantages
    closed: tuple[tuple[str, ...], ...]
    """Parts behind a gate that was closed."""
    has_signal: bool
    """Whether any token has an advantage, or will have one once the step's others are known."""


def without_baseline(group: RolloutGroup) -> RolloutGroup:
    """Return a graded group, all of it invalid where its baseline, the greedy rollout, is: what is
    left compares with nothing, so that the group failed."""
    if group.greedy is None or group.greedy.reward is not None:
        return group
    cause = group.greedy.error
    error = RolloutError(
        boundary=Boundary.REWARD if cause is None else cause.boundary,
        kind="NoBaseline" if cause is None else cause.kind,
        message="the greedy rollout, which is the baseline, failed"
        + ("" if cause is None else f": {cause.message}"),
    )
    lost = (
        replace(r, status=RolloutStatus.INVALID, reward=None, error=r.error or error)
        for r in group.rollouts
    )
    return replace(group, rollouts=tuple(lost))


def credit_group(
    group: RolloutGroup, source: SourceConfig, estimator: AnyEstimator
) -> GroupCredits:
    """Estimate the advantages of a group. Invalid rollouts take no part.

    Raises:
        ValueError: the estimator returned another shape, or a value that is not finite.
    """
    valid = [r for r in group.rollouts if r.status is not RolloutStatus.INVALID]
    valid = [r for r in valid if r.reward is not None]
    names = [part.name for part in source.rewards]
    gated = [gate({n: r.reward_parts[n] for n in names}, source.objective.gates) for r in valid]
    known = traits(source.advantage.use)
    baseline = 0.0
    if known.greedy and valid:
        assert group.greedy is not None and group.greedy.reward is not None
        baseline = group.greedy.reward
    credit = group_credit(
        valid,
        [r.reward - baseline for r in valid if r.reward is not None],
        {part.name: (part.weight, token_credit(part)) for part in source.rewards},
        [values for values, _ in gated],
        [closed for _, closed in gated],
    )
    advantages = estimate(credit, estimator, source.objective.combine)
    return GroupCredits(
        valid=tuple(valid),
        advantages=advantages,
        closed=tuple(closed for _, closed in gated),
        has_signal=bool(valid) and (known.centred or advantages.has_signal),
    )


def plain_stats(rollout: Rollout) -> RolloutStats:
    """Return the numbers of a graded rollout that say nothing of its text."""
    return RolloutStats(
        reward=rollout.reward,
        reward_parts=rollout.reward_parts,
        num_completion_tokens=rollout.num_completion_tokens,
        status=rollout.status,
        error=rollout.error,
    )


def rollout_stats(
    rollouts: Sequence[Rollout],
    credits: GroupCredits | None,
    of: Callable[[Rollout], RolloutStats] = plain_stats,
) -> tuple[RolloutStats, ...]:
    """Return the numbers of graded rollouts that the driver keeps.

    Args:
        credits: None where the group is not to be trained on.
        of: gives what does not hang on the group.
    """
    places = {} if credits is None else {r.index: i for i, r in enumerate(credits.valid)}

    def stats(rollout: Rollout) -> RolloutStats:
        known = of(rollout)
        if credits is None or (place := places.get(rollout.index)) is None:
            return known
        return replace(
            known,
            part_advantages={n: float(a[place]) for n, a in credits.advantages.parts.items()},
            closed_parts=credits.closed[place],
        )

    return tuple(stats(rollout) for rollout in rollouts)


def token_credit(part: RewardConfig) -> CreditConfig | None:
    """Return how a part's spans reach the tokens; None where the whole rollout answers for it."""
    return part.credit if part.credit is not None and part.credit.to == "tokens" else None


def to_training_samples(
    group: RolloutGroup,
    source: SourceConfig,
    kl_coef: float,
    credits: GroupCredits,
    *,
    kl_in_reward: bool = False,
) -> tuple[TrainingSample, ...]:
    """Return one sample for each valid rollout, in the group's order.

    Samples with advantage 0 are kept: their tokens count in the step's denominator, and the KL
    still acts on them.

    Args:
        kl_coef: the source's KL coefficient.
        kl_in_reward: whether the KL is taken from the rewards, and so by whoever makes advantages
            of values.

    Raises:
        ValueError: a rollout's streams do not fit together, or its first token is a sampled one.
    """
    found = credits.advantages
    samples = (
        _sample(group, rollout, whole if own is None else own, source, kl_coef)
        for rollout, whole, own in zip(credits.valid, found.whole, found.tokens, strict=True)
    )
    if not source.needs_values:
        return tuple(samples)
    gae = GaeConfig.model_validate(source.advantage.args)
    return tuple(_for_critic(sample, gae, kl_in_reward=kl_in_reward) for sample in samples)


def _for_critic(sample: TrainingSample, gae: GaeConfig, *, kl_in_reward: bool) -> TrainingSample:
    """Keep what stands for advantages, the rewards of the tokens, for the critic."""
    coef = float(sample.kl_coef[0]) if kl_in_reward else 0.0
    zeros = np.zeros_like(sample.advantages)
    return replace(
        sample,
        advantages=zeros,
        kl_coef=zeros if kl_in_reward else sample.kl_coef,
        gae=GaeTerms(rewards=sample.advantages, gamma=gae.gamma, lam=gae.lam, kl_coef=coef),
    )


def bare_samples(group: RolloutGroup, source: SourceConfig) -> tuple[TrainingSample, ...]:
    """Return what the policy wrote in a group, as samples that nothing is learned from; rollouts
    that broke off are left out."""
    zero = np.float32(0)
    return tuple(
        _sample(group, rollout, zero, source, 0.0)
        for rollout in group.rollouts
        if rollout.status is not RolloutStatus.INVALID and rollout.num_completion_tokens
    )


def _sample(
    group: RolloutGroup,
    rollout: Rollout,
    advantage: np.float32 | F32,
    source: SourceConfig,
    kl_coef: float,
) -> TrainingSample:
    """Lay the turns end to end. Sampled tokens (a sampled end-of-sequence included) are in the
    loss; prompts, the environment's words and the template's tokens are not. Nothing is added.

    Args:
        advantage: of all sampled tokens, or of each one.
    """
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
    advantages = np.zeros(len(mask), np.float32)
    advantages[mask] = advantage

    loss_weight = source.loss_weight
    if rollout.status is RolloutStatus.TRUNCATED:
        loss_weight *= source.truncated_loss_weight

    def stream(value: float | None) -> F32:
        return np.full(len(mask), np.nan if value is None else value, np.float32)

    return TrainingSample(
        group_id=group.request.group_id,
        index=rollout.index,
        token_ids=np.concatenate(pieces).astype(np.int32, copy=False),
        loss_mask=mask,
        rollout_logprobs=logprobs,
        advantages=advantages,
        loss_weight=stream(loss_weight),
        kl_coef=stream(kl_coef),
        clip_low=stream(source.clip_low),
        clip_high=stream(source.clip_high),
        temperature=stream(group.request.sampling.temperature),
    )


def num_bytes(sample: TrainingSample) -> int:
    """Return the size of a sample's arrays."""
    values = [getattr(sample, field.name) for field in fields(sample)]
    values += [] if sample.gae is None else [sample.gae.rewards]
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
