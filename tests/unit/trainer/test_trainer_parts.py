"""Schedule, generators, errors across processes, and DeepSpeed's configuration."""

import pickle
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch

from configs.data import DataConfig
from configs.deepspeed import deepspeed_config
from configs.errors import ConfigError
from configs.schema import BatchConfig, ModelConfig, RewardConfig, RunConfig, SourceConfig
from configs.training import OptimizerConfig, TrainerConfig
from trainer import rng
from trainer.errors import NonFiniteError, RatioError
from trainer.schedule import lr_factor
from trainer.update import learning_rate


def run_config(trainer: TrainerConfig, dtype: Literal["float32", "bfloat16"]) -> RunConfig:
    return RunConfig(
        name="t",
        num_steps=1,
        model=ModelConfig(path="m", dtype=dtype),
        sources=(
            SourceConfig(
                name="a",
                data=DataConfig(procedural="reasoning_gym/chain_sum"),
                rewards=(RewardConfig(use="exact", name="exact"),),
            ),
        ),
        batch=BatchConfig(groups_per_step=1),
        trainer=trainer,
    )


def test_constant_rate_after_warmup() -> None:
    factor = lr_factor(OptimizerConfig(warmup_steps=4), total_steps=10)
    assert [factor(s) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("linear", [1.0, 0.775, 0.55, 0.325, 0.1]), ("cosine", [1.0, 0.8682, 0.55, 0.2318, 0.1])],
)
def test_decay_reaches_its_floor_at_the_last_step(
    decay: Literal["linear", "cosine"], expected: list[float]
) -> None:
    factor = lr_factor(OptimizerConfig(decay=decay, min_lr_ratio=0.1), total_steps=5)
    assert [factor(s) for s in range(5)] == pytest.approx(expected, abs=1e-4)
    assert factor(50) == pytest.approx(0.1)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_a_shrunk_rate_leaves_the_schedule_as_it_is(
    decay: Literal["constant", "linear", "cosine"],
) -> None:
    """Also where the rate that comes next is that of the shrunk step, as before a decay's end."""
    cfg = OptimizerConfig(lr=1e-3, decay=decay)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.lr)
    factor = lr_factor(cfg, total_steps=9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    engine = cast(Any, SimpleNamespace(optimizer=optimizer, lr_scheduler=schedule))
    for step in range(8):
        for applied in (False, True):
            with learning_rate(engine, 0.5) as used:
                if applied:
                    optimizer.step()
                    schedule.step()
            assert used == cfg.lr * factor(step) * 0.5
            assert optimizer.param_groups[0]["lr"] == cfg.lr * factor(step + applied)


def test_warmup_longer_than_the_run_still_has_a_rate() -> None:
    factor = lr_factor(OptimizerConfig(warmup_steps=9, decay="linear"), total_steps=3)
    assert all(0 < factor(s) < 1 for s in range(3))


def test_generators_are_restored(tmp_path: Path) -> None:
    def draw() -> list[float]:
        gauss = [random.gauss(0, 1), float(np.random.normal())]
        return [*gauss, random.random(), float(np.random.rand()), float(torch.rand(()))]

    draw()  # leaves a cached Gaussian in both python's and numpy's state
    rng.write(tmp_path / "rng.json")
    expected = draw()
    draw()
    rng.read(tmp_path / "rng.json")
    assert draw() == expected


def test_errors_cross_process_borders() -> None:
    lost = pickle.loads(pickle.dumps(NonFiniteError(what="loss", step=3, rank=1, value=1e999)))
    assert (lost.what, lost.step, lost.rank, lost.value) == ("loss", 3, 1, float("inf"))
    assert "step 3: loss is inf on rank 1" in str(lost)
    off = pickle.loads(pickle.dumps(RatioError(step=2, deviation=0.5, tolerance=0.1)))
    assert "step 2" in str(off) and "0.5" in str(off)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_accumulates_in_float32_where_zero_can(stage: Literal[0, 1, 2, 3]) -> None:
    built = deepspeed_config(run_config(TrainerConfig(zero_stage=stage), "bfloat16"), device="cpu")
    assert built["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert ("data_types" in built) == (stage > 0)
    fp32 = deepspeed_config(run_config(TrainerConfig(zero_stage=stage), "float32"), device="cpu")
    assert "bf16" not in fp32


@pytest.mark.parametrize(
    ("device", "offload", "torch_adam"),
    [
        ("cpu", "none", True),
        ("cpu", "optimizer", True),
        ("cuda", "none", True),
        ("cuda", "optimizer", False),
    ],
)
def test_deepspeeds_own_adam_only_beside_a_gpu(
    device: Literal["cpu", "cuda"],
    offload: Literal["none", "optimizer"],
    torch_adam: bool,
) -> None:
    cfg = run_config(TrainerConfig(zero_stage=2, offload=offload), "float32")
    built = deepspeed_config(cfg, device=device)
    optimizer, zero = built["optimizer"], built["zero_optimization"]
    assert isinstance(optimizer, dict) and isinstance(optimizer["params"], dict)
    assert isinstance(zero, dict)
    assert ("torch_adam" in optimizer["params"]) == torch_adam
    assert ("offload_optimizer" in zero) == (offload == "optimizer")


@pytest.mark.parametrize(("stage", "offload"), [(0, "optimizer"), (2, "parameters")])
def test_offload_that_the_stage_cannot_do_is_refused(
    stage: Literal[0, 2], offload: Literal["optimizer", "parameters"]
) -> None:
    cfg = run_config(TrainerConfig(zero_stage=stage, offload=offload), "float32")
    with pytest.raises(ConfigError, match=r"trainer\.offload"):
        deepspeed_config(cfg, device="cpu")
