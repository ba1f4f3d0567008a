"""One rank of a test world: `python trainer_worker.py MODE RANK WORLD MODEL_DIR OUT_DIR`.

Builds real PolicyEngines over gloo and writes what it saw to OUT_DIR; the tests compare. Each
world runs many cases, because starting one costs seconds.
"""

import datetime
import json
import random
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from tokenizers import Tokenizer, models
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

from configs.algorithm import AlgorithmConfig
from configs.data import DataConfig
from configs.schema import BatchConfig, ModelConfig, RewardConfig, RunConfig, SourceConfig
from configs.training import OptimizerConfig, TrainerConfig
from rollouts.packing import assemble
from rollouts.types import MicroBatch, TrainingSample
from trainer.controls import Controls
from trainer.engine import Minibatch, PolicyEngine
from trainer.objectives import resolve_loss
from trainer.update import Update
from trainer.zero_engine import ZeroEngine

VOCAB = 64
NUM_SAMPLES = 8
NOTHING = np.zeros(0, np.float32)
FOLLOWING = {"kl": {"coef": 0.1, "target": 0.01}, "entropy": {"coef": 0.01, "target": 9.0}}
"""Coefficients that move every step."""


def make_classifier(folder: Path) -> None:
    """Write a sequence classifier of one output, with a tokenizer that has a chat template."""
    make_model(folder)
    network = Qwen2ForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=0)
    torch.nn.init.normal_(network.score.weight, std=0.5)
    network.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)


