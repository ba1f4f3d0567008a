"""The gradient of a batch does not depend on how it was split, packed or partitioned.

The yardstick is naive: each sample alone through the plain Hugging Face model, whole log-softmax,
the loss written out again here, divided by the global token count.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

RunWorld = Callable[[str, int, Path, Path], None]
WORLDS = (1, 2)
TOLERANCE = 1e-5


def naive_gradients(model_dir: Path, worker: ModuleType) -> tuple[dict[str, np.ndarray], float]:
    """Gradients of the global-mean loss, one unpadded sample at a time."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    samples = worker.make_samples()
    total = torch.zeros(())
    extras = zip(samples, worker.references(samples), worker.drifts(samples), strict=True)
    for sample, ref_row, drift_row in extras:
        ids = torch.from_numpy(sample.token_ids).long()
        logits = model(ids.unsqueeze(0)).logits[0, :-1]
        tempered = logits / torch.from_numpy(sample.temperature[1:]).unsqueeze(1)
        scored = torch.log_softmax(tempered, -1)[torch.arange(len(ids) - 1), ids[1:]]
        mask = torch.from_numpy(sample.loss_mask[1:])
        rollout, ref, drift, advantage, weight, coef, low, high = (
            torch.from_numpy(a[1:])
            for a in (
                sample.rollout_logprobs,
                ref_row,
                drift_row,
                sample.advantages,
                sample.loss_weight,
                sample.kl_coef,
                sample.clip_low,
                sample.clip_high,
            )
        )
        proximal = scored.detach() - drift
        ratio = torch.exp(scored - proximal)
        bounds = 1 - low.nan_to_num(0.2), 1 + high.nan_to_num(0.2)
        clipped = torch.maximum(torch.minimum(ratio, bounds[1]), bounds[0])
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        truncated = torch.exp(proximal - rollout).clamp(max=2.0)
        kl = torch.exp(ref - scored) - 1 - (ref - scored)
        total = total + (weight * (coef * kl - truncated * gain))[mask].sum()
    loss = total / worker.count_tokens(samples)
    loss.backward()
    gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    return gradients, loss.item()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, worker: ModuleType) -> Path:
    folder = tmp_path_factory.mktemp("models")
    worker.make_model(folder / "tied", tied=True)
    worker.make_model(folder / "untied", tied=False)
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", WORLDS)
def test_gradients_are_those_of_the_naive_loss(
    world: int, models: Path, worker: ModuleType, run_world: RunWorld, tmp_path: Path
) -> None:
    """ZeRO 0-3 x {1, 2, 4} micro-batches x {packed, padded}, tied and untied, offload and
    recomputation, and a rank without tokens: all within 1e-5 of the largest element. The policy
    has moved, and samples of several clip ranges lie side by side."""
    run_world("gradients", world, models, tmp_path)
    expected = {tied: naive_gradients(models / tied, worker) for tied in ("tied", "untied")}
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) == 8 * 7 + 4 * 5
    wrong = []
    for file in files:
        gradients, loss = expected["untied" if ".untied." in file.name else "tied"]
        seen = np.load(file)
        assert {f"g/{n}" for n in gradients} == set(seen.files) - {"loss"}
        largest = max(np.abs(g).max() for g in gradients.values())
        gap = max(np.abs(seen[f"g/{n}"] - g).max() for n, g in gradients.items()) / largest
        if gap > TOLERANCE or abs(float(seen["loss"]) - loss) > TOLERANCE * abs(loss):
            wrong.append((file.name, gap, float(seen["loss"]), loss))
    assert not wrong


@pytest.mark.timeout(300)
def test_bad_numbers_stop_every_rank_before_the_update(
    models: Path, run_world: RunWorld, tmp_path: Path
) -> None:
    """A NaN on rank 1, an infinite gradient, a ratio that is off: the same error on both ranks,
    with step, rank and value, and the weights as they were; gradients in every stage and dtype."""
    run_world("failures", 2, models, tmp_path)
    seen = [json.loads((tmp_path / f"failures_{rank}.json").read_text()) for rank in (0, 1)]
    assert seen[0] == seen[1]
    assert len(seen[0]) == 4 + 2 + 2
    kinds = {
        "loss": ("loss", 1, "step 3: loss is nan on rank 1"),
        "gradient": ("grad norm", None, "step 3: grad norm is "),
        "ratio": ("ratio", None, "before the first update |policy / proximal - 1| is 0.1"),
    }
    for case, error in seen[0].items():
        kind, rank, text = kinds[case.rsplit(".", 1)[1]]
        assert (error["kind"], error["rank"], error["step"]) == (kind, rank, 3), case
        assert text in error["text"], case
        assert error["weights_kept"], case
