"""Reward models: the Bradley-Terry gradient in every layout, and the export that graders load."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from configs.engines import ModelConfig
from trainer.export import main as export
from trainer.reward_scorer import RewardScorer

RunWorld = Callable[[str, int, Path, Path], None]
TOLERANCE = 1e-5


@pytest.mark.timeout(300)
def test_the_gradient_does_not_hang_on_the_layout_and_the_export_scores_alike(
    worker: ModuleType,
    load_cases: Callable[[str], ModuleType],
    run_world: RunWorld,
    tmp_path: Path,
) -> None:
    pairs = load_cases("preference_cases").make_pairs()
    models = tmp_path / "models"
    worker.make_classifier(models / "classifier")
    for world in (1, 2):
        out = tmp_path / str(world)
        out.mkdir()
        run_world("preferences", world, models, out)

    model = AutoModelForSequenceClassification.from_pretrained(models / "classifier").float().eval()
    margins = []
    for pair in pairs:
        rows = [torch.from_numpy(s.token_ids).long().unsqueeze(0) for s in pair]
        masks = [torch.ones_like(r) for r in rows]
        better, worse = (
            model(input_ids=r, attention_mask=m).logits[0, 0]
            for r, m in zip(rows, masks, strict=True)
        )
        margins.append(better - worse)
    loss = -torch.nn.functional.logsigmoid(torch.stack(margins)).mean()
    loss.backward()
    gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    largest = max(np.abs(g).max() for g in gradients.values())
    files = sorted(tmp_path.glob("[12]/zero_*.npz"))
    assert len(files) == 18
    for file in files:
        seen = np.load(file)
        assert float(seen["loss"]) == pytest.approx(loss.item(), rel=1e-5), file
        for name, expected in gradients.items():
            gap = np.abs(seen[f"g/{name}"] - expected).max() / largest
            assert gap < TOLERANCE, (file, name)

    steps = json.loads((tmp_path / "2" / "steps.json").read_text())
    assert steps[-1]["loss"] < steps[0]["loss"] / 2
    assert steps[-1]["accuracy"] == 1

    model_path = str(models / "classifier")
    arguments = [str(tmp_path / "2" / "checkpoint"), model_path, str(tmp_path / "exported")]
    assert export([*arguments, "--reward-model"]) == 0
    cfg = ModelConfig(path=str(tmp_path / "exported"), dtype="float32", max_model_len=64)
    rows = [s.token_ids.tolist() for pair in pairs for s in pair]
    scores = RewardScorer(cfg).score(rows)
    np.testing.assert_allclose(scores, np.load(tmp_path / "2" / "scores.npy"), atol=1e-4)
