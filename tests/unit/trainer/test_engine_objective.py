"""That the engine reads every knob of `algorithm`: gradients of a network that is one number a
token, against the formulas written out token by token, without DeepSpeed."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.schema import RunConfig
from rollouts.packing import assemble
from rollouts.types import F32, TrainingSample
from trainer.controls import Controls
from trainer.engine import Minibatch, PolicyEngine
from trainer.loss import LossInputs, LossOutput, finish
from trainer.objectives import resolve_loss
from trainer.update import Update

SIZES = (5, 7, 4, 6)
PROMPT = 2
MAX_TOKENS = 9


@pytest.fixture(autouse=True)
def single_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/meet")
    yield
    dist.destroy_process_group()


class Numbers(nn.Module):
    """Logprob and entropy of each token, whatever stands before it."""

    def __init__(self, count: int):
        super().__init__()
        dice = np.random.default_rng(5)
        self.logprobs = nn.Parameter(torch.tensor(dice.normal(-2, 0.3, count), dtype=torch.float32))
        self.entropies = nn.Parameter(torch.tensor(dice.uniform(0.5, 2, count)).float())

    def forward(self, ids: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        mask = rest[-1].float()
        return self.logprobs[ids] * mask, self.entropies[ids] * mask


class Bare(PolicyEngine):
    """The engine without DeepSpeed: it notes gradients, and moves the weights by plain descent."""

    def __init__(self, cfg: RunConfig, count: int):
        self.cfg, self.rank, self.world_size, self._copies = cfg, 0, 1, 1
        self.device = torch.device("cpu")
        self.network = self._engine = Numbers(count)  # type: ignore[assignment]
        self._loss = resolve_loss(cfg.algorithm.loss)
        self._controls = Controls.start(cfg.algorithm)
        self.gradients: list[dict[str, np.ndarray]] = []
        self._begin(1)

    def _backward(self, total: Tensor, denominator: int, *, last: bool) -> None:
        (total / denominator).backward()

    def _optimizer_step(self, loss: float) -> Update:
        found: dict[str, np.ndarray] = {}
        for name, parameter in self.network.named_parameters():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found[name] = grad.numpy().astype(np.float64)
            parameter.data -= 0.2 * grad
            parameter.grad = None
        self.gradients.append(found)
        return Update(grad_norm=1.0, lr=1.0, applied=True)


def recipe(algorithm: Mapping[str, Any], **batch: int) -> RunConfig:
    source = {
        "name": "s",
        "data": {"procedural": "reasoning_gym/lcm"},
        "rewards": [{"name": "r", "use": "exact"}],
        "sampling": {"max_tokens": MAX_TOKENS},
    }
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 4,
            "model": {"path": "m", "dtype": "float32"},
            "sources": [source],
            "batch": {"groups_per_step": 1, **batch},
            "algorithm": algorithm,
        }
    )


def make_samples(kl_coefs: Sequence[float] = (0.3, 0.3, 0.1, 0.1)) -> list[TrainingSample]:
    """Samples of tokens that occur once, so that each has a gradient of its own."""
    dice, first, samples = np.random.default_rng(3), 0, list[TrainingSample]()
    for i, (size, kl_coef) in enumerate(zip(SIZES, kl_coefs, strict=True)):
        mask = np.arange(size) >= PROMPT
        mask[-2] = False  # something that the policy did not write

        def stream(values: np.ndarray, mask: np.ndarray = mask) -> F32:
            return np.where(mask, values, 0).astype(np.float32)

        samples.append(
            TrainingSample(
                group_id="g",
                index=i,
                token_ids=np.arange(first, first + size, dtype=np.int32),
                loss_mask=mask,
                rollout_logprobs=stream(dice.normal(-2, 0.3, size)),
                advantages=stream(dice.normal(size=size)),
                loss_weight=np.full(size, (1.0, 0.5)[i % 2], np.float32),
                kl_coef=np.full(size, kl_coef, np.float32),
                clip_low=np.full(size, np.nan, np.float32),
                clip_high=np.full(size, np.nan, np.float32),
                temperature=np.ones(size, np.float32),
            )
        )
        first += size
    return samples


def references(samples: Sequence[TrainingSample]) -> list[F32]:
    dice = np.random.default_rng(8)
    return [
        np.where(s.loss_mask, dice.normal(-2, 0.3, len(s.token_ids)), 0).astype(np.float32)
        for s in samples
    ]


def minibatch(samples: Sequence[TrainingSample], pieces: Sequence[Sequence[int]]) -> Minibatch:
    refs = references(make_samples())
    return Minibatch(
        micro_batches=tuple(
            assemble([samples[i] for i in piece], [refs[samples[i].index] for i in piece])
            for piece in pieces
        ),
        num_loss_tokens=sum(int(s.loss_mask.sum()) for s in samples),
        num_samples=len(samples),
    )


KL = {
    "k1": (lambda x: x, lambda x: 1.0),
    "k2": (lambda x: x * x / 2, lambda x: x),
    "k3": (lambda x: math.exp(-x) - 1 + x, lambda x: 1 - math.exp(-x)),
    "straight_through": (lambda x: math.exp(-x) - 1 + x, lambda x: x),
}
"""Value and gradient at log(policy / reference)."""


def by_hand(cfg: RunConfig, start: Numbers, kl_scale: float = 1.0) -> dict[str, np.ndarray]:
    """Gradients of the first update of REINFORCE, one token after the other."""
    algorithm, samples = cfg.algorithm, make_samples()
    now = start.logprobs.detach().double().numpy()
    slopes, bonus = np.zeros(len(now)), np.zeros(len(now))
    value, slope = KL[algorithm.kl.estimator]
    for sample, ref in zip(samples, references(samples), strict=True):
        own = np.flatnonzero(sample.loss_mask)
        divisor = {
            "token_mean": sum(int(s.loss_mask.sum()) for s in samples),
            "sequence_mean": len(own) * len(samples),
            "constant": len(samples) * (algorithm.constant_tokens or MAX_TOKENS),
        }[algorithm.aggregation]
        coef = float(sample.kl_coef[0]) * kl_scale
        for t in own:
            token = sample.token_ids[t]
            gain = float(sample.advantages[t])
            if algorithm.kl.placement == "reward":
                later = [u for u in own if u >= t]
                gaps = [float(sample.rollout_logprobs[u]) - float(ref[u]) for u in later]
                gain -= coef * sum(value(gap) for gap in gaps)
            weight = math.exp(now[token] - float(sample.rollout_logprobs[t]))
            if algorithm.correction.weight == "truncate":
                weight = min(weight, algorithm.correction.high)
            elif algorithm.correction.weight == "mask":
                inside = algorithm.correction.low <= weight <= algorithm.correction.high
                weight = weight if inside else 0.0
            else:
                weight = 1.0
            total = -weight * gain
            if algorithm.kl.placement == "loss":
                total += coef * slope(now[token] - float(ref[t]))
            slopes[token] = sample.loss_weight[t] * total / divisor
            bonus[token] = -sample.loss_weight[t] * algorithm.entropy.coef / divisor
    return {"logprobs": slopes, "entropies": bonus}


NO = {"weight": "none"}
OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    **{
        f"{placement}-{estimator}": {
            "kl": {"coef": 1, "placement": placement, "estimator": estimator},
            "correction": NO,
        }
        for placement in ("loss", "reward")
        for estimator in KL
    },
    **{f"aggregation-{a}": {"aggregation": a} for a in ("token_mean", "sequence_mean", "constant")},
    "constant_tokens": {"aggregation": "constant", "constant_tokens": 5},
    "truncate": {"correction": {"high": 1.1}},
    "mask": {"correction": {"weight": "mask", "low": 0.7, "high": 1.2}},
    "mask-lower": {"correction": {"weight": "mask", "low": 0.6, "high": 1.2}},
    "mask-higher": {"correction": {"weight": "mask", "low": 0.7, "high": 1.6}},
    "entropy": {"entropy": {"coef": 0.2}},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_worked_out_token_by_token(name: str) -> None:
    cfg = recipe({**OBJECTIVES[name], "loss": {"use": "policy_gradient"}})
    samples = make_samples()
    for pieces in ([[0, 1, 2, 3]], [[2, 0], [], [3, 1]]):
        engine = Bare(cfg, sum(SIZES))
        wanted = by_hand(cfg, engine.network)
        engine.train_step(1, [minibatch(samples, pieces)])
        for parameter, gradient in engine.gradients[0].items():
            np.testing.assert_allclose(gradient, wanted[parameter], atol=2e-6)


def test_no_two_objectives_are_the_same() -> None:
    seen: dict[bytes, str] = {}
    for name, section in OBJECTIVES.items():
        cfg = recipe({**section, "loss": {"use": "policy_gradient"}})
        found = by_hand(cfg, Numbers(sum(SIZES)))
        rounded = np.round(np.concatenate([found["logprobs"], found["entropies"]]), 6)
        seen.setdefault(rounded.tobytes(), name)
    # straight_through has k3's value, which counts in the reward, and k2's gradient
    twins = {"reward-straight_through", "loss-straight_through"}
    assert set(OBJECTIVES) - set(seen.values()) == twins


def plain(x: LossInputs) -> LossOutput:
    """A loss of one's own that shows nothing."""
    return finish(x, x.advantages * x.policy_logprobs, {})


