"""The rate of one step that guards shrink: the schedule goes on as if nothing had been."""

from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from configs.training import OptimizerConfig
from trainer.schedule import lr_factor
from trainer.update import _learning_rate

STEPS = 11  # eight parts of decay, so that 2/8 falls to 1/8 to the bit


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("factor", [0.5, 0.1, 1.0])
@pytest.mark.parametrize("applied", [True, False])
def test_a_factor_is_for_one_step_alone(
    decay: Literal["constant", "linear", "cosine"], factor: float, applied: bool
) -> None:
    """Also where the schedule falls by that very factor, as from 2/N to 1/N."""
    planned = lr_factor(OptimizerConfig(decay=decay, warmup_steps=2), total_steps=STEPS)
    for shrunk in range(STEPS):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, planned)
        engine: Any = SimpleNamespace(optimizer=optimizer, lr_scheduler=schedule)
        done = 0
        for step in range(STEPS):
            mine = step == shrunk
            with _learning_rate(engine, factor if mine else 1.0) as lr:
                assert lr == pytest.approx(planned(done) * (factor if mine else 1.0))
                assert optimizer.param_groups[0]["lr"] == lr
                if applied or not mine:
                    optimizer.step()
                    schedule.step()
                    done += 1
