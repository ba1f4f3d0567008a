"""ppo_clip and the KL estimators against numbers worked by hand from the papers' formulas."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from configs.algorithm import CorrectionConfig
from trainer.corrections import correction_weights
from trainer.kl import kl_estimate
from trainer.loss import LossInputs
from trainer.metrics import Max, Mean, Metric
from trainer.objectives import ppo_clip


def inputs(
    policy: list[float],
    *,
    proximal: list[float] | None = None,
    rollout: list[float] | None = None,
    ref: list[float] | None = None,
    advantages: list[float] | None = None,
    mask: list[bool] | None = None,
    weight: list[float] | None = None,
    kl_coef: float = 0.0,
    low: list[float] | None = None,
    high: list[float] | None = None,
    cap: float | None = None,
    estimator: str = "k3",
) -> LossInputs:
    n = len(policy)
    now = torch.tensor(policy, requires_grad=True)
    before = now.detach() if proximal is None else torch.tensor(proximal)
    sampler = before if rollout is None else torch.tensor(rollout)
    gains = torch.tensor([1.0] * n if advantages is None else advantages)
    kept = torch.tensor([True] * n if mask is None else mask)
    one = torch.zeros(n, dtype=torch.int64)
    correction = correction_weights(
        CorrectionConfig(weight="none") if cap is None else CorrectionConfig(high=cap),
        policy=now,
        proximal=before,
        rollout=sampler,
        advantages=gains,
        mask=kept,
        segment=one,
    )
    return LossInputs(
        policy_logprobs=now,
        proximal_logprobs=before,
        rollout_logprobs=sampler,
        ref_logprobs=None if ref is None else torch.tensor(ref),
        advantages=gains,
        loss_mask=kept,
        segment=one,
        correction=correction,
        loss_weight=torch.tensor([1.0] * n if weight is None else weight),
        kl_coef=torch.full((n,), kl_coef),
        clip_low=torch.tensor([math.nan] * n if low is None else low),
        clip_high=torch.tensor([math.nan] * n if high is None else high),
        entropy=torch.zeros(n),
        entropy_coef=0.0,
        kl_estimator=estimator,  # type: ignore[arg-type]
        kl_in_loss=True,
    )


def gradient(x: LossInputs) -> list[float]:
    (grad,) = torch.autograd.grad(ppo_clip(x).total, x.policy_logprobs)
    result: list[float] = grad.tolist()
    return result


def mean(metric: Metric) -> float:
    assert isinstance(metric, Mean)
    return float(metric.numerator / metric.denominator)


def largest(metric: Metric) -> float:
    assert isinstance(metric, Max)
    return float(metric.value)


LOG = math.log

# ratio r = policy / proximal, A: loss -min(r A, clip(r, .8, 1.2) A); its gradient is -r A where
# the first is the smaller one, 0 where the clipped one is.
CASES = [
    (1.0, 2.0, -2.0, -2.0),
    (1.1, 2.0, -2.2, -2.2),
    (1.5, 2.0, -2.4, 0.0),  # clipped above, good advantage
    (0.5, 2.0, -1.0, -1.0),  # below, good advantage: pulled back up
    (1.5, -2.0, 3.0, 3.0),  # above, bad advantage: pushed down
    (0.5, -2.0, 1.6, 0.0),  # clipped below, bad advantage
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "grad"), CASES)
def test_clipped_surrogate(ratio: float, advantage: float, loss: float, grad: float) -> None:
    x = inputs([-1.0 + LOG(ratio)], proximal=[-1.0], advantages=[advantage])
    assert ppo_clip(x).total.item() == pytest.approx(loss, rel=1e-5)
    assert gradient(x) == pytest.approx([grad], rel=1e-5)


def test_the_total_is_a_sum_and_clip_high_stands_alone() -> None:
    x = inputs([LOG(1.5) - 1] * 2, proximal=[-1.0, -1.0], advantages=[2.0, 1.0], weight=[1.0, 0.5])
    assert ppo_clip(x, clip_high=0.28).total.item() == pytest.approx(-(1.28 * 2 + 0.5 * 1.28))


def test_each_token_is_clipped_by_its_source() -> None:
    """A = 1, ratios 1.5 and 0.5: min(r A, clipped A), and at A = -1 the other side of the range."""
    nan = math.nan
    x = inputs(
        [LOG(r) - 1 for r in (1.5, 1.5, 1.5, 0.5, 0.5, 0.5)],
        proximal=[-1.0] * 6,
        advantages=[1.0, 1.0, 1.0, -1.0, -1.0, -1.0],
        low=[0.1, nan, 0.3, 0.1, nan, 0.3],
        high=[0.1, 0.4, nan, 0.1, 0.4, nan],
    )
    per_token = [1.1, 1.4, 1.25, -0.9, -0.8, -0.7]
    out = ppo_clip(x, clip_low=0.2, clip_high=0.25)
    assert out.total.item() == pytest.approx(-sum(per_token), rel=1e-6)
    assert mean(out.metrics["clip/low"]) == mean(out.metrics["clip/high"]) == 0.5
    assert gradient(x) == [0.0] * 6  # every token is clipped


@pytest.mark.parametrize("high", [2.0, 0.6, 0.4, 0.1])
def test_a_range_of_a_source_s_own_moves_who_is_clipped(high: float) -> None:
    """Ratio 1.5 at A = 2: the gradient is -3 within the range, 0 beyond it."""
    x = inputs([LOG(1.5) - 1], proximal=[-1.0], advantages=[2.0], high=[high])
    assert gradient(x) == pytest.approx([-3.0 if high > 0.5 else 0.0])


@pytest.mark.parametrize("seed", range(20))
def test_the_same_range_from_sources_and_from_the_loss_is_the_same_to_the_bit(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    low, high = (0.05 + 0.9 * torch.rand(2, generator=rng, dtype=torch.float64)).tolist()
    values = {n: torch.randn(64, generator=rng).tolist() for n in ("policy", "advantages")}
    mixed = [low if i % 2 else math.nan for i in range(64)]
    runs = []
    for own_low, own_high in ((None, None), ([low] * 64, [high] * 64), (mixed, None)):
        x = inputs(
            [v - 2 for v in values["policy"]],
            proximal=[-2.0] * 64,
            advantages=values["advantages"],
            low=own_low,
            high=own_high,
        )
        out = ppo_clip(x, clip_low=low, clip_high=high)
        (grad,) = torch.autograd.grad(out.total, x.policy_logprobs)
        runs.append((out.total.detach(), grad, mean(out.metrics["clip/low"])))
    for total, grad, clipped in runs[1:]:
        assert torch.equal(total, runs[0][0]) and torch.equal(grad, runs[0][1])
        assert clipped == runs[0][2]


def test_clip_fractions_count_what_was_really_clipped() -> None:
    x = inputs(
        [LOG(r) - 1 for r, *_ in CASES],
        proximal=[-1.0] * len(CASES),
        advantages=[a for _, a, *_ in CASES],
    )
    metrics = ppo_clip(x).metrics
    assert mean(metrics["clip/high"]) == pytest.approx(1 / 6)
    assert mean(metrics["clip/low"]) == pytest.approx(1 / 6)
    assert mean(metrics["ratio/mean"]) == pytest.approx((1 + 1.1 + 1.5 + 0.5 + 1.5 + 0.5) / 6)
    assert largest(metrics["ratio/max_deviation"]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("estimator", "value", "grad"),
    [
        # log p - log q = -1 - (-1.5) = 0.5
        ("k1", 0.5, 1.0),
        ("k2", 0.125, 0.5),
        ("k3", math.exp(-0.5) - 1 + 0.5, 1 - math.exp(-0.5)),
        ("straight_through", math.exp(-0.5) - 1 + 0.5, 0.5),
    ],
)
def test_kl_estimators(estimator: str, value: float, grad: float) -> None:
    log_p = torch.tensor(-1.0, requires_grad=True)
    kl = kl_estimate(log_p, torch.tensor(-1.5), estimator)  # type: ignore[arg-type]
    assert kl.item() == pytest.approx(value, rel=1e-6)
    kl.backward()
    assert log_p.grad is not None
    assert log_p.grad.item() == pytest.approx(grad, rel=1e-6)


def test_kl_signs() -> None:
    """k1 may be negative; k2 and k3 never are."""
    p, q = torch.tensor([-2.0, -1.0]), torch.tensor([-1.0, -2.0])
    assert kl_estimate(p, q, "k1").tolist() == [-1.0, 1.0]
    assert (kl_estimate(p, q, "k2") >= 0).all()
    assert (kl_estimate(p, q, "k3") >= 0).all()
    assert kl_estimate(p, p, "k3").tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("estimator", "kl", "slope"), [("k1", 0.5, 1.0), ("k2", 0.125, 0.5)])
def test_kl_in_the_loss(estimator: str, kl: float, slope: float) -> None:
    """loss = weight (coef kl - A), gradient weight (coef slope - A), at ratio 1."""
    x = inputs([-1.0], ref=[-1.5], weight=[2.0], kl_coef=0.1, estimator=estimator)
    assert ppo_clip(x).total.item() == pytest.approx(2 * (0.1 * kl - 1))
    assert gradient(x) == pytest.approx([2 * (0.1 * slope - 1)])
    apart = dataclasses.replace(x, kl_in_loss=False)
    assert ppo_clip(apart).total.item() == pytest.approx(-2)
    assert mean(ppo_clip(apart).metrics["kl_ref"]) == pytest.approx(kl)


def test_truncated_importance_weights() -> None:
    """exp(proximal - rollout) = 1.5, 4, 0.25; cap 2 gives 1.5, 2, 0.25 on loss and gradient."""
    weights = [1.5, 2.0, 0.25]
    x = inputs(
        [-1.0] * 3,
        rollout=[-1 - LOG(1.5), -1 - LOG(4), -1 - LOG(0.25)],
        cap=2.0,
    )
    assert ppo_clip(x).total.item() == pytest.approx(-sum(weights))
    assert gradient(x) == pytest.approx([-w for w in weights])
    metrics = ppo_clip(x).metrics
    assert mean(metrics["mismatch/correction"]) == pytest.approx(sum(weights) / 3)
    assert mean(metrics["mismatch/weight"]) == pytest.approx((1.5 + 4 + 0.25) / 3)
    assert mean(metrics["mismatch/log_gap"]) == pytest.approx(LOG(1.5 * 4 * 0.25) / 3)
    assert largest(metrics["mismatch/max_gap"]) == pytest.approx(LOG(4))
    assert mean(metrics["mismatch/chi2"]) == pytest.approx((1.5**2 + 16 + 0.0625) / 3 - 1)
    # k3 of KL(rollout || proximal) = w - 1 - log w
    assert mean(metrics["mismatch/kl"]) == pytest.approx(
        sum(w - 1 - LOG(w) for w in (1.5, 4, 0.25)) / 3
    )
    p = math.exp(-1)
    diff = [abs(p - p / w) for w in (1.5, 4, 0.25)]
    assert mean(metrics["mismatch/prob_diff"]) == pytest.approx(sum(diff) / 3)


def test_without_a_cap_there_is_no_importance_weight() -> None:
    x = inputs([-1.0], rollout=[-3.0], cap=None)
    assert ppo_clip(x).total.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_tokens_count_for_nothing_whatever_they_hold(poison: float) -> None:
    clean = inputs([-1.0], ref=[-1.5], kl_coef=0.1, cap=2.0)
    dirty = inputs(
        [-1.0, poison],
        proximal=[-1.0, poison],
        rollout=[-1.0, poison],
        ref=[-1.5, poison],
        advantages=[1.0, poison],
        mask=[True, False],
        weight=[1.0, poison],
        kl_coef=0.1,
        cap=2.0,
    )
    assert ppo_clip(dirty).total.item() == ppo_clip(clean).total.item()
    assert gradient(dirty) == [*gradient(clean), 0.0]
    for name, metric in ppo_clip(clean).metrics.items():
        other = ppo_clip(dirty).metrics[name]
        if isinstance(metric, Mean):
            assert mean(other) == mean(metric)
        else:
            assert largest(other) == largest(metric)


def test_huge_log_ratios_stay_finite() -> None:
    x = inputs([-1.0], proximal=[-500.0], rollout=[-1000.0], ref=[-2000.0], cap=2.0, kl_coef=1.0)
    total: Tensor = ppo_clip(x).total
    assert torch.isfinite(total)
    assert all(map(math.isfinite, gradient(x)))
    assert mean(ppo_clip(x).metrics["ratio/clamped"]) == 1.0


def test_all_masked_is_zero_with_a_gradient_of_zero() -> None:
    x = inputs([-1.0, -2.0], mask=[False, False])
    assert ppo_clip(x).total.item() == 0.0
    assert gradient(x) == [0.0, 0.0]