@pytest.fixture
def own_loss(monkeypatch: pytest.MonkeyPatch) -> str:
    module = ModuleType("losses_of_engine_test")
    module.plain = plain  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return f"{module.__name__}:plain"


def held_kl(engine: Bare, samples: Sequence[TrainingSample]) -> float:
    """k3 a token, of those with a coefficient, under the weights as they are."""
    now, found = engine.network.logprobs.detach().double().numpy(), list[float]()
    refs = references(make_samples())
    for sample in samples:
        for t in np.flatnonzero(sample.loss_mask & (sample.kl_coef > 0)):
            found.append(KL["k3"][0](now[sample.token_ids[t]] - float(refs[sample.index][t])))
    return float(np.mean(found))


@pytest.mark.parametrize("loss", ["policy_gradient", "own"])
@pytest.mark.parametrize("gain", [0.1, 0.5])
def test_the_kl_s_scale_follows_the_tokens_that_it_holds(
    loss: str, gain: float, own_loss: str
) -> None:
    """Two samples are free to leave the reference, and are far from it; the target is the KL of
    the others, so that the scale stays; at half of it, it rises by a fifth of the gain."""
    samples = make_samples((0.0, 0.0, 0.1, 0.1))
    free = [s for s in samples if s.kl_coef[0] == 0]
    use = own_loss if loss == "own" else loss
    for part, factor in ((1.0, 1.0), (0.5, 1 + 0.2 * gain), (1.1, 1 + gain * (1 / 1.1 - 1))):
        target = part * held_kl(Bare(recipe({"loss": {"use": use}}), sum(SIZES)), samples)
        kl = {"coef": 0.1, "target": target, "gain": gain}
        engine = Bare(recipe({"loss": {"use": use}, "kl": kl}), sum(SIZES))
        for sample in free:
            engine.network.logprobs.data[sample.token_ids.astype(np.int64)] += 3
        engine.train_step(1, [minibatch(samples, [[0, 2], [3, 1]])])
        assert engine._controls.kl_scale == pytest.approx(factor, rel=1e-5)


