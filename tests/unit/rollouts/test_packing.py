"""Packing: the plan's invariants over random input, assembly, and the KL in the reward."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollouts.packing import apply_kl_to_advantages, assemble, plan_minibatches
from rollouts.types import MinibatchPlan, SampleHandle, TrainingSample


def handle(row: int, tokens: int, loss: int) -> SampleHandle:
    return SampleHandle(ref="r", row=row, num_tokens=tokens, num_loss_tokens=loss)


def handles(lengths: Sequence[int]) -> list[SampleHandle]:
    return [handle(i, n, max(1, n // 2)) for i, n in enumerate(lengths)]


def rows_of(plan: MinibatchPlan) -> list[int]:
    return sorted(s.row for rank in plan.grid for micro in rank for s in micro.samples)


def tokens_of(plan: MinibatchPlan) -> list[list[int]]:
    return [[sum(s.num_tokens for s in micro.samples) for micro in rank] for rank in plan.grid]


sample_lists = st.lists(
    st.tuples(st.integers(1, 120), st.floats(0, 1)).map(lambda t: (t[0], int(t[0] * t[1]))),
    min_size=1,
    max_size=40,
).filter(lambda pairs: any(loss > 0 for _, loss in pairs))


@settings(max_examples=200, deadline=None)
@given(
    pairs=sample_lists,
    dp=st.integers(1, 5),
    num_minibatches=st.integers(1, 4),
    max_tokens=st.integers(1, 200),
)
def test_plan_keeps_every_invariant(
    pairs: list[tuple[int, int]], dp: int, num_minibatches: int, max_tokens: int
) -> None:
    samples = [handle(i, n, loss) for i, (n, loss) in enumerate(pairs)]
    plans = plan_minibatches(samples, dp=dp, num_minibatches=num_minibatches, max_tokens=max_tokens)
    positive = sum(loss > 0 for _, loss in pairs)
    assert len(plans) == min(num_minibatches, positive)
    # every sample exactly once, and minibatches in the given order
    assert [row for plan in plans for row in rows_of(plan)] == list(range(len(samples)))
    for plan in plans:
        assert plan.num_loss_tokens == sum(pairs[row][1] for row in rows_of(plan)) > 0
        assert plan.num_samples == sum(pairs[row][1] > 0 for row in rows_of(plan))
        assert len(plan.grid) == dp
        counts = {len(rank) for rank in plan.grid}
        assert len(counts) == 1
        for rank in plan.grid:
            for micro in rank:
                total = sum(s.num_tokens for s in micro.samples)
                assert total <= max_tokens or len(micro.samples) == 1
        for round_ in zip(*plan.grid, strict=True):
            assert any(micro.samples for micro in round_)


@settings(max_examples=100, deadline=None)
@given(pairs=sample_lists, dp=st.integers(1, 4), max_tokens=st.integers(50, 300))
def test_plan_is_deterministic_and_never_wastes_rounds(
    pairs: list[tuple[int, int]], dp: int, max_tokens: int
) -> None:
    samples = [handle(i, n, loss) for i, (n, loss) in enumerate(pairs)]
    first = plan_minibatches(samples, dp=dp, num_minibatches=1, max_tokens=max_tokens)
    assert first == plan_minibatches(samples, dp=dp, num_minibatches=1, max_tokens=max_tokens)
    rounds = len(first[0].grid[0])
    # next-fit needs fewer than 2 * total / budget + 1 bins, and the plan one round more at most
    total = sum(max(n, 1) for n, _ in pairs)
    oversized = sum(n > max_tokens for n, _ in pairs)
    assert rounds <= -(-(2 * total // max_tokens + 1 + oversized) // dp) + 1


def test_minibatches_have_near_equal_loss_tokens() -> None:
    rng = np.random.default_rng(0)
    samples = handles(rng.integers(10, 200, 256).tolist())
    plans = plan_minibatches(samples, dp=2, num_minibatches=4, max_tokens=1024)
    shares = np.array([p.num_loss_tokens for p in plans])
    assert shares.max() - shares.min() <= 100


def test_long_tail_packs_full_and_balanced() -> None:
    """The targets of performance.md 4(c): fill >= 0.95 and lockstep >= 0.98, below the cap."""
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(6.5, 1.0, 1024), 16, 8192).astype(int).tolist()
    (plan,) = plan_minibatches(handles(lengths), dp=8, num_minibatches=1, max_tokens=16384)
    tokens = np.array(tokens_of(plan))
    rounds = tokens.shape[1]
    least = -(-sum(lengths) // (16384 * 8))
    assert rounds == least
    assert tokens.max() <= 16384
    assert tokens.sum() / (tokens.max(axis=0).sum() * 8) >= 0.98


def test_tight_fit_uses_the_fewest_micro_batches() -> None:
    """Balancing by cost cannot place these in two bins, first-fit-decreasing can."""
    (plan,) = plan_minibatches(
        handles([50, 50, 40, 30, 30]), dp=2, num_minibatches=1, max_tokens=100
    )
    assert tokens_of(plan) == [[100], [100]]


def test_a_sample_beyond_the_budget_gets_a_bin_alone() -> None:
    (plan,) = plan_minibatches(handles([500, 10, 10]), dp=1, num_minibatches=1, max_tokens=100)
    micro = [sorted(s.num_tokens for s in m.samples) for m in plan.grid[0]]
    assert sorted(micro) == [[10, 10], [500]]


def test_ranks_without_samples_get_empty_micro_batches() -> None:
    (plan,) = plan_minibatches(handles([10]), dp=3, num_minibatches=1, max_tokens=100)
    assert [len(rank) for rank in plan.grid] == [1, 1, 1]
    assert sum(not micro.samples for rank in plan.grid for micro in rank) == 2


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="no sample has loss tokens"):
        plan_minibatches([handle(0, 5, 0)], dp=1, num_minibatches=1, max_tokens=10)
    with pytest.raises(ValueError, match="no sample has loss tokens"):
        plan_minibatches([], dp=1, num_minibatches=1, max_tokens=10)


@pytest.mark.parametrize("bad", [{"dp": 0}, {"num_minibatches": 0}, {"max_tokens": 0}])
def test_impossible_arguments_are_named(bad: dict[str, int]) -> None:
    arguments = {"dp": 1, "num_minibatches": 1, "max_tokens": 10, **bad}
    with pytest.raises(ValueError, match=next(iter(bad))):
        plan_minibatches(handles([5]), **arguments)


def sample(length: int, prompt: int, *, value: float = 1.0) -> TrainingSample:
    mask = np.arange(length) >= prompt
    stream = np.where(mask, value, 0).astype(np.float32)
    return TrainingSample(
        group_id="g",
        index=0,
        token_ids=np.arange(length, dtype=np.int32),
        loss_mask=mask,
        rollout_logprobs=-stream,
        advantages=stream,
        loss_weight=np.ones(length, np.float32),
        kl_coef=np.full(length, 0.5, np.float32),
        clip_low=np.full(length, 0.2, np.float32),
        clip_high=np.full(length, np.nan, np.float32),
        temperature=np.full(length, 0.7, np.float32),
    )


def test_assemble_lays_samples_end_to_end() -> None:
    refs = [np.full(3, -1, np.float32), np.full(2, -2, np.float32)]
    batch = assemble([sample(3, 1), sample(2, 1)], refs)
    assert batch.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.token_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.loss_mask.tolist() == [False, True, True, False, True]
    assert batch.ref_logprobs is not None
    assert batch.ref_logprobs.tolist() == [-1, -1, -1, -2, -2]


def test_first_tokens_are_never_in_the_loss_and_the_sample_stays_as_it_was() -> None:
    sampled = sample(3, 0)
    batch = assemble([sampled, sampled], None)
    assert batch.loss_mask.tolist() == [False, True, True] * 2
    assert sampled.loss_mask.tolist() == [True, True, True]


@pytest.mark.parametrize("refs", [None, []])
def test_assemble_of_nothing_is_empty(refs: list[np.ndarray] | None) -> None:
    batch = assemble([], refs)
    assert batch.token_ids.shape == (0,)
    assert batch.cu_seqlens.tolist() == [0]
    assert batch.loss_mask.dtype == np.bool_
    assert (batch.ref_logprobs is None) == (refs is None)


def test_assemble_refuses_what_does_not_match() -> None:
    with pytest.raises(ValueError, match="ref_logprobs"):
        assemble([sample(3, 1)], [np.zeros(2, np.float32)])
    with pytest.raises(ValueError, match="no tokens"):
        assemble([sample(0, 0)], None)


def test_kl_in_the_reward_is_a_return_within_each_segment() -> None:
    """Two segments, coefficient 0.5, k1 = rollout - ref = -1 - ref, worked by hand."""
    refs = [np.array([9, -2, -4], np.float32), np.array([9, -1.5], np.float32)]
    batch = assemble([sample(3, 1), sample(2, 1)], refs)
    out = apply_kl_to_advantages(batch, estimator="k1")
    # kl: [1, 3] and [0.5]; times 0.5: [0.5, 1.5], [0.25]; to go: [2, 1.5], [0.25]
    np.testing.assert_allclose(out.advantages, [0, 1 - 2, 1 - 1.5, 0, 1 - 0.25], atol=1e-6)
    assert batch.advantages.tolist() == [0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("estimator", "kl"), [("k1", 0.5), ("k2", 0.125), ("k3", float(np.exp(-0.5) - 1 + 0.5))]
)
def test_kl_in_the_reward_by_estimator(estimator: str, kl: float) -> None:
    batch = assemble([sample(2, 1)], [np.array([0, -1.5], np.float32)])
    out = apply_kl_to_advantages(batch, estimator=estimator)  # type: ignore[arg-type]
    np.testing.assert_allclose(out.advantages, [0, 1 - 0.5 * kl], rtol=1e-6)


def test_masked_nans_do_not_reach_the_advantages() -> None:
    ref = np.array([np.nan, -1.0], np.float32)
    out = apply_kl_to_advantages(assemble([sample(2, 1)], [ref]), estimator="k3")
    assert np.isfinite(out.advantages).all()


def test_kl_without_reference_is_an_error_only_where_it_is_asked_for() -> None:
    batch = assemble([sample(2, 1)], None)
    with pytest.raises(ValueError, match="ref_logprobs"):
        apply_kl_to_advantages(batch, estimator="k3")
    empty = assemble([], None)
    assert apply_kl_to_advantages(empty, estimator="k3") is empty
