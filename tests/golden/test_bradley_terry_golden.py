"""The Bradley-Terry loss, worked by hand."""

import dataclasses
import math

import pytest
import torch

from trainer.loss import LossInputs
from trainer.reward_trainer import bradley_terry


def inputs(scores: list[float], mask: list[bool]) -> LossInputs:
    zero = torch.zeros(len(scores))
    given = {f.name: zero for f in dataclasses.fields(LossInputs)}
    return LossInputs(
        **{
            **given,
            "policy_logprobs": torch.tensor(scores, requires_grad=True),
            "loss_mask": torch.tensor(mask),
            "segment": torch.zeros(len(scores), dtype=torch.long),
            "ref_logprobs": None,
            "entropy_coef": 0.0,
            "kl_estimator": "k3",
            "kl_in_loss": True,
        }  # type: ignore[arg-type]
    )


def test_by_hand():
    """Two pairs: (2, 1) and (0, 3); other tokens hold no score, whatever stands there."""
    x = inputs([9.0, 2.0, 9.0, 1.0, 0.0, 9.0, 3.0], [False, True, False, True, True, False, True])
    out = bradley_terry(x)
    # -log sigmoid(1) = log(1 + e^-1), -log sigmoid(-3) = log(1 + e^3)
    assert out.total.item() == pytest.approx(math.log1p(math.exp(-1)) + math.log1p(math.exp(3)))
    out.total.backward()
    gradient = x.policy_logprobs.grad
    assert gradient is not None
    p = [1 / (1 + math.exp(1)), 1 / (1 + math.exp(-3))]  # sigmoid(-margin) of each pair
    expected = [0, -p[0], 0, p[0], -p[1], 0, p[1]]
    assert gradient.tolist() == pytest.approx(expected, rel=1e-5)


def test_it_stays_finite_far_out():
    out = bradley_terry(inputs([-500.0, 500.0], [True, True]))
    assert out.total.item() == pytest.approx(1000.0)


def test_no_pair_gives_0_and_no_nan():
    out = bradley_terry(inputs([1.0], [False]))
    assert out.total.item() == 0
