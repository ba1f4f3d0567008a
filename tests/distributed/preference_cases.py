"""What ranks do for the tests of reward models; a mode of `trainer_worker`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trainer_worker as base

from configs.algorithm import AlgorithmConfig
from rollouts.packing import assemble
from rollouts.types import TrainingSample
from trainer.engine import Minibatch
from trainer.reward_trainer import RewardModelEngine

PREFERENCE = {
    "loss": {"use": "trainer.reward_trainer:bradley_terry"},
    "aggregation": "sequence_mean",
    "correction": {"weight": "none"},
}


class PreferenceProbe(base.Probe, RewardModelEngine):
    """A reward model's engine that notes its gradients and stands still."""


def make_pairs() -> list[tuple[TrainingSample, ...]]:
    """Pairs of conversations, each scored at its last token."""
    ends = [
        dataclasses.replace(s, loss_mask=np.arange(len(s.token_ids)) == len(s.token_ids) - 1)
        for s in base.make_samples()
    ]
    return [tuple(ends[i : i + 2]) for i in range(0, len(ends), 2)]


def preference_batch(
    pairs: Sequence[tuple[TrainingSample, ...]], *, rank: int, world: int, micro: int
) -> Minibatch:
    """Deal pairs, whole, to this rank's micro-batches."""
    pieces = base.deal(len(pairs), rank=rank, world=world, micro=micro)
    return Minibatch(
        micro_batches=tuple(
            assemble([sample for i in piece for sample in pairs[i]], None) for piece in pieces
        ),
        num_loss_tokens=2 * len(pairs),
        num_samples=len(pairs),
    )


def run_preferences(rank: int, world: int, models_dir: Path, out: Path) -> None:
    """Bradley-Terry in a few layouts: gradients and losses; then train, save, and score."""
    pairs = make_pairs()
    algorithm = AlgorithmConfig.model_validate(PREFERENCE)
    for stage in (0, 2, 3):
        cfg = base.run_config(models_dir / "classifier", zero_stage=stage)
        cfg = cfg.model_copy(update={"algorithm": algorithm})
        engine = PreferenceProbe(cfg, rank=rank, world_size=world, total_optimizer_steps=8)
        for packing, micro in (("packed", 1), ("packed", 3), ("padded", 2)):
            engine.model.packing = packing  # type: ignore[assignment]
            batch = preference_batch(pairs, rank=rank, world=world, micro=micro)
            loss = engine.train_minibatch(batch, None).loss
            base.save_case(out, rank, {"zero": stage}, True, packing, micro, engine, loss)
        base.close(engine)
    learner = RewardModelEngine(cfg, rank=rank, world_size=world, total_optimizer_steps=8)
    batch = preference_batch(pairs, rank=rank, world=world, micro=1)
    steps = [learner.train_step(i, [batch]).metrics for i in range(8)]
    whole = assemble([sample for pair in pairs for sample in pair], None)
    (scores,) = learner.token_logprobs([whole])
    learner.save(out / "checkpoint")
    if rank == 0:
        np.save(out / "scores.npy", scores[whole.loss_mask])
        (out / "steps.json").write_text(json.dumps(steps))
    base.close(learner)
