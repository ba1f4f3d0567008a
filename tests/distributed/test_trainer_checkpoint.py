"""Save, load, go on: bitwise what not stopping gives; and the export that Hugging Face loads."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from configs.errors import ConfigError
from trainer.export import export, main

RunWorld = Callable[[str, int, Path, Path], None]
CHECKPOINTS = [
    (0, "float32"),
    (0, "bfloat16"),
    (1, "bfloat16"),
    (2, "float32"),
    (3, "float32"),
    (3, "bfloat16"),
]


@pytest.fixture(scope="module")
def resumed(
    tmp_path_factory: pytest.TempPathFactory, worker: ModuleType, run_world: RunWorld
) -> Path:
    """Run the resume worlds once; the folder holds their checkpoints and reports."""
    folder = tmp_path_factory.mktemp("resume")
    worker.make_model(folder / "models" / "tied", tied=True)
    run_world("resume", 2, folder / "models", folder)
    return folder


@pytest.mark.timeout(300)
def test_resume_is_bitwise_no_resume(resumed: Path) -> None:
    reports = [json.loads((resumed / f"resume_2_{rank}.json").read_text()) for rank in (0, 1)]
    assert len(reports[0]) == len(CHECKPOINTS)
    for report in reports:
        for case, seen in report.items():
            assert seen["same_weights"], case
            assert seen["resumed"] == seen["rolled_back"] == seen["rest"], case
            assert seen["rest"] != seen["first"], case
            assert seen["draws"] == [seen["draws"][0]] * 3, case
            assert seen["steps"] == 8, case
    # the ranks' generators are their own, their metrics are shared
    for case in reports[0]:
        assert reports[0][case]["draws"] != reports[1][case]["draws"]
        assert reports[0][case]["rest"] == reports[1][case]["rest"]


@pytest.mark.timeout(300)
def test_metrics_of_a_step(resumed: Path) -> None:
    """Warm-up of two updates, then a decay to 0 at the last of eight; frozen proximal logprobs,
    numbers that are there and finite."""
    report = json.loads((resumed / "resume_2_0.json").read_text())
    for case, seen in report.items():
        first, second = seen["first"]
        rates = [step["lr"] for step in (first, second, *seen["rest"])]
        assert rates == pytest.approx([1e-2, 8e-3, 4e-3, 0.0]), case
        assert first["minibatches"] == 2, case
        deviation = first["ratio/first_minibatch_max_deviation"]
        assert deviation <= (1e-4 if "float32" in case else 2e-2), case
        # the second minibatch runs after an update: its ratio has moved
        assert first["ratio/max_deviation"] > 1e-3, case
        assert 0 < first["grad_norm"] <= first["grad_norm_max"], case
        assert all(np.isfinite(v) for v in first.values()), case
        assert {"entropy", "kl_ref", "clip/low", "clip/high", "mismatch/kl"} <= first.keys()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("stage", "dtype"), CHECKPOINTS)
def test_export_loads_in_transformers_with_the_engines_logprobs(
    stage: int, dtype: str, resumed: Path, worker: ModuleType, tmp_path: Path
) -> None:
    folder = resumed / f"ckpt_{stage}_{dtype}_2"
    out = tmp_path / "hf"
    export(folder, str(resumed / "models" / "tied"), out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == getattr(torch, dtype)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (resumed / "models" / "tied" / name).read_bytes()
    start = AutoModelForCausalLM.from_pretrained(resumed / "models" / "tied")
    moved = (model.lm_head.weight.float() - start.lm_head.weight).abs().max().item()
    assert moved > 1e-3, "the export holds the weights that the run started from"

    samples = worker.make_samples(99)
    expected = np.load(folder / "logprobs.npy")
    mine = []
    for sample in samples:
        ids = torch.from_numpy(sample.token_ids).long()
        with torch.no_grad():
            logits = model(ids.unsqueeze(0)).logits[0, :-1].float()
        tempered = logits / torch.from_numpy(sample.temperature[1:]).unsqueeze(1)
        scored = torch.log_softmax(tempered, -1)[torch.arange(len(ids) - 1), ids[1:]]
        mine += [0.0, *torch.where(torch.from_numpy(sample.loss_mask[1:]), scored, 0).tolist()]
    gap = np.abs(np.array(mine) - expected)
    assert gap.max() < (1e-5 if dtype == "float32" else 0.1)


def test_export_refuses_what_it_cannot_do(
    resumed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(resumed / "models" / "tied")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        export(resumed / "ckpt_2_float32_2", model, taken)
    assert main([str(tmp_path / "nothing"), model, str(tmp_path / "out")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err


def test_export_can_change_the_dtype(resumed: Path, tmp_path: Path) -> None:
    arguments = [
        str(resumed / "ckpt_2_float32_2"),
        str(resumed / "models" / "tied"),
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--dtype", "bfloat16"]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
