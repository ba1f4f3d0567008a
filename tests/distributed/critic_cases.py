"""What ranks do for the tests of the critic and of epochs; modes of `trainer_worker`."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import trainer_worker as base
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

from configs.critic import CriticConfig
from configs.schema import RunConfig
from configs.training import OptimizerConfig
from rollouts.gae import joined
from rollouts.packing import assemble
from rollouts.types import TrainingSample, UpdateBounds
from rollouts.values import ValueBatch, ValueTargets
from trainer.critic import CriticEngine, ValueMinibatch
from trainer.engine import PolicyEngine
from trainer.errors import NonFiniteError

STAGES = (0, 2, 3)
STEPS = 8


def make_classifier(folder: Path, policy: Path) -> None:
    """Write a random reward model of the policy's shape, with its tokenizer."""
    torch.manual_seed(11)
    config = Qwen2Config.from_pretrained(policy, num_labels=1)
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)


def config(models: Path, stage: int, *, path: Path | None = None, epochs: int = 1) -> RunConfig:
    cfg = base.run_config(models / "tied", zero_stage=2)
    optimizer = OptimizerConfig(lr=1e-2, warmup_steps=2)
    critic = CriticConfig(
        zero_stage=stage,  # type: ignore[arg-type]
        path=None if path is None else str(path),
        optimizer=optimizer,
    )
    batch = cfg.batch.model_copy(update={"epochs_per_step": epochs})
    return cfg.model_copy(update={"critic": critic, "batch": batch})


def make_targets(samples: Sequence[TrainingSample], seed: int = 5) -> list[ValueTargets]:
    """Random values and returns; many values are further than the clip from where they were."""
    rng = np.random.default_rng(seed)

    def stream(sample: TrainingSample) -> np.ndarray:
        drawn = rng.normal(size=len(sample.token_ids)).astype(np.float32)
        return np.where(sample.loss_mask, drawn, 0).astype(np.float32)

    return [ValueTargets(values=stream(s), returns=stream(s)) for s in samples]


def lay_out(
    samples: Sequence[TrainingSample],
    targets: Sequence[ValueTargets],
    pieces: Sequence[Sequence[int]],
) -> ValueMinibatch:
    return ValueMinibatch(
        batches=tuple(
            ValueBatch(
                tokens=assemble([samples[i] for i in piece], None),
                values=joined([targets[i].values for i in piece]),
                returns=joined([targets[i].returns for i in piece]),
            )
            for piece in pieces
        ),
        num_loss_tokens=base.count_tokens(samples),
    )


class CriticProbe(CriticEngine):
    """A critic that notes the gradients its optimizer is about to see, and steps with lr 0."""

    seen: dict[str, np.ndarray]

    def _optimizer_step(self, loss: float) -> base.Update:
        self.seen = base.full_gradients(self.model.network)
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = 0.0
        return super()._optimizer_step(loss)


def run_gradients(rank: int, world: int, models: Path, out: Path) -> None:
    """Every (stage, packing, split) case: save gradients, losses and values that rank 0 saw."""
    samples = base.make_samples()
    targets = make_targets(samples)
    for stage in STAGES:
        cfg = config(models, stage, path=models / "classifier")
        engine = CriticProbe(cfg, rank=rank, world_size=world, total_optimizer_steps=STEPS)
        (said,) = engine.values([assemble(samples, None)])
        for packing, micro in (("packed", 1), ("packed", 3), ("padded", 2), ("lone", 1)):
            engine.model.packing = "padded" if packing == "padded" else "packed"
            pieces: Sequence[Sequence[int]] = base.deal(
                len(samples), rank=rank, world=world, micro=micro
            )
            if packing == "lone":  # a rank with no tokens at all
                pieces = [range(len(samples)) if rank == 0 else ()]
            done = engine.train_step(1, [lay_out(samples, targets, pieces)])
            if rank == 0:
                name = f"{stage}.{packing}.{micro}.npz"
                gradients = {f"g/{n}": g for n, g in engine.seen.items()}
                metrics = {f"m/{n}": v for n, v in done.metrics.items()}
                np.savez(out / name, values=said, **gradients, **metrics)
        base.close(engine)
        fresh = CriticEngine(
            config(models, stage), rank=rank, world_size=world, total_optimizer_steps=STEPS
        )
        (at_first,) = fresh.values([assemble(samples, None)])
        assert not at_first.any(), "a new head must say 0"
        refuse_bad_returns(fresh, samples, rank, world)
        base.close(fresh)


