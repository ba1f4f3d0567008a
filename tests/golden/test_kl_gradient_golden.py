"""What each KL estimator's expected gradient is, over all tokens of a small vocabulary: exactly the
KL's, or nearly nothing."""

import numpy as np
import pytest
import torch

from rollouts.packing import KLEstimator, apply_kl_to_advantages, assemble
from rollouts.types import TrainingSample
from trainer.kl import kl_estimate

SIZE = 7
ESTIMATORS: tuple[KLEstimator, ...] = ("k1", "k2", "k3", "straight_through")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum())


def kl_gradient(z: np.ndarray, q: np.ndarray) -> np.ndarray:
    """d KL(softmax(z) || q) / d z = p (log p - log q - KL)."""
    p = log_softmax(z)
    gap = p - q
    return np.exp(p) * (gap - np.exp(p) @ gap)


def in_reward(z: np.ndarray, q: np.ndarray, estimator: KLEstimator) -> np.ndarray:
    """The policy gradient of what is taken from the rewards, over all answers of one token."""
    p = log_softmax(z)
    ones = np.ones(2, np.float32)
    answers = [
        TrainingSample(
            group_id="g",
            index=a,
            token_ids=np.array([0, a], np.int32),
            loss_mask=np.array([False, True]),
            rollout_logprobs=np.array([0, p[a]], np.float32),
            advantages=0 * ones,
            loss_weight=ones,
            kl_coef=ones,
            clip_low=ones,
            clip_high=ones,
            temperature=ones,
        )
        for a in range(SIZE)
    ]
    reference = [np.array([0, q[a]], np.float32) for a in range(SIZE)]
    batch = apply_kl_to_advantages(assemble(answers, reference), estimator=estimator)
    taken = -batch.advantages[batch.loss_mask].astype(np.float64)
    return (np.exp(p) * taken) @ (np.eye(SIZE) - np.exp(p))


def in_loss(z: np.ndarray, q: np.ndarray, estimator: KLEstimator) -> np.ndarray:
    """The expected gradient of the term of the loss, tokens drawn from the policy."""
    logits = torch.tensor(z, requires_grad=True)
    log_p = torch.log_softmax(logits, -1)
    term = log_p.detach().exp() @ kl_estimate(log_p, torch.tensor(q), estimator)
    (grad,) = torch.autograd.grad(term, logits)
    return grad.numpy()


def policies(seed: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(seed)
    z = dice.normal(size=SIZE)
    return z, log_softmax(z + apart * dice.normal(size=SIZE))


@pytest.mark.parametrize("seed", range(10))
def test_only_k1_in_the_reward_and_k2_in_the_loss_have_the_kl_s_gradient(seed: int) -> None:
    z, q = policies(seed, 1.0)
    true = kl_gradient(z, q)
    for found, estimators in ((in_reward, ("k1",)), (in_loss, ("k2", "straight_through"))):
        for estimator in ESTIMATORS:
            gap = np.abs(found(z, q, estimator) - true).max() / np.abs(true).max()
            assert gap < 1e-5 if estimator in estimators else gap > 0.01, (found, estimator)


@pytest.mark.parametrize("seed", range(10))
def test_near_the_reference_the_wrong_ones_hardly_draw_back(seed: int) -> None:
    """A hundredth apart: k1 in the loss has no gradient, all but k1 in the reward next to none; k3
    in the loss has it up to a hundredth."""
    z, q = policies(seed, 0.01)
    true = kl_gradient(z, q)
    size = np.linalg.norm(true)
    assert np.linalg.norm(in_loss(z, q, "k1")) < 1e-6 * size
    assert np.linalg.norm(in_loss(z, q, "k3") - true) < 0.05 * size
    for estimator in ("k2", "k3", "straight_through"):
        assert np.linalg.norm(in_reward(z, q, estimator)) < 0.05 * size
