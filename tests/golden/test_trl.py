"""Losses, KL and masks equal those of TRL's own code, on random inputs, with their gradients.

`GRPOTrainer._compute_loss` itself runs here, on a stand-in for its trainer: the network's
logprobs are leaves, given padded to TRL and packed to us.
"""

from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from trl import import_utils

import_utils.is_vllm_available = lambda *_, **__: False  # spares its import of the engine
from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: E402
from trl.trainer.utils import nanstd  # noqa: E402

from configs.algorithm import AlgorithmConfig  # noqa: E402
from rollouts.advantages import STD_EPS, grpo, mean_baseline, rloo  # noqa: E402
from rollouts.packing import assemble  # noqa: E402
from rollouts.types import TrainingSample  # noqa: E402
from trainer.batch import to_device  # noqa: E402
from trainer.controls import Controls  # noqa: E402
from trainer.engine import Minibatch, PolicyEngine  # noqa: E402
from trainer.objectives import resolve_loss  # noqa: E402

ROWS, LONGEST, MOST = 6, 9, 20
SEEDS = range(20)

KL = {"coef": 0.07, "estimator": "k3"}
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # ours, theirs
    "grpo": (
        {"loss": {"use": "ppo_clip", "args": CLIP}, "aggregation": "sequence_mean", "kl": KL},
        {"loss_type": "grpo"},
    ),
    "bnpo": (
        {"loss": {"use": "ppo_clip", "args": CLIP}, "kl": KL},
        {"loss_type": "bnpo"},
    ),
    "dapo": (
        {"loss": {"use": "ppo_clip", "args": CLIP}},
        {"loss_type": "dapo", "beta": 0.0},
    ),
    "dr_grpo": (
        {"loss": {"use": "ppo_clip", "args": CLIP}, "aggregation": "constant", "kl": KL,
         "constant_tokens": MOST},
        {"loss_type": "dr_grpo"},
    ),
    "two-sided clip": (
        {"loss": {"use": "ppo_clip", "args": {**CLIP, "dual_clip": 1.3}}, "kl": KL},
        {"loss_type": "bnpo", "delta": 1.3},
    ),
    "gspo": (
        {"loss": {"use": "gspo", "args": {"clip_low": 0.05, "clip_high": 0.1}},
         "aggregation": "sequence_mean", "kl": KL},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "low": 0.05, "high": 0.1},
    ),
    "cispo": (
        {"loss": {"use": "cispo", "args": {"clip_low": 1.0, "clip_high": 0.5}}, "kl": KL},
        {"loss_type": "cispo", "high": 1.5},  # theirs is the bound itself, not its distance to 1
    ),
    "off-policy sequence mask": (
        {"loss": {"use": "ppo_clip", "args": CLIP}, "kl": {"coef": 0.0},
         "correction": {"weight": "none", "max_sequence_kl": 0.02}},
        {"loss_type": "bnpo", "beta": 0.0, "off_policy_mask_threshold": 0.02},
    ),
    "truncated importance sampling": (
        {"loss": {"use": "ppo_clip", "args": CLIP}, "kl": KL,
         "correction": {"weight": "truncate", "high": 1.2}},
        {"loss_type": "bnpo", "correction": 1.2},
    ),
    "entropy bonus": (
        {"loss": {"use": "ppo_clip", "args": CLIP}, "kl": KL, "entropy": {"coef": 0.03}},
        {"loss_type": "bnpo", "entropy_coef": 0.03},
    ),
}  # fmt: skip


class Inputs:
    """Random completions, padded [B, L] as TRL wants them; logprobs and entropies are leaves."""

    def __init__(self, seed: int):
        rng = torch.Generator().manual_seed(seed)

        def normal(mean: float, std: float) -> Tensor:
            drawn = torch.randn(ROWS, LONGEST, generator=rng, dtype=torch.float64)
            return (mean + std * drawn).float()

        lengths = torch.randint(1, LONGEST + 1, (ROWS, 1), generator=rng)
        self.mask = torch.arange(LONGEST) < lengths
        self.policy = normal(-2.0, 0.4)
        self.old = self.policy + normal(0.0, 0.25)
        self.rollout = self.old + normal(0.0, 0.15)
        self.ref = self.policy + normal(0.0, 0.3)
        self.entropy = normal(1.0, 0.2)
        self.advantages = torch.randn(ROWS, generator=rng)

    def samples(self, kl_coef: float) -> list[TrainingSample]:
        """The same rows as ours, each after one token of prompt."""

        def stream(row: Tensor, n: int) -> np.ndarray:
            return np.concatenate([[0], row[:n].numpy()]).astype(np.float32)

        found = []
        for i, n in enumerate(self.mask.sum(1).tolist()):
            one = np.ones(n + 1, np.float32)
            found.append(
                TrainingSample(
                    group_id="g",
                    index=i,
                    token_ids=np.zeros(n + 1, np.int32),
                    loss_mask=np.arange(n + 1) > 0,
                    rollout_logprobs=stream(self.rollout[i], n),
                    advantages=stream(self.advantages[i].expand(n), n),
                    loss_weight=one,
                    kl_coef=one * np.float32(kl_coef),
                    clip_low=one * np.nan,
                    clip_high=one * np.nan,
                    temperature=one,
                )
            )
        return found

    def packed(self, values: Tensor) -> Tensor:
        """[B, L] -> [T], 0 on the prompts' tokens."""
        rows = [torch.cat([torch.zeros(1), v[m]]) for v, m in zip(values, self.mask, strict=True)]
        return torch.cat(rows)


