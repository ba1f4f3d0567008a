"""Adapters under every ZeRO stage: gradients, what is sent, what is saved, what is exported."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from configs.errors import ConfigError
from trainer.export import export

from .test_gradient_invariance import naive_gradients

CASES = ["0", "1-bf16", "2", "2-checkpointing", "3", "3-bf16", "3-checkpointing"]
SCALE = 6.0 / 3
A, B = ".lora_A.default.weight", ".lora_B.default.weight"


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, worker: ModuleType, run_world: Callable[..., None]
) -> Path:
    """Run all cases once over two ranks."""
    folder = tmp_path_factory.mktemp("lora")
    worker.make_model(folder / "models" / "tied", tied=True)
    program = Path(__file__).with_name("lora_worker.py")
    run_world("lora", 2, folder / "models", folder, program)
    return folder


@pytest.mark.timeout(300)
def test_resume_is_bitwise_and_adapters_alone_are_saved(ran: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(ran / "models" / "tied")
    names = {n for n, _ in model.named_parameters()}
    reports = [json.loads((ran / f"lora_{rank}.json").read_text()) for rank in (0, 1)]
    for report in reports:
        assert list(report) == CASES
        for case, seen in report.items():
            assert set(seen["names"]) == names, case
            assert seen["loaded"] and seen["ended"], case
            assert seen["resumed"] == seen["rolled_back"] == seen["rest"], case
            ends = {n.split(".")[-2] for n in seen["moved"]}
            assert ends == {"q_proj", "v_proj", "down_proj"}, case
    whole = sum(f.stat().st_size for f in (ran / "models" / "tied").glob("*.safetensors"))
    for case in CASES:
        files = list((ran / f"ckpt_{case}" / "state").glob("*model_states.pt"))
        assert files and all(f.stat().st_size < whole for f in files), case


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES)
def test_the_merged_export_holds_the_bytes_that_engines_get(
    case: str, ran: Path, tmp_path: Path
) -> None:
    export(ran / f"ckpt_{case}", str(ran / "models" / "tied"), tmp_path / "hf")
    found = load_file(next((tmp_path / "hf").glob("*.safetensors")))
    sent = np.load(ran / f"sent_{case}.npz")
    assert set(found) == set(sent.files)
    for name, tensor in found.items():
        assert np.array_equal(tensor.float().numpy(), sent[name]), (case, name)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", [c for c in CASES if "bf16" not in c])
def test_gradients_are_those_of_the_naive_loss_through_the_product(
    case: str, ran: Path, worker: ModuleType, tmp_path: Path
) -> None:
    """With G the naive gradient of the merged weight: d B = s G A^T, d A = s B^T G."""
    export(ran / f"ckpt_{case}", str(ran / "models" / "tied"), tmp_path / "hf")
    naive, loss = naive_gradients(tmp_path / "hf", worker)
    for packing in ("packed", "padded"):
        seen = np.load(ran / f"grads_{case}_{packing}.npz")
        assert float(seen["loss"]) == pytest.approx(loss, rel=1e-4)
        layers = [n.removeprefix("w/").removesuffix(A) for n in seen.files if n.startswith("w/")]
        layers = [n for n in layers if not n.endswith(B)]
        assert len(layers) == 6
        for layer in layers:
            grad, a, b = naive[f"{layer}.weight"], seen[f"w/{layer}{A}"], seen[f"w/{layer}{B}"]
            assert np.abs(b).max() > 1e-3
            for end, expected in ((B, SCALE * grad @ a.T), (A, SCALE * b.T @ grad)):
                gap = np.abs(seen[f"g/{layer}{end}"] - expected).max()
                assert gap < 1e-4 * max(1e-2, np.abs(expected).max()), (case, layer, end)


def test_the_adapter_alone_loads_in_peft(ran: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    base = str(ran / "models" / "tied")
    export(ran / "ckpt_3", base, tmp_path / "adapter", adapter_only=True)
    export(ran / "ckpt_3", base, tmp_path / "merged")
    ids = torch.arange(12).unsqueeze(0)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    before = plain(ids).logits
    adapted = PeftModel.from_pretrained(plain, str(tmp_path / "adapter")).eval()
    assert (adapted(ids).logits - merged(ids).logits).abs().max() < 1e-4
    assert (before - merged(ids).logits).abs().max() > 1e-2


def test_a_full_checkpoint_has_no_adapter_to_export(ran: Path, tmp_path: Path) -> None:
    card = json.loads((ran / "ckpt_2" / "trainer.json").read_text())
    (tmp_path / "trainer.json").write_text(json.dumps({**card, "lora": None}))
    with pytest.raises(ConfigError, match="no adapter"):
        export(tmp_path, str(ran / "models" / "tied"), tmp_path / "out", adapter_only=True)