def refuse_bad_returns(
    engine: CriticEngine, samples: Sequence[TrainingSample], rank: int, world: int
) -> None:
    """A loss that is no number is left out where the bounds say so, and else ends all ranks."""
    pieces = base.deal(len(samples), rank=rank, world=world, micro=1)
    good = make_targets(samples)
    bad = [ValueTargets(values=t.values, returns=t.returns * np.float32("nan")) for t in good]
    skipping = UpdateBounds(skip_non_finite=True, lr_factor=0.1, grad_norm=1e-9)
    done = engine.train_step(1, [lay_out(samples, bad, pieces)], skipping).metrics
    (said,) = engine.values([assemble(samples, None)])
    assert done["non_finite"] == 1 and not said.any()
    try:
        engine.train_step(1, [lay_out(samples, bad, pieces)])
    except NonFiniteError as error:
        assert "critic's loss" in str(error)
    else:
        raise AssertionError("a loss that is no number was trained on")


def skip_and_go_on(models: Path, stage: int, rank: int, world: int) -> list[float]:
    """Leave an update out, then make one; return its figures and those of an engine that made it
    at once."""
    samples = base.make_samples()
    pieces = base.deal(len(samples), rank=rank, world=world, micro=2)
    good = make_targets(samples)
    bad = [ValueTargets(values=t.values, returns=t.returns * np.float32("nan")) for t in good]
    figures: list[float] = []
    bounds = UpdateBounds(skip_non_finite=True)
    for first in ((bad,), ()):
        cfg = config(models, stage)
        engine = CriticEngine(cfg, rank=rank, world_size=world, total_optimizer_steps=STEPS)
        for targets in first:
            engine.train_step(1, [lay_out(samples, targets, pieces)], bounds)
        done = engine.train_step(1, [lay_out(samples, good, pieces)], bounds).metrics
        (said,) = engine.values([assemble(samples, None)])
        figures += [done["grad_norm"], done["lr"], done["non_finite"], float(np.abs(said).sum())]
        base.close(engine)
    return figures


def train(engine: CriticEngine, steps: range, rank: int, world: int) -> list[dict[str, float]]:
    history: list[dict[str, float]] = []
    for step in steps:
        minibatches: list[ValueMinibatch] = []
        for half in range(2):
            seed = 10 * step + half
            samples = base.make_samples(seed=seed)
            pieces = base.deal(len(samples), rank=rank, world=world, micro=2)
            minibatches.append(lay_out(samples, make_targets(samples, seed), pieces))
        history.append(dict(engine.train_step(step, minibatches).metrics))
    return history


def run_resume(rank: int, world: int, models: Path, out: Path) -> None:
    """Train 4 steps of two epochs in one go, and go back to the second and train on; and 2, save,
    build anew, load, 2 more."""
    seen: dict[str, object] = {}
    for stage in STAGES:
        cfg = config(models, stage, epochs=2)
        engine = CriticEngine(cfg, rank=rank, world_size=world, total_optimizer_steps=16)
        first = train(engine, range(2), rank, world)
        engine.save(out / f"critic_{stage}")
        rest = train(engine, range(2, 4), rank, world)
        engine.load(out / f"critic_{stage}")
        again = train(engine, range(2, 4), rank, world)
        base.close(engine)
        engine = CriticEngine(cfg, rank=rank, world_size=world, total_optimizer_steps=16)
        engine.load(out / f"critic_{stage}")
        resumed = train(engine, range(2, 4), rank, world)
        report = {
            "steps": engine.optimizer_steps,
            "first": first,
            "rest": rest,
            "resumed": resumed,
            "rolled_back": again,
        }
        base.close(engine)
        seen[str(stage)] = {**report, "skipped": skip_and_go_on(models, stage, rank, world)}
    seen["policy"] = run_epochs(rank, world, models)
    (out / f"critic_resume_{rank}.json").write_text(json.dumps(seen))


def run_epochs(rank: int, world: int, models: Path) -> dict[str, object]:
    """Train the policy two epochs over one mini-batch in a step, and the same by hand."""
    samples = base.make_samples(seed=3)
    batches = base.share(samples, rank=rank, world=world, micro=2)
    minibatch = base.as_minibatch(batches, samples)
    found: dict[str, object] = {}
    engine = PolicyEngine(
        config(models, 2, epochs=2), rank=rank, world_size=world, total_optimizer_steps=STEPS
    )
    found["metrics"] = dict(engine.train_step(1, [minibatch]).metrics)
    found["updates"] = engine.optimizer_steps
    ended = base.weights(engine)
    base.close(engine)
    engine = PolicyEngine(config(models, 2), rank=rank, world_size=world, total_optimizer_steps=8)
    frozen = engine.token_logprobs(minibatch.micro_batches)
    done = [engine.train_minibatch(minibatch, frozen) for _ in range(2)]
    by_hand = base.weights(engine)
    found["same_weights"] = all(np.array_equal(ended[n], by_hand[n]) for n in ended)
    found["by_hand"] = [[m.loss, m.lr, m.num_loss_tokens] for m in done]
    base.close(engine)
    return found
