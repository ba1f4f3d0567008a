"""On-policy distillation worked by hand, and against the exact gradient of the reverse KL."""

import numpy as np
import pytest

from configs.teachers import DistillConfig
from rollouts.distill import teach, teacher_gap
from rollouts.packing import assemble
from rollouts.scopes import scaled
from rollouts.types import TrainingSample


def sample(mask: list[bool], rollout: list[float], advantages: list[float]) -> TrainingSample:
    n = len(mask)

    def stream(value: float) -> np.ndarray:
        return np.full(n, value, np.float32)

    return TrainingSample(
        group_id="s/train/0#e0a0",
        index=0,
        token_ids=np.arange(n, dtype=np.int32),
        loss_mask=np.array(mask),
        rollout_logprobs=np.array(rollout, np.float32),
        advantages=np.array(advantages, np.float32),
        loss_weight=stream(1),
        kl_coef=stream(0),
        clip_low=stream(np.nan),
        clip_high=stream(np.nan),
        temperature=stream(1),
    )


LN2 = float(np.log(2))
SAMPLE = sample([False, True, True, False, True], [0, -LN2, -2.0, 0, -0.5], [0, 1, 1, 0, 1])
TEACHER = np.array([9.0, -2 * LN2, -1.0, 9.0, -4.5], np.float32)
"""Where nothing was sampled, what a teacher says counts for nothing."""


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        # log q - log p by hand: -2 ln2 + ln2, -1 + 2, -4.5 + 0.5
        (DistillConfig(teacher="t"), [0, -LN2, 1.0, 0, -4.0]),
        (DistillConfig(teacher="t", coef=0.5), [0, -LN2 / 2, 0.5, 0, -2.0]),
        (DistillConfig(teacher="t", coef=2, max_gap=1.5), [0, -2 * LN2, 2.0, 0, -3.0]),
    ],
)
def test_advantages_by_hand(cfg: DistillConfig, expected: list[float]):
    taught = teach(SAMPLE, TEACHER, cfg)
    np.testing.assert_allclose(taught.taught, expected, rtol=1e-6)
    np.testing.assert_array_equal(taught.advantages, SAMPLE.advantages)
    # log p - log q: ln2 - 1 + 4, whatever coefficient and bound
    assert teacher_gap(SAMPLE, TEACHER) == pytest.approx(LN2 + 3.0)


def test_a_scope_scales_the_rewards_part_alone():
    taught = teach(SAMPLE, TEACHER, DistillConfig(teacher="t"))
    batch = assemble([scaled(taught, 3.0)], None)
    np.testing.assert_allclose(batch.advantages, [0, 3 - LN2, 4.0, 0, -1.0], rtol=1e-6)


@pytest.mark.parametrize("bad", [TEACHER[:4], np.where(SAMPLE.loss_mask, np.nan, TEACHER)])
def test_scores_that_do_not_fit_are_refused(bad: np.ndarray):
    with pytest.raises(ValueError, match=r"s/train/0#e0a0, rollout 0: the teacher's logprobs"):
        teach(SAMPLE, bad.astype(np.float32), DistillConfig(teacher="t"))


@pytest.mark.parametrize("seed", range(50))
def test_the_policy_gradient_of_it_is_that_of_the_reverse_kl(seed: int):
    """Over logits z of one token: sum_a p_a A_a d log p_a / d z = -d KL(p || q) / d z, exactly."""
    rng = np.random.default_rng(seed)
    temperature = rng.uniform(0.5, 2)
    z, teacher = rng.normal(size=(2, 7)) * 2

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        scaled_logits = logits / temperature
        return scaled_logits - np.log(np.exp(scaled_logits).sum())

    def kl(logits: np.ndarray) -> float:
        p, q = log_softmax(logits), log_softmax(teacher)
        return float(np.exp(p) @ (p - q))

    p = log_softmax(z)
    each = sample([True] * 7, p.tolist(), [0] * 7)
    advantages = teach(
        each, log_softmax(teacher).astype(np.float32), DistillConfig(teacher="t")
    ).taught
    assert advantages is not None
    scores = (np.eye(7) - np.exp(p)) / temperature  # [a, z]: d log p_a / d z
    gradient = (np.exp(p) * advantages) @ scores
    step = 1e-5
    numeric = [(kl(z + step * e) - kl(z - step * e)) / (2 * step) for e in np.eye(7)]
    np.testing.assert_allclose(gradient, -np.array(numeric), atol=1e-5)
