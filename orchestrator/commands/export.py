"""Which checkpoint an export reads, and the command that writes it."""

import sys
from pathlib import Path

from configs.errors import ConfigError, Problem
from configs.load import load_any
from configs.sft import RewardModelRecipe
from orchestrator.records.checkpoints import CheckpointRef, find_damage, list_steps, newest_good


def export_command(run_dir: Path, step: str, out: Path, *, adapter: bool = False) -> list[str]:
    """Return the command that exports a verified checkpoint; torch is imported there alone.

    Args:
        adapter: export the LoRA adapter instead of the merged model.

    Raises:
        ConfigError: no such run or step, a damaged checkpoint, `out` is not empty, or there is
            no adapter.
    """
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(
            Problem(where=str(run_dir), what="is no run directory: it has no config.yaml")
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            Problem(where=str(out), what="exists and is not empty", fix="Give another folder.")
        )
    cfg = load_any(run_dir / "config.yaml")
    if adapter and cfg.trainer.lora is None:
        raise ConfigError(
            Problem(
                where="--adapter",
                what=f"{run_dir} trained all weights (its trainer.lora is empty)",
                fix="Export the whole model, without --adapter.",
            )
        )
    checkpoint = _choose(run_dir / "checkpoints", step)
    module = [sys.executable, "-m", "trainer.export"]
    flags = ["--adapter"] if adapter else []
    flags += ["--reward-model"] if isinstance(cfg, RewardModelRecipe) else []
    return [*module, str(checkpoint.trainer), cfg.model.path, str(out), *flags]


def _choose(folder: Path, step: str) -> CheckpointRef:
    there = list_steps(folder)
    shown = ", ".join(map(str, sorted(there))) or "none"
    if step == "latest":
        newest = newest_good(folder)
        if newest is None:
            raise ConfigError(
                Problem(where=str(folder), what=f"no good checkpoint there; steps: {shown}")
            )
        return newest
    if not step.isdecimal() or int(step) not in there:
        raise ConfigError(
            Problem(
                where=f"STEP {step}",
                what=f"there is no such checkpoint; steps: {shown}",
                fix="Give one of them, or `latest`.",
            )
        )
    path = folder / f"step_{int(step)}"
    damage = find_damage(path)
    if damage is not None:
        raise ConfigError(
            Problem(
                where=str(path),
                what=f"is damaged: {damage}",
                fix=f"Export another step (there are {shown}), or `latest`.",
            )
        )
    return CheckpointRef(step=int(step), path=path)
