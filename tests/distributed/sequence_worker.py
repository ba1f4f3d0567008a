"""A rank of a world whose ranks share rows: `sequence_worker.py MODE RANK WORLD MODELS OUT`."""

import json
from pathlib import Path

import numpy as np
import trainer_worker as common

from configs.algorithm import AlgorithmConfig
from configs.schema import RunConfig
from trainer.controls import Controls
from trainer.objectives import resolve_loss

CASES: dict[str, dict[str, object]] = {
    "pairs": {"zero_stage": 2, "sequence_parallel": 2},
    "pairs-0": {"zero_stage": 0, "sequence_parallel": 2},
    "all-3": {"zero_stage": 3, "sequence_parallel": 4, "gradient_checkpointing": True},
}

KL: dict[str, object] = {"kl": {"coef": 0.1, "estimator": "straight_through"}}


def optimise(engine: common.Probe, cfg: RunConfig, section: dict[str, object]) -> None:
    """Give the engine another section `algorithm`."""
    algorithm = AlgorithmConfig.model_validate(section)
    engine.cfg = cfg.model_copy(update={"algorithm": algorithm})
    engine._loss = resolve_loss(algorithm.loss)
    engine._controls = Controls.start(algorithm)


def run(rank: int, world: int, models: Path, out: Path) -> None:
    """Every objective for pairs, one for the others; rank 0 saves gradients and losses."""
    samples = common.make_samples()
    report: dict[str, object] = {}
    for case, knobs in CASES.items():
        cfg = common.run_config(models / "tied", **knobs)
        engine = common.Probe(cfg, rank=rank, world_size=world, total_optimizer_steps=8)
        size = cfg.trainer.sequence_parallel
        row, rows = rank // size, world // size
        proximal = common.drifted_from(engine, samples)
        sections = common.objectives() if case == "pairs" else {"ppo_clip-token_mean": KL}
        for name, section in sections.items():
            optimise(engine, cfg, section)
            pieces = common.deal(len(samples), rank=row, world=rows, micro=2)
            loss = common.train_drifted(engine, samples, pieces, proximal)
            if rank == 0:
                found = {f"g/{n}": g for n, g in engine.seen.items()}
                np.savez(out / f"{case}.{name}.npz", **found, loss=loss)
        optimise(engine, cfg, KL)
        # a row of which some ranks have no token of the sample's own
        shortest = int(np.argmin([len(s.token_ids) for s in samples]))
        scores = engine.token_logprobs(common.lay_out(samples, [[shortest]]))[0]
        mine = common.lay_out(samples, [list(range(row, len(samples), rows))])
        metrics = engine.train_step(0, [common.as_minibatch(mine, samples)]).metrics
        report[case] = {"short": scores.tolist(), "metrics": dict(metrics)}
        common.close(engine)
    (out / f"sequence_{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    common.MODES["sequence"] = run
    common.main()
