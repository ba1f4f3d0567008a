"""From sample lengths to a balanced plan of micro-batches, and from samples to one micro-batch.

Invariants of a plan (tested over random input):
1. Every sample is in exactly one micro-batch, and minibatches cut the given order in pieces.
2. There are min(num_minibatches, samples with loss tokens) minibatches, each with loss tokens.
3. No micro-batch is above the token budget, save one that holds a single longer sample.
4. Every rank has as many micro-batches as every other, at most one round more than the smallest
   count that first-fit-decreasing found; empty ones fill up, and no round is empty on all ranks.
5. `num_loss_tokens` and `num_samples` are the minibatch's, counted before any sharding.
Equal input gives an equal plan on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rollouts.types import (
    F32,
    MicroBatch,
    MicroBatchPlan,
    MinibatchPlan,
    SampleHandle,
    TrainingSample,
)

KLEstimator: TypeAlias = Literal["k1", "k2", "k3", "straight_through"]
"""`straight_through` has k3's value."""
F64: TypeAlias = NDArray[np.float64]
_QUADRATIC_TOKENS = 32768
"""Length at which attention costs about as much as all the rest of a layer."""
_MAX_LOG_RATIO = 20.0


@dataclass(slots=True, kw_only=True)
class _Bin:
    """A micro-batch being filled: indices into the minibatch's samples."""

    tokens: int = 0
    cost: float = 0.0
    items: list[int] = field(default_factory=list[int])

    def add(self, item: int, tokens: int) -> None:
        self.tokens += tokens
        self.cost += _cost(tokens)
        self.items.append(item)


def plan_minibatches(
    samples: Sequence[SampleHandle], *, dp: int, num_minibatches: int, max_tokens: int
) -> tuple[MinibatchPlan, ...]:
    """Plan a step: minibatches in order, each packed and balanced over `dp` ranks.

    Fewer minibatches come back where fewer samples have loss tokens; ValueError where none has.
    """
    if dp < 1 or num_minibatches < 1 or max_tokens < 1:
        raise ValueError(f"need positive {dp=}, {num_minibatches=}, {max_tokens=}")
    for sample in samples:
        if sample.num_tokens < 1 or not 0 <= sample.num_loss_tokens <= sample.num_tokens:
            raise ValueError(f"sample row {sample.row}: impossible lengths {sample}")
    cuts = _cuts([s.num_loss_tokens for s in samples], num_minibatches)
    pieces = [samples[a:b] for a, b in pairwise(cuts)]
    return tuple(_plan_minibatch(piece, dp=dp, max_tokens=max_tokens) for piece in pieces)


def _cuts(loss_tokens: Sequence[int], pieces: int) -> list[int]:
    """Cut [0, n] where the cumulative loss tokens are nearest to equal shares."""
    positive = [i for i, n in enumerate(loss_tokens) if n > 0]
    if not positive:
        raise ValueError("no sample has loss tokens: there is nothing to train on")
    pieces = min(pieces, len(positive))
    total = np.cumsum([loss_tokens[i] for i in positive])
    cuts = [0]
    low = 0
    for k in range(1, pieces):
        # The piece ends after positive sample `low..`; leave one for each later piece.
        high = len(positive) - (pieces - k)
        target = total[-1] * k / pieces
        low += int(np.argmin(np.abs(total[low:high] - target))) + 1
        cuts.append(positive[low])
    return [*cuts, len(loss_tokens)]


