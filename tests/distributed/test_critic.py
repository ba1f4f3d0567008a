"""The critic's gradient does not depend on how its samples were split, packed or partitioned; its
state survives a checkpoint to the bit; and epochs are what they say."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

RunWorld = Callable[[str, int, Path, Path], None]
TOLERANCE = 1e-5
CLIP = 0.2


@pytest.fixture(scope="module")
def cases(load_cases: Callable[[str], ModuleType]) -> ModuleType:
    """The module of the ranks' modes."""
    return load_cases("critic_cases")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, worker: ModuleType, cases: ModuleType) -> Path:
    folder = tmp_path_factory.mktemp("models")
    worker.make_model(folder / "tied")
    cases.make_classifier(folder / "classifier", folder / "tied")
    return folder


def naive(models: Path, worker: ModuleType, cases: ModuleType) -> dict[str, object]:
    """Values, loss, gradients and metrics of the clipped value loss, one sample at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(
        models / "classifier", dtype=torch.float32
    ).eval()
    samples = worker.make_samples()
    said, losses, clipped, returns, before = [], [], [], [], []
    for sample, target in zip(samples, cases.make_targets(samples), strict=True):
        ids = torch.from_numpy(sample.token_ids).long()
        hidden = model.model(ids.unsqueeze(0)).last_hidden_state[0]
        for t in np.flatnonzero(sample.loss_mask):
            value = model.score(hidden[t - 1])[0]
            old, wanted = float(target.values[t]), float(target.returns[t])
            near = old + torch.clamp(value - old, -CLIP, CLIP)
            plain, held = (value - wanted) ** 2, (near - wanted) ** 2
            losses.append(0.5 * torch.maximum(plain, held))
            clipped.append(float(held > plain))
            said.append(value.item())
            returns.append(wanted)
            before.append(old)
    loss = torch.stack(losses).mean()
    loss.backward()
    gap = np.array(returns) - np.array(before)
    return {
        "said": np.array(said),
        "gradients": {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None},
        "loss": loss.item(),
        "clip_fraction": float(np.mean(clipped)),
        "explained_variance": 1 - np.var(gap) / np.var(returns),
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", (1, 2))
def test_gradients_are_those_of_the_naive_loss(
    world: int,
    models: Path,
    worker: ModuleType,
    cases: ModuleType,
    run_world: RunWorld,
    tmp_path: Path,
) -> None:
    """ZeRO 0, 2 and 3 x layouts, and a rank without tokens; a critic that is new says 0."""
    run_world("critic_gradients", world, models, tmp_path)
    wanted = naive(models, worker, cases)
    gradients = wanted["gradients"]
    assert isinstance(gradients, dict)
    mask = np.concatenate([s.loss_mask for s in worker.make_samples()])
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) == len(cases.STAGES) * 4
    largest = max(np.abs(g).max() for g in gradients.values())
    for file in files:
        seen = np.load(file)
        np.testing.assert_allclose(seen["values"][mask], wanted["said"], atol=1e-5)
        assert not seen["values"][~mask].any()
        assert {n for n in seen.files if n.startswith("g/")} == {f"g/{n}" for n in gradients}
        gap = max(np.abs(seen[f"g/{n}"] - g).max() for n, g in gradients.items()) / largest
        assert gap < TOLERANCE, file.name
        for name in ("loss", "clip_fraction", "explained_variance"):
            assert float(seen[f"m/{name}"]) == pytest.approx(wanted[name], rel=1e-4), name
    assert 0.1 < float(wanted["clip_fraction"]) < 0.9  # type: ignore[arg-type]


@pytest.mark.timeout(300)
def test_resume_and_epochs(
    models: Path, cases: ModuleType, run_world: RunWorld, tmp_path: Path
) -> None:
    """Save, load and go on gives bitwise what not stopping does, over two shuffled epochs a step;
    and an epoch more is the same mini-batch again, under logprobs frozen before the first."""
    run_world("critic_resume", 2, models, tmp_path)
    reports = [json.loads((tmp_path / f"critic_resume_{r}.json").read_text()) for r in (0, 1)]
    for stage in cases.STAGES:
        report = reports[0][str(stage)]
        assert report["resumed"] == report["rest"] == reports[1][str(stage)]["rest"]
        assert report["rolled_back"] == report["rest"]
        assert report["rest"] != report["first"]
        assert report["steps"] == 4 * 2 * 2
        half = len(report["skipped"]) // 2  # what was left out left no trace
        assert report["skipped"][:half] == report["skipped"][half:]
        assert report["skipped"][2] == 0 < report["skipped"][3]
    for report in reports:
        policy = report["policy"]
        (first, second), metrics = policy["by_hand"], policy["metrics"]
        assert policy["same_weights"] and policy["updates"] == 2
        assert metrics["loss"] == pytest.approx((first[0] + second[0]) / 2, rel=1e-12)
        assert metrics["lr"] == second[1] == 2 * first[1]  # warm-up counts optimizer steps
        assert metrics["loss_tokens"] == first[2]
        assert metrics["minibatches"] == 2
        assert metrics["ratio/first_minibatch_max_deviation"] < 1e-4
        assert metrics["ratio/max_deviation"] > 1e-3
