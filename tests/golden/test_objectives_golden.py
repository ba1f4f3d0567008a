"""Losses, corrections and controls against numbers worked by hand from the papers' formulas."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from configs.algorithm import AlgorithmConfig, CorrectionConfig
from trainer.controls import Controls
from trainer.corrections import correction_weights
from trainer.loss import LossInputs, LossOutput, sample_mean, sample_sum
from trainer.metrics import Mean
from trainer.objectives import (
    binary_divergence,
    cispo,
    gspo,
    policy_gradient,
    ppo_clip,
    trust_region,
)

LOG = math.log


def inputs(
    ratios: list[float],
    advantages: list[float],
    *,
    samples: list[int] | None = None,
    probability: float = 0.25,
    entropy: float = 0.0,
    entropy_coef: float = 0.0,
) -> LossInputs:
    """Tokens of proximal and sampler probability 0.25, and these ratios to it; the weights of
    `samples` [T] are whole."""
    n = len(ratios)
    before = torch.full((n,), LOG(probability))
    now = (before + torch.tensor(ratios).log()).requires_grad_()
    ones = torch.ones(n)
    return LossInputs(
        policy_logprobs=now,
        proximal_logprobs=before,
        rollout_logprobs=before,
        ref_logprobs=None,
        advantages=torch.tensor(advantages),
        loss_mask=torch.ones(n, dtype=torch.bool),
        segment=torch.tensor([0] * n if samples is None else samples),
        loss_weight=ones,
        correction=ones,
        kl_coef=ones * 0,
        clip_low=ones * math.nan,
        clip_high=ones * math.nan,
        entropy=torch.full((n,), entropy),
        entropy_coef=entropy_coef,
        kl_estimator="k3",
        kl_in_loss=True,
    )


def gradient(x: LossInputs, out: LossOutput) -> list[float]:
    (grad,) = torch.autograd.grad(out.total, x.policy_logprobs)
    result: list[float] = grad.tolist()
    return result


def test_dual_clip_bounds_a_bad_token_from_below() -> None:
    """A = -1, c = 3: r = 2 gives max(-2, -3) = -2; r = 5 gives -3 and no gradient; A = 1 is
    untouched (arXiv:1912.09729)."""
    x = inputs([2.0, 5.0, 5.0], [-1.0, -1.0, 1.0])
    out = ppo_clip(x, dual_clip=3.0)
    assert out.total.item() == pytest.approx(2 + 3 - 1.2)
    assert gradient(x, out) == pytest.approx([2.0, 0.0, 0.0])
    dual = out.metrics["clip/dual"]
    assert isinstance(dual, Mean) and dual.numerator.item() == 1


def test_gspo_weighs_each_token_by_its_sample_s_geometric_mean() -> None:
    """Sample 0: ratios 2 and 1/2, S = 1; sample 1: ratios 4 and 1, S = 2. A = 1 and -1.
    Within a wide range: gradient -S A for every token (arXiv:2507.18071, equation 10, but for the
    1 / |y| of the aggregation)."""
    x = inputs([2.0, 0.5, 4.0, 1.0], [1.0, 1.0, -1.0, -1.0], samples=[0, 0, 1, 1])
    out = gspo(x, clip_low=0.9, clip_high=9.0)
    assert out.total.item() == pytest.approx(-1 - 1 + 2 + 2)
    assert gradient(x, out) == pytest.approx([-1.0, -1.0, 2.0, 2.0])


def test_gspo_clips_whole_samples() -> None:
    """S = 2 is beyond 1 + 0.5: with A = 1 all of the sample is clipped, with A = -1 none is."""
    for advantage, grad in ((1.0, 0.0), (-1.0, 2.0)):
        x = inputs([4.0, 1.0], [advantage] * 2)
        assert gradient(x, gspo(x, clip_low=0.5, clip_high=0.5)) == pytest.approx([grad] * 2)


def test_cispo_keeps_a_gradient_for_every_token() -> None:
    """-sg[clip(r)] A log policy: r = 8 is cut to 5, r = 1/2 stays (arXiv:2506.13585)."""
    x = inputs([8.0, 0.5], [1.0, -1.0], probability=0.1)
    out = cispo(x)
    assert gradient(x, out) == pytest.approx([-5.0, 0.5])
    assert out.total.item() == pytest.approx(-5 * LOG(0.8) + 0.5 * LOG(0.05))


def test_policy_gradient_is_never_clipped() -> None:
    x = inputs([1.0, 8.0], [2.0, -1.0])
    out = policy_gradient(x)
    assert out.total.item() == pytest.approx(-2 + 8)
    assert gradient(x, out) == pytest.approx([-2.0, 8.0])


def test_trust_region_masks_by_probability_moved_not_by_ratio() -> None:
    """Ratio 8 from 0.01 moves 0.07: kept. Ratio 2 from 0.25 moves 0.25: masked if it leads away,
    kept if it leads back (arXiv:2602.04879)."""
    rare = inputs([8.0], [1.0], probability=0.01)
    assert gradient(rare, trust_region(rare)) == pytest.approx([-8.0])
    for advantage, grad in ((1.0, 0.0), (-1.0, 2.0)):
        x = inputs([2.0], [advantage])
        assert gradient(x, trust_region(x)) == pytest.approx([grad])
    down = inputs([0.25, 0.25], [-1.0, 1.0])
    assert gradient(down, trust_region(down)) == pytest.approx([0.0, -0.25])


def test_binary_divergences() -> None:
    p, q = 0.5, 0.25
    logs = torch.tensor([LOG(p)]), torch.tensor([LOG(q)])
    assert binary_divergence(*logs, "tv").item() == pytest.approx(0.25)
    kl = q * LOG(q / p) + (1 - q) * LOG((1 - q) / (1 - p))
    assert binary_divergence(*logs, "kl").item() == pytest.approx(kl)
    sure = torch.zeros(1)
    assert torch.isfinite(binary_divergence(sure, sure, "kl")).all()


def test_the_entropy_bonus_lowers_the_loss() -> None:
    x = inputs([1.0, 1.0], [1.0, 1.0], entropy=2.0, entropy_coef=0.1)
    assert policy_gradient(x).total.item() == pytest.approx(-2 - 2 * 0.1 * 2)


def test_sums_and_means_over_a_sample_skip_masked_tokens() -> None:
    values = torch.tensor([1.0, math.nan, 3.0, 5.0, 7.0])
    mask = torch.tensor([True, False, True, True, False])
    segment = torch.tensor([0, 0, 0, 1, 2])
    assert sample_sum(values, mask, segment).tolist() == [4, 4, 4, 5, 0]
    assert sample_mean(values, mask, segment).tolist() == [2, 2, 2, 5, 0]


def weights(
    cfg: dict[str, object],
    ratios: list[float],
    *,
    samples: list[int] | None = None,
    advantages: list[float] | None = None,
    moved: list[float] | None = None,
) -> list[float]:
    """Weights of tokens with these proximal / rollout ratios."""
    n = len(ratios)
    rollout = torch.full((n,), -2.0)
    proximal = rollout + torch.tensor(ratios).log()
    policy: Tensor = proximal if moved is None else rollout + torch.tensor(moved).log()
    found = correction_weights(
        CorrectionConfig.model_validate(cfg),
        policy=policy,
        proximal=proximal,
        rollout=rollout,
        advantages=torch.tensor([1.0] * n if advantages is None else advantages),
        mask=torch.ones(n, dtype=torch.bool),
        segment=torch.tensor([0] * n if samples is None else samples),
    )
    result: list[float] = found.tolist()
    return result


def test_corrections_by_token() -> None:
    ratios = [0.25, 0.5, 1.0, 2.0, 4.0]
    assert weights({}, ratios) == pytest.approx([0.25, 0.5, 1, 2, 2])
    mask = {"weight": "mask", "low": 0.4, "high": 3}
    assert weights(mask, ratios) == pytest.approx([0, 0.5, 1, 2, 0])
    assert weights({"weight": "none"}, ratios) == [1] * 5


def test_corrections_by_sample() -> None:
    """Sample 0: ratios 4 and 1 (product 4, geometric mean 2); sample 1: 1/2 and 1/2."""
    ratios, samples = [4.0, 1.0, 0.5, 0.5], [0, 0, 1, 1]
    product = {"level": "sequence", "high": 3}
    assert weights(product, ratios, samples=samples) == pytest.approx([3, 3, 0.25, 0.25])
    mean = {"level": "geometric", "weight": "mask", "low": 0.6, "high": 3}
    assert weights(mean, ratios, samples=samples) == pytest.approx([2, 2, 0, 0])


def test_only_bad_samples_that_drifted_are_left_out() -> None:
    """mean log(sampler / policy) = log 2 > 0.5 for both; only A < 0 is dropped
    (arXiv:2512.02556)."""
    cfg = {"weight": "none", "max_sequence_kl": 0.5}
    moved = [0.5] * 4
    kept = weights(cfg, [1.0] * 4, samples=[0, 0, 1, 1], advantages=[-1, -1, 1, 1], moved=moved)
    assert kept == [0, 0, 1, 1]
    assert weights(cfg, [1.0], advantages=[-1.0], moved=[0.9]) == [1]


def test_the_kl_s_scale_follows_its_target() -> None:
    """KL at twice its target: the error is clipped to 0.2; scale *= 1 + 0.1 * 0.2."""
    cfg = AlgorithmConfig.model_validate({"kl": {"coef": 0.1, "target": 0.5}})
    controls = Controls.start(cfg)
    controls.follow(cfg, {"kl_held": 1.0})
    assert controls.kl_scale == pytest.approx(1.02)
    controls.follow(cfg, {"kl_held": 0.45})
    assert controls.kl_scale == pytest.approx(1.02 * 0.99)
    controls.follow(cfg, {})
    assert controls.kl_scale == pytest.approx(1.02 * 0.99)


def test_the_entropy_bonus_acts_and_grows_while_entropy_is_low() -> None:
    cfg = AlgorithmConfig.model_validate({"entropy": {"coef": 0.01, "target": 1, "step": 0.004}})
    controls = Controls.start(cfg)
    seen = []
    for entropy in (0.5, 0.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.0):
        controls.follow(cfg, {"entropy": entropy})
        seen.append((round(controls.entropy_coef, 9), round(controls.bonus(cfg), 9)))
    grown = [(0.014, 0.014), (0.018, 0.018)]
    shrunk = [(0.014, 0), (0.01, 0), (0.006, 0), (0.002, 0), (0, 0)]
    assert seen == [*grown, *shrunk, (0.004, 0.004)]


def test_without_targets_nothing_moves() -> None:
    cfg = AlgorithmConfig.model_validate({"entropy": {"coef": 0.01}, "kl": {"coef": 1}})
    controls = Controls.start(cfg)
    controls.follow(cfg, {"entropy": 0.0, "kl_held": 9.0})
    assert controls == Controls.start(cfg) and controls.bonus(cfg) == 0.01


def test_what_trust_region_does_not_weigh_is_not_shown_as_weighed() -> None:
    """Its ratio is to the sampler, so a correction masks and weighs nothing."""
    x = inputs([1.0, 2.0], [1.0, -1.0])
    weighed = dataclasses.replace(x, correction=torch.tensor([0.0, 0.5]))
    out = trust_region(weighed)
    assert out.total.item() == trust_region(x).total.item()
    shown = {n: m for n, m in out.metrics.items() if isinstance(m, Mean)}
    assert shown["mismatch/masked"].numerator.item() == 0
    assert shown["mismatch/correction"].numerator.item() == 2
