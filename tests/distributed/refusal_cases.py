"""What ranks do for the tests of updates that fail or are refused; modes of `trainer_worker`."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import trainer_worker as base

from rollouts.types import MicroBatch, TrainingSample, UpdateBounds
from trainer.engine import PolicyEngine
from trainer.errors import NonFiniteError, RatioError
from trainer.loss import LossInputs, LossOutput


def _bad_gradient(x: LossInputs) -> LossOutput:
    """A finite loss whose gradient is infinite."""
    zero = (x.policy_logprobs - x.policy_logprobs.detach())[x.loss_mask].abs()
    return LossOutput(total=zero.sqrt().sum(), metrics={})


def run_failures(rank: int, world: int, models_dir: Path, out: Path) -> None:
    """Non-finite losses and gradients, and a ratio that is off: same error on all ranks."""
    samples = base.make_samples()
    seen: dict[str, dict[str, object]] = {}
    cases = [(s, "bfloat16", "gradient") for s in (0, 1, 2, 3)]
    cases += [(s, "float32", "gradient") for s in (0, 3)]
    cases += [(2, "float32", "loss"), (3, "float32", "ratio")]
    for stage, dtype, failure in cases:
        cfg = base.run_config(models_dir / "tied", zero_stage=stage, dtype=dtype)
        engine = PolicyEngine(cfg, rank=rank, world_size=world, total_optimizer_steps=8)
        before = base.weights(engine)
        error = fail(engine, failure, samples, rank, world)
        same = all(np.array_equal(before[n], w) for n, w in base.weights(engine).items())
        seen[f"{stage}.{dtype}.{failure}"] = {**error, "weights_kept": same}
        base.close(engine)
    (out / f"failures_{rank}.json").write_text(json.dumps(seen))


def fail(
    engine: PolicyEngine,
    failure: str,
    samples: Sequence[TrainingSample],
    rank: int,
    world: int,
) -> dict[str, object]:
    batches = list(base.share(samples, rank=rank, world=world, micro=2))
    if failure == "loss" and rank == world - 1:
        advantages = np.full_like(batches[0].advantages, np.nan)
        batches[0] = dataclasses.replace(batches[0], advantages=advantages)
    if failure == "gradient":
        engine._loss = _bad_gradient
    minibatch = base.as_minibatch(batches, samples)
    if failure == "ratio":
        shift(engine)
    try:
        engine.train_step(3, [minibatch, minibatch])
    except NonFiniteError as error:
        return {"kind": error.what, "step": error.step, "rank": error.rank, "text": str(error)}
    except RatioError as error:
        return {"kind": "ratio", "step": error.step, "rank": None, "text": str(error)}
    return {"kind": "none"}


REFUSALS = {
    "loss": UpdateBounds(loss=-1e9),
    "grad norm": UpdateBounds(grad_norm=1e-9),
    "not finite": UpdateBounds(skip_non_finite=True),
}


def run_refusals(rank: int, world: int, models_dir: Path, out: Path) -> None:
    """Steps that are refused, then one that is not; and that one alone, in an engine of its own."""
    seen: dict[str, dict[str, object]] = {}
    cases: list[tuple[int, str]] = [(0, "float32"), (2, "float32"), (3, "float32")]
    cases += [(0, "bfloat16"), (1, "bfloat16"), (3, "bfloat16")]
    for stage, dtype in cases:
        cfg = base.run_config(models_dir / "tied", zero_stage=stage, dtype=dtype)
        engine = PolicyEngine(cfg, rank=rank, world_size=world, total_optimizer_steps=8)
        before, honest = base.weights(engine), engine._loss
        refused: dict[str, dict[str, float]] = {}
        for name, bounds in REFUSALS.items():
            engine._loss = _bad_gradient if name == "not finite" else honest
            refused[name] = train_one(engine, rank, world, bounds)
        engine._loss = honest
        kept = all(np.array_equal(before[n], w) for n, w in base.weights(engine).items())
        small = UpdateBounds(lr_factor=0.1)
        after = train_one(engine, rank, world, small)
        ended = base.weights(engine)
        base.close(engine)
        engine = PolicyEngine(cfg, rank=rank, world_size=world, total_optimizer_steps=8)
        alone = train_one(engine, rank, world, small)
        same = all(np.array_equal(ended[n], w) for n, w in base.weights(engine).items())
        full = train_one(engine, rank, world, UpdateBounds())
        base.close(engine)
        seen[f"{stage}.{dtype}"] = {
            "refused": refused,
            "kept": kept,
            "moved": not all(np.array_equal(before[n], w) for n, w in ended.items()),
            "after": after,
            "alone": alone,
            "same": same,
            "lr": [after["lr"], full["lr"]],
        }
    (out / f"refusals_{rank}.json").write_text(json.dumps(seen))


def train_one(
    engine: PolicyEngine, rank: int, world: int, bounds: UpdateBounds
) -> dict[str, float]:
    samples = base.make_samples()
    minibatch = base.as_minibatch(base.share(samples, rank=rank, world=world, micro=2), samples)
    metrics = dict(engine.train_step(1, [minibatch], bounds).metrics)
    names = ("skipped", "non_finite", "loss", "grad_norm", "grad_norm_max", "lr")
    return {n: metrics[n] for n in names if np.isfinite(metrics[n])}


def shift(engine: PolicyEngine) -> None:
    """Make this engine's proximal pass disagree with its training pass, as dropout would."""
    honest: Callable[..., list[np.ndarray]] = engine.token_logprobs

    def off(batches: Sequence[MicroBatch]) -> list[np.ndarray]:
        return [scores - 0.1 for scores in honest(batches)]

    engine.token_logprobs = off  # type: ignore[method-assign]
