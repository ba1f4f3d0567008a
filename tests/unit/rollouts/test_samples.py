"""Training samples: what is in the loss, what is not, and per-source settings as streams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.data import DataConfig
from configs.schema import RewardConfig, SourceConfig
from rollouts.advantages import AnyEstimator, grpo, mean_baseline
from rollouts.packing import assemble
from rollouts.samples import (
    chunk_for_store,
    credit_group,
    num_bytes,
    to_training_samples,
)
from rollouts.types import (
    Boundary,
    Completion,
    FinishReason,
    GroupRequest,
    Rollout,
    RolloutError,
    RolloutGroup,
    RolloutStatus,
    Sampling,
    Task,
    TrainingSample,
    Turn,
    VersionSpan,
)

EOS = 2
SOURCE = SourceConfig(
    name="s",
    data=DataConfig(jsonl="x"),
    rewards=(RewardConfig(name="r", use="exact"),),
    loss_weight=0.5,
)


def turn(prompt: list[int], sampled: list[int], logprobs: list[float] | None = None) -> Turn:
    values = [-0.1 * (i + 1) for i in range(len(sampled))] if logprobs is None else logprobs
    return Turn(
        prompt_ids=np.array(prompt, np.int32),
        completion=Completion(
            token_ids=np.array(sampled, np.int32),
            logprobs=np.array(values, np.float32),
            finish_reason=FinishReason.STOP if sampled[-1:] == [EOS] else FinishReason.LENGTH,
            versions=(VersionSpan(version=1, start=0, end=len(sampled)),),
        ),
        text="",
    )


def rollout(
    index: int,
    *turns: Turn,
    reward: float | None = 1.0,
    status: RolloutStatus = RolloutStatus.COMPLETED,
) -> Rollout:
    bad = RolloutError(boundary=Boundary.REWARD, kind="timeout", message="")
    return Rollout(
        index=index,
        turns=turns,
        status=status,
        reward=reward,
        reward_parts={} if reward is None else {"r": reward},
        error=bad if status is RolloutStatus.INVALID else None,
    )


def group(*rollouts: Rollout) -> RolloutGroup:
    task = Task(task_id="s/train/0", source="s", prompt=(), answer=None, metadata={})
    return RolloutGroup(
        request=GroupRequest(
            group_id="s/train/0#e0a0",
            task=task,
            group_size=len(rollouts),
            sampling=Sampling(temperature=0.7, max_tokens=9),
            step=1,
        ),
        rollouts=rollouts,
        generate_s=0.0,
    )


def to_rows(
    graded: RolloutGroup, source: SourceConfig, kl_coef: float, estimator: AnyEstimator
) -> tuple[TrainingSample, ...]:
    credits = credit_group(graded, source, estimator)
    return to_training_samples(graded, source, kl_coef, credits)


def test_streams_of_a_single_turn() -> None:
    good = rollout(0, turn([5, 6], [7, 8, EOS]), reward=1.0)
    poor = rollout(1, turn([5, 6], [9, EOS]), reward=0.0)
    first, second = to_rows(group(good, poor), SOURCE, 0.25, mean_baseline)
    assert first.token_ids.tolist() == [5, 6, 7, 8, EOS]
    assert first.loss_mask.tolist() == [False, False, True, True, True]  # sampled EOS included
    np.testing.assert_allclose(first.rollout_logprobs, [0, 0, -0.1, -0.2, -0.3])
    assert first.advantages.tolist() == [0, 0, 0.5, 0.5, 0.5]
    assert second.advantages.tolist() == [0, 0, -0.5, -0.5]
    assert set(first.loss_weight.tolist()) == {0.5}
    assert set(first.kl_coef.tolist()) == {0.25}
    np.testing.assert_allclose(first.temperature, [0.7] * 5, rtol=1e-6)
    assert (first.group_id, first.index, second.index) == ("s/train/0#e0a0", 0, 1)
    streams = ("rollout_logprobs", "advantages", "loss_weight", "kl_coef", "temperature")
    assert {getattr(first, s).dtype for s in streams} == {np.dtype(np.float32)}
    assert (first.token_ids.dtype, first.loss_mask.dtype) == (np.int32, np.bool_)


def test_clip_ranges_are_streams_and_nan_where_the_source_has_none() -> None:
    own = SOURCE.model_copy(update={"clip_low": 0.1, "clip_high": 0.3})
    played = group(rollout(0, turn([5, 6], [7, EOS])))
    (sample,) = to_rows(played, own, 0.0, grpo)
    assert sample.clip_low.tolist() == [np.float32(0.1)] * 4
    assert sample.clip_high.tolist() == [np.float32(0.3)] * 4
    (plain,) = to_rows(played, SOURCE, 0.0, grpo)
    assert np.isnan(plain.clip_low).all() and np.isnan(plain.clip_high).all()
    batch = assemble([sample, plain], None)
    np.testing.assert_array_equal(batch.clip_low, [np.float32(0.1)] * 4 + [np.nan] * 4)
    np.testing.assert_array_equal(batch.clip_high, [np.float32(0.3)] * 4 + [np.nan] * 4)


def test_a_truncated_sample_gets_no_end_of_sequence() -> None:
    cut = rollout(0, turn([5], [7, 8]), status=RolloutStatus.TRUNCATED)
    (sample,) = to_rows(group(cut), SOURCE, 0.0, grpo)
    assert sample.token_ids.tolist() == [5, 7, 8]
    assert sample.loss_mask.tolist() == [False, True, True]


def test_truncated_samples_keep_their_place_in_the_statistics_at_any_loss_weight() -> None:
    cut = rollout(0, turn([5], [7, 8]), reward=0.0, status=RolloutStatus.TRUNCATED)
    ended = rollout(1, turn([5], [7, EOS]))
    source = SOURCE.model_copy(update={"truncated_loss_weight": 0.0})
    filtered, kept = to_rows(group(cut, ended), source, 0.0, grpo)
    assert filtered.loss_weight.tolist() == [0.0, 0.0, 0.0]
    assert filtered.loss_mask.tolist() == [False, True, True]  # still in the denominator
    assert kept.loss_weight.tolist() == [0.5, 0.5, 0.5]
    assert kept.advantages[-1] == -filtered.advantages[-1] > 0


def test_turns_are_merged_and_only_sampled_tokens_are_in_the_loss() -> None:
    # the environment's message holds EOS ids too: masks come from lengths, never from ids
    played = rollout(0, turn([5, EOS], [7, EOS]), turn([EOS, 6, EOS], [8, 9, EOS]), reward=1.0)
    other = rollout(1, turn([5, EOS], [7, EOS]), reward=0.0)
    sample, _ = to_rows(group(played, other), SOURCE, 0.0, mean_baseline)
    assert sample.token_ids.tolist() == [5, EOS, 7, EOS, EOS, 6, EOS, 8, 9, EOS]
    mask = [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert sample.loss_mask.tolist() == [bool(m) for m in mask]
    assert sample.advantages.tolist() == [0.5 * m for m in mask]
    np.testing.assert_allclose(
        sample.rollout_logprobs, [0, 0, -0.1, -0.2, 0, 0, 0, -0.1, -0.2, -0.3]
    )


def test_invalid_rollouts_give_no_sample_and_do_not_move_the_baseline() -> None:
    broken = rollout(0, turn([5], [7]), reward=None, status=RolloutStatus.INVALID)
    stale = rollout(1, turn([5], [7]), reward=9.0, status=RolloutStatus.INVALID)
    good, poor = (rollout(i, turn([5], [7]), reward=r) for i, r in ((2, 1.0), (3, 0.0)))
    samples = to_rows(group(broken, stale, good, poor), SOURCE, 0.0, mean_baseline)
    assert [(s.index, s.advantages[1]) for s in samples] == [(2, 0.5), (3, -0.5)]
    assert to_rows(group(broken), SOURCE, 0.0, grpo) == ()


def test_zero_variance_groups_are_kept_with_advantage_zero() -> None:
    same = [rollout(i, turn([5], [7]), reward=0.3) for i in range(3)]
    samples = to_rows(group(*same), SOURCE, 0.1, grpo)
    assert len(samples) == 3
    assert not any(s.advantages.any() for s in samples)


@pytest.mark.parametrize(
    "bad",
    [
        rollout(0, turn([5], [7, 8], [-0.1])),
        rollout(0, turn([5], [7], [np.nan])),
        rollout(0, turn([], [7])),
        rollout(0),
    ],
)
def test_streams_that_do_not_fit_crash(bad: Rollout) -> None:
    with pytest.raises(ValueError, match="rollout 0"):
        to_rows(group(bad), SOURCE, 0.0, grpo)


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(1, 3000))
def test_chunks_keep_order_and_size(lengths: list[int], max_bytes: int) -> None:
    rollouts = [rollout(i, turn([1] * n, [7])) for i, n in enumerate(lengths)]
    samples = to_rows(group(*rollouts), SOURCE, 0.0, grpo)
    chunks = chunk_for_store(samples, max_bytes)
    assert [s for chunk in chunks for s in chunk] == list(samples)
    sizes = [sum(map(num_bytes, chunk)) for chunk in chunks]
    assert all(chunk for chunk in chunks)
    assert all(size <= max_bytes or len(c) == 1 for size, c in zip(sizes, chunks, strict=True))
    for size, following in zip(sizes, chunks[1:], strict=False):
        assert size + num_bytes(following[0]) > max_bytes


def test_bytes_are_those_of_the_arrays() -> None:
    (sample,) = to_rows(group(rollout(0, turn([1, 2], [3]))), SOURCE, 0.0, grpo)
    assert num_bytes(sample) == 3 * (4 + 1 + 7 * 4)