def make_model(folder: Path, *, tied: bool = True) -> None:
    """Write a tiny random Qwen2 with a tokenizer; weights large enough to matter in fp32."""
    torch.manual_seed(7)
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        attention_dropout=0.1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    vocab = {f"t{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def run_config(model: Path, **trainer: object) -> RunConfig:
    dtype = trainer.pop("dtype", "float32")
    decay = trainer.pop("decay", "constant")
    return RunConfig(
        name="test",
        num_steps=4,
        model=ModelConfig(path=str(model), dtype=dtype),  # type: ignore[arg-type]
        sources=(
            SourceConfig(
                name="a",
                data=DataConfig(procedural="reasoning_gym/chain_sum"),
                rewards=(RewardConfig(use="exact", name="exact"),),
            ),
        ),
        batch=BatchConfig(groups_per_step=1),
        algorithm=AlgorithmConfig(),
        trainer=TrainerConfig(
            optimizer=OptimizerConfig(lr=1e-2, warmup_steps=2, weight_decay=0.01, decay=decay),  # type: ignore[arg-type]
            logprob_chunk=5,
            **trainer,  # type: ignore[arg-type]
        ),
    )


def make_samples(seed: int = 0) -> list[TrainingSample]:
    """Samples of mixed lengths, temperatures and clip ranges, with a reference KL and off-policy
    rollouts."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(NUM_SAMPLES):
        length = int(rng.integers(4, 16))
        mask = np.arange(length) >= rng.integers(1, 4)

        def stream(values: np.ndarray, mask: np.ndarray = mask) -> np.ndarray:
            return np.where(mask, values, 0).astype(np.float32)

        samples.append(
            TrainingSample(
                group_id="g",
                index=i,
                token_ids=rng.integers(0, VOCAB, length).astype(np.int32),
                loss_mask=mask,
                rollout_logprobs=stream(rng.normal(-4, 0.5, length)),
                advantages=stream(rng.normal(size=length)),
                loss_weight=np.full(length, rng.choice([0.5, 1.0]), np.float32),
                kl_coef=np.full(length, 0.1, np.float32),
                clip_low=np.full(length, (np.nan, 0.1, 0.3)[i % 3], np.float32),
                clip_high=np.full(length, (0.4, 0.05, np.nan, 0.4)[i % 4], np.float32),
                temperature=np.full(length, rng.choice([0.7, 1.0, 1.3]), np.float32),
            )
        )
    return samples


def references(samples: Sequence[TrainingSample]) -> list[np.ndarray]:
    return [(s.rollout_logprobs - 0.1 * s.loss_mask).astype(np.float32) for s in samples]


def drifts(samples: Sequence[TrainingSample]) -> list[np.ndarray]:
    """How far each token's policy has moved from its proximal one [L]: ratios of 0.61, 0.86, 1,
    1.16 and 1.65, none of which is near an end of the samples' clip ranges."""
    steps = np.array([-0.5, -0.15, 0.0, 0.15, 0.5], np.float32)
    return [steps[(np.arange(len(s.token_ids)) + s.index) % 5] for s in samples]


def count_tokens(samples: Sequence[TrainingSample]) -> int:
    return sum(int(s.loss_mask[1:].sum()) for s in samples)


def deal(count: int, *, rank: int, world: int, micro: int) -> list[list[int]]:
    """Deal samples unevenly: those of micro-batch m on this rank."""
    places = np.random.default_rng(micro * 10 + world).integers(0, world * micro, count)
    return [np.flatnonzero(places == rank * micro + m).tolist() for m in range(micro)]


def lay_out(
    samples: Sequence[TrainingSample], pieces: Sequence[Sequence[int]]
) -> tuple[MicroBatch, ...]:
    refs = references(samples)
    return tuple(assemble([samples[i] for i in p], [refs[i] for i in p]) for p in pieces)


def share(
    samples: Sequence[TrainingSample], *, rank: int, world: int, micro: int
) -> tuple[MicroBatch, ...]:
    """Return this rank's micro-batches."""
    return lay_out(samples, deal(len(samples), rank=rank, world=world, micro=micro))


def full_gradients(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return every parameter's gradient, over all ranks. A collective."""
    return {
        name: safe_get_full_grad(p).float().cpu().numpy().copy()
        for name, p in network.named_parameters()
    }


class Probe(PolicyEngine):
    """An engine that notes the gradients its optimizer is about to see, and steps with lr 0."""

    seen: dict[str, np.ndarray]

    def _optimizer_step(self, loss: float) -> Update:
        self.seen = full_gradients(self.model.network)
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = 0.0
        return super()._optimizer_step(loss)


def drifted_from(engine: Probe, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
    """Return proximal logprobs [L] from which the policy has drifted, of every sample."""
    batch = assemble(samples, None)
    (scores,) = engine.token_logprobs([batch])
    return [
        scores[start:end] - drift
        for (start, end), drift in zip(pairwise(batch.cu_seqlens), drifts(samples), strict=True)
    ]


def train_drifted(
    engine: Probe,
    samples: Sequence[TrainingSample],
    pieces: Sequence[Sequence[int]],
    proximal: Sequence[np.ndarray],
) -> float:
    """Train one minibatch laid out in `pieces`; return the loss."""
    frozen = [np.concatenate([NOTHING, *(proximal[i] for i in p)]) for p in pieces]
    return engine.train_minibatch(as_minibatch(lay_out(samples, pieces), samples), frozen).loss


def as_minibatch(batches: Sequence[MicroBatch], samples: Sequence[TrainingSample]) -> Minibatch:
    return Minibatch(
        micro_batches=tuple(batches),
        num_loss_tokens=count_tokens(samples),
        num_samples=sum(bool(s.loss_mask[1:].any()) for s in samples),
    )


def close(engine: ZeroEngine) -> None:
    """Free the engine so that the next one in this process starts clean."""
    engine._engine.destroy()


def weights(engine: PolicyEngine) -> dict[str, np.ndarray]:
    names = [w.name for w in engine.weight_specs()]
    with engine.gathered(names) as full:
        return {n: t.float().cpu().numpy().copy() for n, t in full.items()}


def run_gradients(rank: int, world: int, models_dir: Path, out: Path) -> None:
    """Every (stage, packing, split) case: save the gradients and norms that rank 0 saw."""
    samples = make_samples()
    plain: list[dict[str, object]] = [{"zero_stage": s} for s in (0, 1, 2, 3)]
    extra: list[dict[str, object]] = [
        {"zero_stage": 2, "offload": "optimizer"},
        {"zero_stage": 3, "offload": "parameters"},
        {"zero_stage": 2, "gradient_checkpointing": True},
        {"zero_stage": 3, "gradient_checkpointing": True},
    ]
    cases = [(k, tied) for k in plain for tied in (True, False)]
    cases += [(k, True) for k in extra]
    for knobs, tied in cases:
        cfg = run_config(models_dir / ("tied" if tied else "untied"), **knobs)
        engine = Probe(cfg, rank=rank, world_size=world, total_optimizer_steps=8)
        before, proximal = weights(engine), drifted_from(engine, samples)

        for packing in ("packed", "padded"):
            engine.model.packing = packing  # type: ignore[assignment]
            for micro in (1, 2, 4) if knobs in plain else (1, 4):
                pieces = deal(len(samples), rank=rank, world=world, micro=micro)
                loss = train_drifted(engine, samples, pieces, proximal)
                save_case(out, rank, knobs, tied, packing, micro, engine, loss)
        # A rank with no tokens at all.
        lone = [range(len(samples)) if rank == 0 else ()]
        loss = train_drifted(engine, samples, lone, proximal)
        save_case(out, rank, knobs, tied, "lone", 1, engine, loss)
        after = weights(engine)
        assert all(np.array_equal(before[n], after[n]) for n in before), "lr 0 moved weights"
        close(engine)


def objectives() -> dict[str, dict[str, object]]:
    """Sections `algorithm` to compare: every loss, aggregation, correction and KL form."""
    kl = {"coef": 0.1, "estimator": "straight_through"}
    cases: dict[str, dict[str, object]] = {
        f"{loss}-{aggregation}": {
            "loss": {"use": loss},
            "aggregation": aggregation,
            "constant_tokens": 20 if aggregation == "constant" else None,
            "kl": kl,
        }
        for loss in ("ppo_clip", "gspo", "cispo", "policy_gradient", "trust_region")
        for aggregation in ("token_mean", "sequence_mean", "constant")
    }
    cases["dual"] = {"loss": {"use": "ppo_clip", "args": {"dual_clip": 1.2}}, "kl": kl}
    cases["entropy"] = {"kl": kl, "entropy": {"coef": 0.05}}
    for weight in ("truncate", "mask", "none"):
        for level in ("token", "sequence", "geometric"):
            correction = {"weight": weight, "level": level, "low": 0.8, "high": 1.3}
            cases[f"{weight}-{level}"] = {"kl": kl, "correction": correction}
    cases["supervised"] = {
        "loss": {"use": "trainer.supervised:cross_entropy"},
        "kl": kl,
        "correction": {"weight": "none"},
    }
    cases["drift"] = {"kl": kl, "correction": {"max_sequence_kl": 0.05}}
    return cases


def run_objectives(rank: int, world: int, models_dir: Path, out: Path) -> None:
    """Every objective in a few layouts: save the gradients and losses that rank 0 saw."""
    layouts = ((("packed", 2),), (("packed", 4), ("padded", 1)))[world - 1]
    samples = make_samples()
    cfg = run_config(models_dir / "tied", zero_stage=2)
    engine = Probe(cfg, rank=rank, world_size=world, total_optimizer_steps=8)
    proximal = drifted_from(engine, samples)
    for name, section in objectives().items():
        algorithm = AlgorithmConfig.model_validate(section)
        engine.cfg = cfg.model_copy(update={"algorithm": algorithm})
        engine._loss = resolve_loss(algorithm.loss)
        engine._controls = Controls.start(algorithm)
        for packing, micro in layouts:
            engine.model.packing = packing  # type: ignore[assignment]
            pieces = deal(len(samples), rank=rank, world=world, micro=micro)
            loss = train_drifted(engine, samples, pieces, proximal)
            save_case(out, rank, {"of": name}, True, packing, micro, engine, loss)
    close(engine)


def save_case(
    out: Path,
    rank: int,
    knobs: dict[str, object],
    tied: bool,
    packing: str,
    micro: int,
    engine: Probe,
    loss: float,
) -> None:
    if rank != 0:
        return
    knob = "-".join(f"{k}_{v}" for k, v in knobs.items())
    name = f"{knob}.{'tied' if tied else 'untied'}.{packing}.{micro}"
    np.savez(out / f"{name}.npz", **{f"g/{n}": g for n, g in engine.seen.items()}, loss=loss)


def train(engine: PolicyEngine, steps: range, rank: int, world: int) -> list[dict[str, float]]:
    history = []
    for step in steps:
        # Two minibatches a step: the second is off-policy to the frozen proximal logprobs.
        minibatches = []
        for half in range(2):
            samples = make_samples(seed=10 * step + half)
            batches = share(samples, rank=rank, world=world, micro=2)
            minibatches.append(as_minibatch(batches, samples))
        history.append(dict(engine.train_step(step, minibatches).metrics))
    return history


def draws() -> list[float]:
    """One draw of each generator: equal only if all were restored."""
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def run_resume(rank: int, world: int, models_dir: Path, out: Path) -> None:
    """Train 4 steps in one go, and go back to the second and train on, as a rollback does; and 2,
    save, build anew, load, 2 more."""
    seen: dict[str, object] = {}
    cases: list[tuple[int, str]] = [(0, "float32"), (2, "float32"), (3, "float32")]
    cases += [(0, "bfloat16"), (1, "bfloat16"), (3, "bfloat16")]
    for stage, dtype in cases:
        cfg = run_config(models_dir / "tied", zero_stage=stage, dtype=dtype, decay="linear")
        cfg = cfg.model_copy(update={"algorithm": AlgorithmConfig.model_validate(FOLLOWING)})
        folder = out / f"ckpt_{stage}_{dtype}_{world}"
        random.seed(rank)
        np.random.seed(rank)
        torch.manual_seed(rank)
        engine = PolicyEngine(cfg, rank=rank, world_size=world, total_optimizer_steps=8)
        first = train(engine, range(2), rank, world)
        engine.save(folder)
        rest = train(engine, range(2, 4), rank, world)
        straight, straight_draws = weights(engine), draws()
        engine.load(folder)
        again = train(engine, range(2, 4), rank, world)
        rolled, rolled_draws = weights(engine), draws()
        close(engine)

        engine = PolicyEngine(cfg, rank=rank, world_size=world, total_optimizer_steps=8)
        engine.load(folder)
        at_load = engine.token_logprobs(share(make_samples(99), rank=0, world=1, micro=1))
        resumed = train(engine, range(2, 4), rank, world)
        ended = weights(engine)
        seen[f"{stage}.{dtype}"] = {
            "steps": engine.optimizer_steps,
            "first": first,
            "rest": rest,
            "resumed": resumed,
            "rolled_back": again,
            "same_weights": all(
                np.array_equal(straight[n], w[n]) for n in straight for w in (ended, rolled)
            ),
            "moved": not all(np.array_equal(w, np.zeros_like(w)) for w in straight.values()),
            "draws": [straight_draws, draws(), rolled_draws],
        }
        if rank == 0:
            np.save(folder / "logprobs.npy", at_load[0])
        close(engine)
    (out / f"resume_{world}_{rank}.json").write_text(json.dumps(seen))


MODES: dict[str, Callable[[int, int, Path, Path], None]] = {
    "gradients": run_gradients,
    "objectives": run_objectives,
    "resume": run_resume,
}


def main() -> None:
    import critic_cases  # which themselves import this module
    import preference_cases
    import refusal_cases

    modes = {
        **MODES,
        "critic_gradients": critic_cases.run_gradients,
        "critic_resume": critic_cases.run_resume,
        "failures": refusal_cases.run_failures,
        "refusals": refusal_cases.run_refusals,
        "preferences": preference_cases.run_preferences,
    }
    mode, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    models_dir, out = Path(sys.argv[4]), Path(sys.argv[5])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        rank=rank,
        world_size=world,
        init_method=f"file://{out}/rendezvous_{mode}_{world}",
        timeout=datetime.timedelta(seconds=60),
    )
    modes[mode](rank, world, models_dir, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
