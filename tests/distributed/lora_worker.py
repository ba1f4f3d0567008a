"""One rank of a world that trains adapters: `python lora_worker.py MODE RANK WORLD MODELS OUT`.

Each case trains a little, so that B is no longer 0, saves, notes gradients, trains on, and does
the same again from what was saved.
"""

import json
from pathlib import Path

import numpy as np
import trainer_worker as common
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

from configs.lora import LoraConfig

LORA = LoraConfig(rank=3, alpha=6.0, target_modules=("q_proj", "v_proj", "down_proj"))
CASES: dict[str, dict[str, object]] = {
    "0": {"zero_stage": 0},
    "1-bf16": {"zero_stage": 1, "dtype": "bfloat16"},
    "2": {"zero_stage": 2},
    "2-checkpointing": {"zero_stage": 2, "gradient_checkpointing": True},
    "3": {"zero_stage": 3},
    "3-bf16": {"zero_stage": 3, "dtype": "bfloat16"},
    "3-checkpointing": {"zero_stage": 3, "gradient_checkpointing": True},
}


class Probe(common.Probe):
    """Notes the adapter and its gradients."""

    adapter: dict[str, np.ndarray]
    frozen = False

    def _optimizer_step(self, loss: float) -> common.Update:
        trained = {n: p for n, p in self.model.network.named_parameters() if p.requires_grad}
        self.seen = {n: _numpy(safe_get_full_grad(p)) for n, p in trained.items()}
        self.adapter = {n: _numpy(_master(p)) for n, p in trained.items()}
        if self.frozen:
            for group in self._engine.basic_optimizer.param_groups:
                group["lr"] = 0.0
        return super(common.Probe, self)._optimizer_step(loss)


def _master(parameter):  # type: ignore[no-untyped-def]
    found = safe_get_full_fp32_param(parameter)
    return parameter if found is None else found  # stage 0 in fp32 has no master


def _numpy(tensor) -> np.ndarray:  # type: ignore[no-untyped-def, type-arg]
    return tensor.detach().float().cpu().numpy().copy()


def build(cfg: object, rank: int, world: int) -> Probe:
    return Probe(cfg, rank=rank, world_size=world, total_optimizer_steps=8)  # type: ignore[arg-type]


def run(rank: int, world: int, models: Path, out: Path) -> None:
    report: dict[str, object] = {}
    for case, knobs in CASES.items():
        cfg = common.run_config(models / "tied", lora=LORA, **knobs)
        folder = out / f"ckpt_{case}"
        engine = build(cfg, rank, world)
        start = common.weights(engine)
        common.train(engine, range(2), rank, world)
        engine.save(folder)
        sent = common.weights(engine)
        rest = common.train(engine, range(2, 4), rank, world)
        ended = common.weights(engine)
        engine.load(folder)  # as a rollback does
        rolled = common.train(engine, range(2, 4), rank, world)
        common.close(engine)

        engine = build(cfg, rank, world)
        engine.load(folder)
        loaded = common.weights(engine)
        resumed = common.train(engine, range(2, 4), rank, world)
        report[case] = {
            "names": [w.name for w in engine.weight_specs()],
            "loaded": all(np.array_equal(sent[n], loaded[n]) for n in sent),
            "rest": rest,
            "resumed": resumed,
            "rolled_back": rolled,
            "ended": all(np.array_equal(ended[n], w) for n, w in common.weights(engine).items()),
            "moved": sorted(n for n in sent if not np.array_equal(sent[n], start[n])),
        }
        common.close(engine)
        gradients(cfg, case, rank, world, out)
        if rank == 0:
            np.savez(out / f"sent_{case}.npz", **sent)
    (out / f"lora_{rank}.json").write_text(json.dumps(report))


def gradients(cfg: object, case: str, rank: int, world: int, out: Path) -> None:
    """Save the adapter's gradients at the checkpoint, in two layouts."""
    samples = common.make_samples()
    for micro, packing in ((1, "packed"), (2, "padded")):
        engine = build(cfg, rank, world)
        engine.load(out / f"ckpt_{case}")
        engine.frozen = True
        engine.model.packing = packing  # type: ignore[assignment]
        proximal = common.drifted_from(engine, samples)
        pieces = common.deal(len(samples), rank=rank, world=world, micro=micro)
        loss = common.train_drifted(engine, samples, pieces, proximal)
        if rank == 0:
            found = {f"g/{n}": g for n, g in engine.seen.items()}
            found |= {f"w/{n}": w for n, w in engine.adapter.items()}
            np.savez(out / f"grads_{case}_{packing}.npz", **found, loss=loss)
        common.close(engine)


if __name__ == "__main__":
    common.MODES["lora"] = run
    common.main()
