"""Generalised advantage estimation (arXiv:1506.02438): rewards of tokens, and what a critic's
values make of them.

The value of a token is that of the state before it was sampled. Only sampled tokens are steps:
between a token and the next one that the policy sampled, whatever the environment wrote in between,
lies one step of discount. After a rollout's last token nothing is to come, also where the token
limit cut it off: the limit is part of the task, and what was cut off is graded as it is, so that a
bootstrapped value would count its reward twice.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rollouts.credit import F64, GroupCredit
from rollouts.packing import KLEstimator, kl_per_token
from rollouts.types import F32, MicroBatchPlan, MinibatchPlan, TrainBatch, TrainingSample
from rollouts.values import ValueTargets


def token_rewards(group: GroupCredit) -> list[F64]:
    """Return the rewards of each rollout's tokens [C], which sum to its reward.

    A step's score, times its weight and its part's, falls due at the token that ends it; the rest
    of the reward at the last token.
    """
    rewards: list[F64] = []
    for i, tokens in enumerate(group.num_tokens):
        due = np.zeros(tokens)
        for part in group.parts:
            if (steps := part.steps[i]) is not None:
                np.add.at(due, steps.ends, part.weight * steps.weights * steps.scores)
        due[-1] += group.rewards[i] - due.sum()
        rewards.append(due)
    return rewards


def gae(rewards: F64, values: F64, *, gamma: float, lam: float) -> tuple[F64, F64]:
    """Return advantages and returns of one rollout's sampled tokens, all [C].

    A_t = d_t + gamma lam A_t+1 with d_t = r_t + gamma V_t+1 - V_t, and V 0 after the last token;
    the returns, which the critic learns, are A + V.
    """
    advantages = np.zeros(len(rewards))
    ahead = after = 0.0
    for t in reversed(range(len(rewards))):
        ahead = rewards[t] + gamma * after - values[t] + gamma * lam * ahead
        advantages[t], after = ahead, values[t]
    return advantages, advantages + values


def estimate_values(
    sample: TrainingSample, values: F32, ref_logprobs: F32 | None, estimator: KLEstimator
) -> tuple[F32, ValueTargets]:
    """Return a sample's advantages [L], before whitening, and what its critic is to learn.

    Args:
        values: [L], of the critic, as it is before the step.
        ref_logprobs: [L], where the sample's rewards are charged for leaving the reference.
    """
    terms, mask = sample.gae, sample.loss_mask
    assert terms is not None, f"sample {sample.index} of {sample.group_id} needs no values"
    rewards = terms.rewards.astype(np.float64)
    if terms.kl_coef > 0:
        if ref_logprobs is None:
            raise ValueError("the rewards are to be charged for the KL, without ref_logprobs")
        log_ratio = np.where(mask, sample.rollout_logprobs - ref_logprobs, 0).astype(np.float64)
        rewards -= terms.kl_coef * kl_per_token(log_ratio, estimator)
    found = gae(rewards[mask], values[mask].astype(np.float64), gamma=terms.gamma, lam=terms.lam)
    advantages, returns = (np.zeros(len(mask), np.float32) for _ in range(2))
    advantages[mask], returns[mask] = found
    return advantages, ValueTargets(values=np.where(mask, values, 0), returns=returns)


def critic_batch(batch: TrainBatch, dp: int) -> TrainBatch:
    """Deal a step's micro-batches with samples that need values over the critic's `dp` ranks.

    Micro-batches stay as they are, so that everything that lies beside their samples still fits;
    ranks get equally many, empty ones where they ran out. Mini-batches without such a sample are
    left out, and counts are of such samples alone.
    """
    dealt: list[MinibatchPlan] = []
    for minibatch in batch.minibatches:
        plans = [p for row in minibatch.grid for p in row if any(s.needs_values for s in p.samples)]
        own = [s for p in plans for s in p.samples if s.needs_values and s.num_loss_tokens > 0]
        if not own:
            continue
        plans.sort(key=lambda p: -sum(s.num_tokens for s in p.samples if s.needs_values))
        plans += [MicroBatchPlan(samples=())] * (-len(plans) % dp)
        dealt.append(
            MinibatchPlan(
                grid=tuple(tuple(plans[rank::dp]) for rank in range(dp)),
                num_loss_tokens=sum(s.num_loss_tokens for s in own),
                num_samples=len(own),
            )
        )
    return replace(batch, minibatches=tuple(dealt))


def moments(advantages: F32, sample: TrainingSample) -> tuple[float, float]:
    """Return mean and variance of the advantages over a sample's loss tokens."""
    mine = advantages[sample.loss_mask].astype(np.float64)
    return (float(mine.mean()), float(mine.var())) if len(mine) else (0.0, 0.0)


def joined(parts: Sequence[F32]) -> F32:
    """Lay streams of samples end to end; none give [0]."""
    return np.concatenate([np.zeros(0, np.float32), *parts])
