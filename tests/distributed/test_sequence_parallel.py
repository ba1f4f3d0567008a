"""Ranks that share rows (Ulysses): the naive gradients, for every objective."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from configs.algorithm import AlgorithmConfig

from .test_objectives import naive

TOLERANCE = 1e-5
CASES = {"pairs": 26, "pairs-0": 1, "all-3": 1}


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory, worker: ModuleType, run_world: Callable[..., None]
) -> Path:
    folder = tmp_path_factory.mktemp("sequence")
    worker.make_model(folder / "models" / "tied", tied=True)
    program = Path(__file__).with_name("sequence_worker.py")
    run_world("sequence", 4, folder / "models", folder, program)
    return folder


@pytest.mark.timeout(300)
def test_every_objective_has_the_naive_gradients_over_shared_rows(
    ran: Path, worker: ModuleType
) -> None:
    """Two groups of two ranks under ZeRO 0 and 2; all four with 2 key-value heads under ZeRO-3
    with recomputation."""
    model = AutoModelForCausalLM.from_pretrained(ran / "models" / "tied", dtype=torch.float32)
    wrong = []
    for case, count in CASES.items():
        files = sorted(ran.glob(f"{case}.*.npz"))
        assert len(files) == (len(worker.objectives()) if case == "pairs" else count)
        for file in files:
            section = worker.objectives()[file.name.removeprefix(f"{case}.").removesuffix(".npz")]
            gradients, loss = naive(model.eval(), worker, AlgorithmConfig.model_validate(section))
            seen = np.load(file)
            largest = max(np.abs(g).max() for g in gradients.values())
            gap = max(np.abs(seen[f"g/{n}"] - g).max() for n, g in gradients.items()) / largest
            if gap > TOLERANCE or abs(float(seen["loss"]) - loss) > TOLERANCE * max(abs(loss), 0.1):
                wrong.append((file.name, gap, float(seen["loss"]), loss))
    assert not wrong


@pytest.mark.timeout(300)
def test_scores_and_metrics_count_a_shared_row_once(ran: Path) -> None:
    reports = [json.loads((ran / f"sequence_{rank}.json").read_text()) for rank in range(4)]
    for case in CASES:
        shorts = [r[case]["short"] for r in reports]
        assert shorts == [shorts[0]] * 4 and any(shorts[0])
        np.testing.assert_allclose(shorts[0], reports[0]["pairs"]["short"], atol=1e-5)
        metrics = [r[case]["metrics"] for r in reports]
        assert metrics == [metrics[0]] * 4
    first, other = (reports[0][c]["metrics"] for c in ("pairs", "all-3"))
    assert first.keys() == other.keys()
    for name, value in first.items():
        assert value == pytest.approx(other[name], rel=1e-3, abs=1e-5), name
