"""`braid train --replay`: train on the batches that a run kept, without engines or graders."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from pydantic import JsonValue
from rich.console import Console

from configs.errors import ConfigError, Problem
from configs.load import load_recipe, save_config
from configs.schema import RunConfig
from configs.validate import validate_run
from orchestrator.cluster import TrainerCluster, start_ray
from orchestrator.interrupt import run_interruptible
from orchestrator.planning.loss_check import check_loss
from orchestrator.records.checkpoints import CheckpointRef, find_damage
from orchestrator.records.files import append_line
from orchestrator.records.run_dir import BATCHES, read_all_metrics
from orchestrator.resume.replay_files import KeptStep, kept_steps, read_step
from orchestrator.resume.rules import changed_fields
from rewards.monitors.replay import ROLLED_BACK_TO
from rollouts.packing import plan_minibatches
from rollouts.types import SampleHandle, TrainBatch

_READ = (
    "algorithm",
    "trainer",
    "batch.num_minibatches",
    "batch.epochs_per_step",
    "batch.max_tokens_per_microbatch",
    "batch.packing",
    "deterministic",
    "health",
    "num_steps",
    "ray_address",
)
"""Fields that a replay reads; all else is in the samples already."""
_BAKED = ("algorithm.kl.coef",)
"""Of these, what is in the samples all the same."""
_CHARGED = ("algorithm.kl.placement", "algorithm.kl.estimator")
"""What is so of sources with a critic, whose values are of rewards less the KL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What is trained on, and from where."""

    cfg: RunConfig
    steps: tuple[tuple[KeptStep, tuple[SampleHandle, ...]], ...]
    checkpoint: CheckpointRef | None
    """None starts from `model.path`."""
    recorded: Mapping[int, Mapping[str, JsonValue]]
    """The run's own metrics, by step."""


def execute(run: Path, overrides: Sequence[str], *, start: int, out: Path | None) -> int:
    """Train on a run's kept batches from the step after `start` on; return the exit code.

    Raises:
        ConfigError: no such run, samples are missing, or a setting that a replay does not read.
        RunError: a trainer rank failed.
    """
    found = prepare(run, overrides, start)
    folder = out or _next_folder(run / "replays")
    if folder.exists() and any(folder.iterdir()):
        what = "exists and is not empty"
        raise ConfigError(Problem(where=str(folder), what=what, fix="Give another --out."))
    folder.mkdir(parents=True, exist_ok=True)
    save_config(found.cfg, folder / "config.yaml")
    try:
        run_interruptible(_train(found, folder, Console()))
    finally:
        ray.shutdown()
    return 0


def prepare(run: Path, overrides: Sequence[str], start: int) -> Replay:
    """Check everything that a replay needs; all problems at once."""
    if not (run / "config.yaml").is_file():
        what = "is no run directory: it has no config.yaml"
        raise ConfigError(Problem(where=str(run), what=what))
    before = load_recipe(run / "config.yaml")
    cfg = load_recipe(run / "config.yaml", overrides)
    recorded = {int(str(row["step"])): row for row in read_all_metrics(run)}
    checkpoint, problems = _checkpoint(run, start)
    problems += [*_unread(before, cfg), *validate_run(cfg), *check_loss(cfg)]
    problems += _missing(run, cfg, start, recorded)
    if problems:
        raise ConfigError(problems)
    same = before.algorithm == cfg.algorithm
    steps = [s for s in kept_steps(run / BATCHES) if start < s <= cfg.num_steps]
    return Replay(
        cfg=cfg,
        steps=tuple(_step(run / BATCHES, step, same_objective=same) for step in steps),
        checkpoint=checkpoint,
        recorded=recorded,
    )


def _step(
    folder: Path, step: int, *, same_objective: bool
) -> tuple[KeptStep, tuple[SampleHandle, ...]]:
    """Read a step; limits of another objective's loss and gradient are left out."""
    kept, handles = read_step(folder, step)
    if not same_objective:
        bounds = {**kept.bounds, "loss": None, "grad_norm": None}
        kept = replace(kept, bounds=bounds)
    return kept, handles


def _checkpoint(run: Path, start: int) -> tuple[CheckpointRef | None, list[Problem]]:
    if start == 0:
        return None, []
    path = run / "checkpoints" / f"step_{start}"
    damage = find_damage(path)
    if damage is None:
        return CheckpointRef(step=start, path=path), []
    there = ", ".join(sorted(p.name.removeprefix("step_") for p in path.parent.glob("step_*")))
    fix = f"Give one of {there}." if there else "Leave it out."
    return None, [Problem(where=f"--from {start}", what=f"no such checkpoint: {damage}", fix=fix)]


