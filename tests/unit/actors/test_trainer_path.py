"""What a trainer rank makes of its row of a plan, with Ray and the engine replaced."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors.ranks import RankPlan
from actors.trainer import TrainerActor
from configs.schema import RunConfig
from rollouts.types import (
    MicroBatchPlan,
    MinibatchPlan,
    SampleHandle,
    TrainingSample,
    UpdateBounds,
)
from trainer.batch import to_device


def recipe(kl: float) -> RunConfig:
    source = {
        "name": "a",
        "data": {"procedural": "reasoning_gym/chain_sum"},
        "rewards": [{"name": "r", "use": "exact"}],
    }
    fields = {
        "name": "t",
        "num_steps": 1,
        "model": {"path": "m"},
        "batch": {"groups_per_step": 1},
        "sources": [source],
        "algorithm": {"kl": {"coef": kl}},
    }
    return RunConfig.model_validate(fields)


def sample() -> TrainingSample:
    own = np.ones(3, np.float32)
    return TrainingSample(
        group_id="g",
        index=0,
        token_ids=np.arange(3, dtype=np.int32),
        loss_mask=np.array([False, True, True]),
        rollout_logprobs=-own,
        advantages=own,
        loss_weight=own,
        kl_coef=own,
        clip_low=own,
        clip_high=own,
        temperature=own,
    )


class NotingEngine:
    """Keeps the mini-batches that it is given."""

    def train_step(self, step: int, minibatches: Sequence[Any], bounds: UpdateBounds) -> Any:
        self.seen = list(minibatches)
        return SimpleNamespace(metrics={}, seconds={})


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_an_empty_micro_batch_has_the_streams_of_the_others(
    kl: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loss gives other metrics on the rank without samples, and the ranks' sums of them
    do not meet."""
    held: dict[int, object] = {0: (sample(),), 1: (np.zeros(3, np.float32),)}
    monkeypatch.setattr(ray, "get", lambda refs, timeout: [held[r] for r in refs])
    handle = SampleHandle(ref=0, row=0, num_tokens=3, num_loss_tokens=2)  # type: ignore[arg-type]
    full = MicroBatchPlan(samples=(handle,), ref_logprobs=1 if kl else None)  # type: ignore[arg-type]
    empty = MicroBatchPlan(samples=())
    engine, actor = NotingEngine(), TrainerActor(recipe(kl), 0, 1)
    actor._engine = engine  # type: ignore[assignment]
    minibatch = MinibatchPlan(grid=((full, empty),), num_loss_tokens=2, num_samples=1)
    plan = RankPlan(minibatches=(minibatch,), step=1, bounds=UpdateBounds(), keep_in=None)
    actor.train_step(plan)
    batches = [to_device(b, torch.device("cpu")) for b in engine.seen[0].micro_batches]
    assert [b.ref_logprobs is not None for b in batches] == [kl > 0] * 2