def _plan_minibatch(samples: Sequence[SampleHandle], *, dp: int, max_tokens: int) -> MinibatchPlan:
    lengths = [s.num_tokens for s in samples]
    order = sorted(range(len(samples)), key=lambda i: (-lengths[i], i))
    fitted = _first_fit(order, lengths, max_tokens)
    rounds = -(-len(fitted) // dp)
    candidates = [_deal(fitted, dp)]
    for count in (rounds, rounds + 1):
        balanced = _heaviest_first(order, lengths, max_tokens, count * dp)
        if balanced is not None:
            candidates.append(_deal(balanced, dp))
            break
    grid = min(candidates, key=_lockstep_cost)
    return MinibatchPlan(
        grid=tuple(
            tuple(MicroBatchPlan(samples=tuple(samples[i] for i in sorted(b.items))) for b in row)
            for row in grid
        ),
        num_loss_tokens=sum(s.num_loss_tokens for s in samples),
        num_samples=sum(s.num_loss_tokens > 0 for s in samples),
    )


def _cost(tokens: int) -> float:
    """Relative time of one segment: linear, with attention's mild quadratic part."""
    return tokens * (1 + tokens / _QUADRATIC_TOKENS)


def _first_fit(order: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[_Bin]:
    """First-fit-decreasing: close to the fewest bins."""
    bins: list[_Bin] = []
    for item in order:
        size = lengths[item]
        home = next((b for b in bins if b.tokens + size <= max_tokens), None)
        if home is None:
            home = _Bin()
            bins.append(home)
        home.add(item, size)
    return bins


def _heaviest_first(
    order: Sequence[int], lengths: Sequence[int], max_tokens: int, count: int
) -> list[_Bin] | None:
    """Put each sample, longest first, into the cheapest of `count` bins; None if one won't fit."""
    bins = [_Bin() for _ in range(count)]
    for item in order:
        size = lengths[item]
        room = [b for b in bins if not b.items or b.tokens + size <= max_tokens]
        if not room:
            return None
        min(room, key=lambda b: b.cost).add(item, size)
    return [b for b in bins if b.items]


def _deal(bins: Sequence[_Bin], dp: int) -> list[list[_Bin]]:
    """Deal bins to ranks in rounds of like cost, so that ranks in lockstep wait little.

    Returns [dp][rounds]; in a round the heaviest bin goes to the rank with the least so far.
    """
    ordered = sorted(bins, key=lambda b: (-b.cost, b.items[0]))
    grid: list[list[_Bin]] = [[] for _ in range(dp)]
    load = [0.0] * dp
    for start in range(0, len(ordered), dp):
        ranks = sorted(range(dp), key=lambda r: (load[r], r))
        dealt = ordered[start : start + dp]
        dealt += [_Bin() for _ in range(dp - len(dealt))]
        for rank, b in zip(ranks, dealt, strict=True):
            grid[rank].append(b)
            load[rank] += b.cost
    return grid


def _lockstep_cost(grid: Sequence[Sequence[_Bin]]) -> tuple[float, int]:
    """Time of a minibatch whose ranks wait for each other after every micro-batch."""
    rounds = list(zip(*grid, strict=True))
    return sum(max(b.cost for b in r) for r in rounds), len(rounds)


def within_budget(samples: Sequence[TrainingSample], max_tokens: int) -> list[list[TrainingSample]]:
    """Cut samples, in order, into runs of at most `max_tokens`; a longer sample stands alone."""
    runs: list[list[TrainingSample]] = []
    left = 0
    for sample in samples:
        size = len(sample.token_ids)
        if not runs or size > left:
            runs.append([])
            left = max_tokens
        runs[-1].append(sample)
        left -= size
    return runs


def assemble(samples: Sequence[TrainingSample], ref_logprobs: Sequence[F32] | None) -> MicroBatch:
    """Lay samples end to end; no samples give T = 0.

    Args:
        ref_logprobs: One [L] per sample, in the same order, or None where none was asked.
    """
    for sample in samples:
        if len(sample.token_ids) == 0:
            raise ValueError(f"sample {sample.index} of group {sample.group_id} has no tokens")
    if ref_logprobs is not None and [len(r) for r in ref_logprobs] != [
        len(s.token_ids) for s in samples
    ]:
        raise ValueError("ref_logprobs do not match the samples' lengths")
    lengths = np.array([len(s.token_ids) for s in samples], dtype=np.int32)
    cu_seqlens = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    loss_mask = _join([s.loss_mask for s in samples], np.dtype(np.bool_))
    loss_mask[cu_seqlens[:-1]] = False
    f32, i32 = np.dtype(np.float32), np.dtype(np.int32)
    return MicroBatch(
        token_ids=_join([s.token_ids for s in samples], i32),
        positions=_join([np.arange(n, dtype=np.int32) for n in lengths], i32),
        cu_seqlens=cu_seqlens,
        loss_mask=loss_mask,
        rollout_logprobs=_join([s.rollout_logprobs for s in samples], f32),
        advantages=_join([s.advantages for s in samples], f32),
        loss_weight=_join([s.loss_weight for s in samples], f32),
        kl_coef=_join([s.kl_coef for s in samples], f32),
        clip_low=_join([s.clip_low for s in samples], f32),
        clip_high=_join([s.clip_high for s in samples], f32),
        temperature=_join([s.temperature for s in samples], f32),
        ref_logprobs=None if ref_logprobs is None else _join(list(ref_logprobs), f32),
    )


def _join(parts: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:  # type: ignore[type-arg]
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)


def apply_kl_to_advantages(batch: MicroBatch, *, estimator: KLEstimator) -> MicroBatch:
    """Take the KL to the reference from the per-token reward (`algorithm.kl.placement: reward`).

    On each masked token, A_t <- A_t - sum over masked t' >= t of its segment of
    kl_coef_t' * kl_t', i.e. returns with gamma 1. kl_t is the estimator (Schulman 2020) of the
    sampler's logprobs against the reference's, a constant for the gradient. The group baseline
    stays on the outcome alone: the KL part is not centred over the group.
    """
    if batch.ref_logprobs is None:
        if np.any(batch.kl_coef[batch.loss_mask] != 0):
            raise ValueError("kl_coef is above 0, but the micro-batch has no ref_logprobs")
        return batch
    mask = batch.loss_mask
    log_ratio = np.where(mask, batch.rollout_logprobs - batch.ref_logprobs, 0).astype(np.float64)
    kl = kl_per_token(log_ratio, estimator)
    penalty = np.where(mask, batch.kl_coef * kl, 0)
    advantages = batch.advantages.astype(np.float64)
    bounds = batch.cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        to_go = np.cumsum(penalty[start:end][::-1])[::-1]
        advantages[start:end] -= np.where(mask[start:end], to_go, 0)
    return replace(batch, advantages=advantages.astype(np.float32))


def kl_per_token(log_ratio: F64, estimator: KLEstimator) -> F64:
    """Estimate the KL per token (Schulman, 2020) from log(sampler / reference)."""
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    clamped = np.clip(log_ratio, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    return np.expm1(-clamped) + clamped