def _unread(before: RunConfig, cfg: RunConfig) -> Iterator[Problem]:
    charged = any(s.needs_values and before.kl_coef(s) > 0 for s in before.sources)
    baked = (*_BAKED, *_CHARGED) if charged else _BAKED
    for change in changed_fields(before, cfg):
        field = change.field
        read = any(field == r or field.startswith(f"{r}.") for r in _READ)
        if not read or field in baked:
            yield Problem(
                where=field,
                what="is in the samples that the run kept already, or not used by a replay",
                fix=f"Leave it out; a replay reads {', '.join(_READ)}.",
            )


def _missing(
    run: Path, cfg: RunConfig, start: int, recorded: Mapping[int, Mapping[str, JsonValue]]
) -> Iterator[Problem]:
    there = set(kept_steps(run / BATCHES))
    last = min(cfg.num_steps, max(recorded, default=0))
    missing = [s for s in range(start + 1, last + 1) if s not in there]
    if last <= start:
        yield Problem(where=str(run), what=f"has trained no step after {start}")
    elif missing:
        few = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        yield Problem(
            where=str(run / BATCHES),
            what=f"lacks the batches of {len(missing)} of the steps {start + 1} to {last}: {few}",
            fix="Save them with replay.save, all of them or since a checkpoint that --from names.",
        )
    undone = [s for s in recorded if start < s <= last and ROLLED_BACK_TO in recorded[s]]
    for step in undone:
        yield Problem(
            where=str(run),
            what=f"was rolled back after step {step}, which a replay cannot repeat",
            fix=f"Give --from a checkpoint of step {step} or later, or num_steps={step - 1}.",
        )


async def _train(found: Replay, folder: Path, console: Console) -> None:
    cfg = found.cfg
    await start_ray(cfg)
    cluster = await TrainerCluster.start(cfg)
    exact = 0
    try:
        if found.checkpoint is not None:
            await cluster.trainer.load(found.checkpoint.trainer)
        for kept, handles in found.steps:
            batch = TrainBatch(
                step=kept.step,
                bounds=kept.update_bounds(),
                minibatches=plan_minibatches(
                    handles,
                    dp=cluster.trainer.dp_size,
                    num_minibatches=cfg.batch.num_minibatches,
                    max_tokens=cfg.batch.max_tokens_per_microbatch,
                ),
            )
            result = await cluster.trainer.train_step(batch)
            row = {"step": float(kept.step)}
            row.update({f"train/{name}": value for name, value in result.metrics.items()})
            append_line(folder / "metrics.jsonl", row)
            differs = differences(row, found.recorded.get(kept.step, {}))
            exact += not differs
            console.print(_line(row, differs), markup=False, highlight=False, soft_wrap=True)
    finally:
        await cluster.close()
    console.print(
        f"{exact} of {len(found.steps)} steps have the run's metrics, bit for bit; metrics are in "
        f"{folder}",
        soft_wrap=True,
    )


def differences(
    row: Mapping[str, float], recorded: Mapping[str, JsonValue]
) -> dict[str, tuple[float, JsonValue]]:
    """Return the policy's training metrics that are not the run's, with both values; a critic is
    not trained again."""
    names = [n for n in {**row, **recorded} if n.startswith("train/")]
    names = [n for n in names if not n.startswith("train/critic/")]
    mine = {n: row.get(n) for n in names}
    return {
        n: (float("nan") if (v := mine[n]) is None else v, recorded.get(n))
        for n in names
        if mine[n] != recorded.get(n) and not (_is_nan(mine[n]) and recorded.get(n) is None)
    }


def _is_nan(value: float | None) -> bool:
    return value is not None and not abs(value) < float("inf")


def _line(row: Mapping[str, float], differs: Mapping[str, tuple[float, JsonValue]]) -> str:
    shown = f"step {row['step']:.0f}: loss {row['train/loss']:.6g}, grad norm "
    shown += f"{row['train/grad_norm']:.6g}"
    if not differs:
        return f"{shown}; as in the run"
    gaps = _gaps(differs.values())
    return f"{shown}; {len(differs)} figures differ from the run's" + (
        f", at most by {max(gaps):.3g} of their size" if gaps else ""
    )


def _gaps(pairs: Iterable[tuple[float, JsonValue]]) -> list[float]:
    return [
        abs(mine - theirs) / max(abs(mine), abs(theirs))
        for mine, theirs in pairs
        if isinstance(theirs, int | float) and mine != theirs
    ]


def _next_folder(parent: Path) -> Path:
    number = 1
    while (parent / str(number)).exists():
        number += 1
    return parent / str(number)
