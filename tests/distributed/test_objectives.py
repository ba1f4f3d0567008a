"""Every loss, aggregation and correction: the same gradients in any layout, and those of a naive
implementation that walks sample by sample."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from configs.algorithm import AlgorithmConfig
from rollouts.types import TrainingSample

RunWorld = Callable[[str, int, Path, Path], None]
TOLERANCE = 1e-5


def surrogate(
    algorithm: AlgorithmConfig,
    now: Tensor,
    proximal: Tensor,
    rollout: Tensor,
    advantage: Tensor,
    bounds: tuple[Tensor, Tensor],
) -> Tensor:
    """What a sample's loss tokens [n] gain, written from the papers' formulas."""
    low, high = bounds
    ratio = torch.exp(now - proximal)
    use = algorithm.loss.use
    if use.endswith(":cross_entropy"):
        return now
    if use == "policy_gradient":
        gain = ratio * advantage
    elif use == "cispo":
        weight = torch.maximum(torch.minimum(ratio, 1 + high), 1 - low).detach()
        gain = weight * advantage * now
    elif use == "trust_region":
        ratio = torch.exp(now - rollout)
        far = (now.exp() - rollout.exp()).abs() > 0.15
        away = torch.sign(now - rollout) == torch.sign(advantage)
        return torch.where(far & away, 0.0, ratio) * advantage
    else:
        if use == "gspo":
            whole = torch.exp((now - proximal).mean())
            ratio = whole.detach() * now.exp() / now.exp().detach()
        clipped = torch.maximum(torch.minimum(ratio, 1 + high), 1 - low)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        dual = algorithm.loss.args.get("dual_clip")
        if isinstance(dual, float):
            gain = torch.where(advantage < 0, torch.maximum(gain, dual * advantage), gain)
    return weights(algorithm, now, proximal, rollout, advantage) * gain


def weights(
    algorithm: AlgorithmConfig, now: Tensor, proximal: Tensor, rollout: Tensor, advantage: Tensor
) -> Tensor:
    cfg = algorithm.correction
    gap = (proximal - rollout).detach()
    if cfg.level == "sequence":
        gap = gap.sum().expand_as(gap)
    elif cfg.level == "geometric":
        gap = gap.mean().expand_as(gap)
    ratio = gap.exp()
    if cfg.weight == "truncate":
        ratio = ratio.clamp(max=cfg.high)
    elif cfg.weight == "mask":
        ratio = ratio * ((ratio >= cfg.low) & (ratio <= cfg.high))
    else:
        ratio = torch.ones_like(ratio)
    if cfg.max_sequence_kl is not None and (rollout - now).mean() > cfg.max_sequence_kl:
        ratio = torch.where(advantage < 0, 0.0, ratio)
    return ratio.detach()


DEFAULTS = {"ppo_clip": (0.2, 0.2), "gspo": (3e-4, 4e-4), "cispo": (1.0, 4.0)}


def naive(
    model: torch.nn.Module, worker: ModuleType, algorithm: AlgorithmConfig
) -> tuple[dict[str, np.ndarray], float]:
    """Gradients and loss, one unpadded sample at a time."""
    model.zero_grad()
    samples: list[TrainingSample] = worker.make_samples()
    terms: list[Tensor] = []
    default = DEFAULTS.get(algorithm.loss.use, (0.0, 0.0))
    extras = zip(samples, worker.references(samples), worker.drifts(samples), strict=True)
    for sample, ref_row, drift_row in extras:
        mask = torch.from_numpy(sample.loss_mask[1:])
        ids = torch.from_numpy(sample.token_ids).long()
        logits = model(ids.unsqueeze(0)).logits[0, :-1]
        dist = torch.log_softmax(logits / torch.from_numpy(sample.temperature[1:, None]), -1)
        now = dist[torch.arange(len(ids) - 1), ids[1:]][mask]
        entropy = -(dist.exp() * dist).sum(-1)[mask]
        ref, drift, rollout, advantage, weight, low, high = (
            torch.from_numpy(row[1:])[mask] for row in rows(sample, ref_row, drift_row)
        )
        bounds = low.nan_to_num(default[0]), high.nan_to_num(default[1])
        gain = surrogate(algorithm, now, now.detach() - drift, rollout, advantage, bounds)
        k2 = 0.5 * (now - ref).square()
        k3 = torch.exp(ref - now) - 1 - (ref - now)
        kl = k3.detach() + k2 - k2.detach()
        per_token = weight * (0.1 * kl - gain - algorithm.entropy.coef * entropy)
        terms.append(per_token.mean() if algorithm.aggregation == "sequence_mean" else per_token)
    loss = torch.stack([t.sum() for t in terms]).sum() / denominator(algorithm, terms)
    loss.backward()
    found = {n: p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
    return found, loss.item()


def rows(sample: TrainingSample, ref: np.ndarray, drift: np.ndarray) -> Iterator[np.ndarray]:
    yield from (ref, drift, sample.rollout_logprobs, sample.advantages, sample.loss_weight)
    yield from (sample.clip_low, sample.clip_high)


def denominator(algorithm: AlgorithmConfig, terms: list[Tensor]) -> int:
    if algorithm.aggregation == "token_mean":
        return sum(t.numel() for t in terms)
    return len(terms) * (20 if algorithm.aggregation == "constant" else 1)


@pytest.mark.timeout(300)
def test_every_objective_has_the_naive_gradients_in_every_layout(
    worker: ModuleType, run_world: RunWorld, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    worker.make_model(models / "tied", tied=True)
    for world in (1, 2):
        out = tmp_path / str(world)
        out.mkdir()
        run_world("objectives", world, models, out)
    model = AutoModelForCausalLM.from_pretrained(models / "tied", dtype=torch.float32).eval()
    wrong = []
    for name, section in worker.objectives().items():
        algorithm = AlgorithmConfig.model_validate(section)
        gradients, loss = naive(model, worker, algorithm)
        largest = max(np.abs(g).max() for g in gradients.values())
        files = sorted(tmp_path.glob(f"[12]/of_{name}.*.npz"))
        assert len(files) == 3, name
        for file in files:
            seen = np.load(file)
            gap = max(np.abs(seen[f"g/{n}"] - g).max() for n, g in gradients.items()) / largest
            if gap > TOLERANCE or abs(float(seen["loss"]) - loss) > TOLERANCE * max(abs(loss), 0.1):
                wrong.append((name, file.name, gap, float(seen["loss"]), loss))
    assert not wrong


def test_the_cases_are_told_apart(worker: ModuleType, tmp_path: Path) -> None:
    """No case is another one in disguise: on these samples all naive losses differ."""
    worker.make_model(tmp_path / "tied", tied=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tied", dtype=torch.float32).eval()
    losses = {
        name: round(naive(model, worker, AlgorithmConfig.model_validate(s))[1], 7)
        for name, s in worker.objectives().items()
    }
    same = {"none-token", "none-sequence", "none-geometric"}
    apart = [v for n, v in losses.items() if n not in same]
    assert len(set(apart)) == len(apart), losses