def ours(x: Inputs, section: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Loss and its gradient by the policy's logprobs and entropies [B, L]."""
    algorithm = AlgorithmConfig.model_validate(section)
    policy, entropy = x.policy.clone().requires_grad_(), x.entropy.clone().requires_grad_()
    engine: Any = SimpleNamespace(
        cfg=SimpleNamespace(algorithm=algorithm, constant_tokens=algorithm.constant_tokens),
        _controls=Controls.start(algorithm),
    )
    samples = x.samples(algorithm.kl.coef)
    refs = [np.zeros(len(s.token_ids), np.float32) for s in samples]
    for row, ref, n in zip(refs, x.ref, x.mask.sum(1).tolist(), strict=True):
        row[1:] = ref[:n].numpy()
    batch = to_device(assemble(samples, refs), torch.device("cpu"))
    inputs = PolicyEngine._loss_inputs(
        engine, batch, x.packed(policy), x.packed(entropy), x.packed(x.old)
    )
    minibatch = Minibatch(micro_batches=(), num_loss_tokens=int(x.mask.sum()), num_samples=ROWS)
    total = resolve_loss(algorithm.loss)(inputs).total
    loss = total / PolicyEngine._denominator(engine, minibatch)
    loss.backward()
    assert policy.grad is not None
    parts = [policy.grad, torch.zeros_like(entropy) if entropy.grad is None else entropy.grad]
    return loss.detach(), torch.stack(parts)


def theirs(x: Inputs, knobs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The same of TRL's."""
    policy, entropy = x.policy.clone().requires_grad_(), x.entropy.clone().requires_grad_()
    accelerator = SimpleNamespace(
        num_processes=1, sync_gradients=True, gather=lambda t: t, reduce=lambda t, reduction: t
    )
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=True),
        _get_per_token_logps_and_entropies=lambda *_, **__: (policy, entropy, None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=knobs.get("off_policy_mask_threshold"),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        importance_sampling_level=knobs.get("importance_sampling_level", "token"),
        beta=knobs.get("beta", 0.07),
        loss_type=knobs["loss_type"],
        epsilon_low=knobs.get("low", 0.2),
        epsilon_high=knobs.get("high", 0.28),
        args=SimpleNamespace(
            use_bias_correction_kl=False, delta=knobs.get("delta"), steps_per_generation=1
        ),
        use_vllm="correction" in knobs,
        vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1,
        max_completion_length=MOST,
        accelerator=accelerator,
        _entropy_bonus_enabled="entropy_coef" in knobs,
        use_adaptive_entropy=False,
        entropy_coef=knobs.get("entropy_coef", 0.0),
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(ROWS, 1, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 1, dtype=torch.long),
        "completion_ids": torch.zeros(ROWS, LONGEST, dtype=torch.long),
        "completion_mask": x.mask.long(),
        "advantages": x.advantages,
        "old_per_token_logps": x.old,
        "sampling_per_token_logps": x.rollout,
        "ref_per_token_logps": x.ref,
        "num_items_in_batch": x.mask.sum(),
        "importance_sampling_ratio": torch.exp(x.old - x.rollout).clamp(
            max=knobs.get("correction", 1.0)
        ),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    assert policy.grad is not None
    parts = [policy.grad, torch.zeros_like(entropy) if entropy.grad is None else entropy.grad]
    return loss.detach(), torch.stack(parts)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_equal_trls(name: str) -> None:
    section, knobs = CASES[name]
    section = {"correction": {"weight": "none"}, **section}
    for seed in SEEDS:
        x = Inputs(seed)
        (loss, gradient), (expected, wanted) = ours(x, section), theirs(x, knobs)
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_the_cases_are_told_apart() -> None:
    """No case passes because its setting does nothing: all losses differ on the same inputs."""
    losses = {n: float(theirs(Inputs(0), knobs)[0]) for n, (_, knobs) in CASES.items()}
    assert len({round(v, 6) for v in losses.values()}) == len(losses), losses


@pytest.mark.parametrize("seed", SEEDS)
def test_advantages_equal_trls_but_for_the_spread(seed: int) -> None:
    """TRL divides by the deviation over G - 1 and adds 1e-4; we divide by that over G (DeepSeek's
    paper says std and no more) and add 1e-6: the same but for the factor sqrt(G / (G - 1))."""
    rewards = np.random.default_rng(seed).normal(size=8)
    grouped = torch.from_numpy(rewards).view(1, -1)
    centred = (grouped - torch.nanmean(grouped, dim=1, keepdim=True)).numpy()[0]
    spread = float(nanstd(grouped, dim=1)[0])
    np.testing.assert_allclose(mean_baseline(rewards), centred, rtol=1e-9)
    np.testing.assert_allclose(
        grpo(rewards) * (rewards.std() + STD_EPS), centred / (spread + 1e-4) * (spread + 1e-4)
    )
    assert spread == pytest.approx(rewards.std() * np.sqrt(8 / 7))
    others = (rewards.sum() - rewards) / 7
    np.testing.assert_allclose(rloo(rewards), rewards - others, rtol=1e-9)