def test_a_moved_scale_acts_on_the_next_step() -> None:
    for placement in ("loss", "reward"):
        kl = {"coef": 0.1, "target": 0.01, "placement": placement}
        cfg = recipe({"loss": {"use": "policy_gradient"}, "kl": kl, "correction": NO})
        engine = Bare(cfg, sum(SIZES))
        engine._controls.kl_scale = 2.5
        wanted = by_hand(cfg, engine.network, kl_scale=2.5)
        engine.train_step(1, [minibatch(make_samples(), [[0, 1, 2, 3]])])
        np.testing.assert_allclose(engine.gradients[0]["logprobs"], wanted["logprobs"], atol=2e-6)


@pytest.mark.parametrize("loss", ["policy_gradient", "own"])
def test_the_entropy_s_coefficient_follows_whatever_the_loss_shows(
    loss: str, own_loss: str
) -> None:
    use = own_loss if loss == "own" else loss
    for target, coef in ((9.0, 0.3), (0.01, 0.1)):
        entropy = {"coef": 0.2, "target": target, "step": 0.1}
        engine = Bare(recipe({"loss": {"use": use}, "entropy": entropy}), sum(SIZES))
        engine.train_step(1, [minibatch(make_samples(), [[0, 1], [2, 3]])])
        assert engine._controls.entropy_coef == pytest.approx(coef)


