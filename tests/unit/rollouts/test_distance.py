"""The distance of a policy from its start: the estimate is the KL, and sums add up."""

import numpy as np
import pytest

from rollouts.distance import Distance, distance
from rollouts.packing import assemble, within_budget
from rollouts.types import TrainingSample

P = np.array([0.5, 0.3, 0.15, 0.05])
Q = np.array([0.25, 0.25, 0.25, 0.25])
KL = float((P * np.log(P / Q)).sum())
LENGTH = 6


def completion(rng: np.random.Generator, index: int) -> tuple[TrainingSample, np.ndarray]:
    """A prompt of two tokens and a completion of independent draws from P; Q's logprobs."""
    drawn = rng.choice(4, LENGTH, p=P)
    ids = np.concatenate([[9, 9], drawn]).astype(np.int32)
    mask = np.arange(len(ids)) >= 2

    def stream(values: np.ndarray) -> np.ndarray:
        return np.where(mask, np.concatenate([[0, 0], values]), 0).astype(np.float32)

    flat = np.ones(len(ids), np.float32)
    sample = TrainingSample(
        group_id="g",
        index=index,
        token_ids=ids,
        loss_mask=mask,
        rollout_logprobs=stream(np.log(P[drawn])),
        advantages=0 * flat,
        loss_weight=flat,
        kl_coef=flat,
        clip_low=flat,
        clip_high=flat,
        temperature=flat,
    )
    return sample, stream(np.log(Q[drawn]))


@pytest.mark.parametrize("seed", range(5))
def test_the_estimate_is_the_kl_of_completions(seed: int):
    rng = np.random.default_rng(seed)
    made = [completion(rng, i) for i in range(3000)]
    found = distance(assemble([s for s, _ in made], None), np.concatenate([q for _, q in made]))
    assert (found.completions, found.tokens) == (3000, 3000 * LENGTH)
    assert abs(found.mean - LENGTH * KL) < 4 * found.stderr
    assert 0 < found.stderr < 0.05 * LENGTH * KL
    assert found.per_token == pytest.approx(found.mean / LENGTH)


def test_pieces_add_up_and_equal_policies_are_no_distance_apart():
    rng = np.random.default_rng(0)
    made = [completion(rng, i) for i in range(40)]
    refs = {s.index: q for s, q in made}
    whole = distance(assemble([s for s, _ in made], None), np.concatenate([q for _, q in made]))
    runs = within_budget([s for s, _ in made], 30)
    assert [s.index for run in runs for s in run] == list(range(40))
    assert all(sum(len(s.token_ids) for s in run) <= 30 for run in runs)
    added = sum(
        (distance(assemble(r, None), np.concatenate([refs[s.index] for s in r])) for r in runs),
        Distance(),
    )
    assert added.mean == pytest.approx(whole.mean) and added.stderr == pytest.approx(whole.stderr)
    batch = assemble([s for s, _ in made], None)
    assert distance(batch, batch.rollout_logprobs).mean == 0
    assert np.isnan(Distance().mean) and np.isnan(Distance().stderr)


def test_a_longer_sample_stands_alone():
    samples = [completion(np.random.default_rng(i), i)[0] for i in range(3)]
    assert [len(r) for r in within_budget(samples, 1)] == [1, 1, 1]
    assert within_budget([], 5) == []