@pytest.mark.parametrize(("minibatches", "epochs"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_every_epoch_passes_over_every_minibatch_under_frozen_logprobs(
    minibatches: int, epochs: int
) -> None:
    cfg = recipe({"loss": {"use": "policy_gradient"}}, epochs_per_step=epochs)
    engine = Bare(cfg, sum(SIZES))
    before = engine.network.logprobs.detach().double().numpy().copy()
    samples = make_samples((0.0,) * 4)
    cuts = np.array_split(np.arange(len(samples)), minibatches)
    parts = [minibatch([samples[i] for i in cut], [list(range(len(cut)))]) for cut in cuts]
    found = engine.train_step(1, parts)
    assert len(engine.gradients) == minibatches * epochs
    assert found.metrics["minibatches"] == minibatches * epochs
    assert found.metrics["loss_tokens"] == sum(int(s.loss_mask.sum()) for s in samples)
    # policy_gradient's ratio is to the logprobs before the first update: descend again by hand
    now = before.copy()
    for seen in engine.gradients:
        moving = [c for c in cuts if any(seen["logprobs"][samples[c[0]].token_ids])]
        (cut,) = moving
        tokens = sum(int(samples[i].loss_mask.sum()) for i in cut)
        for i in cut:
            s = samples[i]
            for t in np.flatnonzero(s.loss_mask):
                k = s.token_ids[t]
                weight = min(math.exp(before[k] - float(s.rollout_logprobs[t])), 2.0)
                ratio = math.exp(now[k] - before[k])
                wanted = -s.loss_weight[t] * weight * ratio * float(s.advantages[t]) / tokens
                assert seen["logprobs"][k] == pytest.approx(wanted, abs=2e-6)
        now -= 0.2 * seen["logprobs"]


@pytest.mark.parametrize("pieces", [[[0, 1, 2, 3]], [[2], [], [3, 0, 1]]])
def test_the_gap_between_sampler_and_trainer_is_shown(pieces: Sequence[Sequence[int]]) -> None:
    """Over all tokens of the step, however they were laid out: never a mean of means."""
    correction = {"weight": "mask", "low": 0.7, "high": 1.6}
    engine = Bare(recipe({"correction": correction}), sum(SIZES))
    now = engine.network.logprobs.detach().double().numpy()
    samples = make_samples()
    rollout = np.concatenate([s.rollout_logprobs[s.loss_mask] for s in samples]).astype(np.float64)
    trainer = np.concatenate([now[s.token_ids[s.loss_mask]] for s in samples])
    weights = np.exp(trainer - rollout)
    kept = (weights >= 0.7) & (weights <= 1.6)
    assert 0 < kept.sum() < len(kept)
    found = engine.train_step(1, [minibatch(samples, pieces)]).metrics
    wanted = {
        "kl": np.mean(weights - 1 - np.log(weights)),
        "chi2": np.mean(weights**2) - 1,
        "ess": weights.sum() ** 2 / (len(weights) * np.square(weights).sum()),
        "ppl_ratio": np.exp(-rollout.mean()) / np.exp(-trainer.mean()),
        "masked": 1 - kept.mean(),
        "correction": np.mean(weights * kept),
        "prob_diff": np.mean(np.abs(np.exp(trainer) - np.exp(rollout))),
        "max_gap": np.abs(trainer - rollout).max(),
    }
    for name, value in wanted.items():
        assert found[f"mismatch/{name}"] == pytest.approx(value, rel=1e-5), name
