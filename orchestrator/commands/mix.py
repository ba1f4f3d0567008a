"""`braid mix`: ask a run for other weights, and show which ones it has."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table

from configs.errors import ConfigError, Problem
from configs.load import load_recipe
from configs.schema import RunConfig
from configs.validate_mix import check_weights
from mixing.quota.edits import Edit, EditLog, Weights
from orchestrator.records.run_dir import MIX_EDITS, read_last_metrics

_FIELD = ".weight"


def ask_edit(run_dir: Path, sets: Sequence[str], unsets: Sequence[str]) -> str:
    """Append one edit with all these weights; return what will happen.

    Raises:
        ConfigError: every problem with the edit; nothing was written.
    """
    cfg, log = _open(run_dir)
    problems: list[Problem] = []
    weights: dict[str, float | None] = {}
    for option, texts in (("--set", sets), ("--unset", unsets)):
        for text in texts:
            problem = _parse(cfg, option, text, weights)
            if problem is not None:
                problems.append(problem)
    if not problems:
        last = read_last_metrics(run_dir)
        step = (int(float(str(last["step"]))) if last else 0) + 1
        standing = _standing(log.read())
        problems.extend(check_weights(cfg, {**standing, **weights}, step=step))
    if problems:
        raise ConfigError(problems)
    log.ask(weights)
    return f"{run_dir}: {_shown(weights)}, from the next step that the run plans"


def render_mix(run_dir: Path) -> RenderableType:
    """Return tables of the sources' weights and of all edits."""
    cfg, log = _open(run_dir)
    edits = log.read()
    taken = _standing([e for e in edits if e.taken is not None])
    weights = Table("source", "recipe", "stages", "live edit", title="weights", box=SIMPLE_HEAD)
    for source in cfg.sources:
        name = source.name
        stages = " ".join(f"{stage.weights.get(name, source.weight):g}" for stage in cfg.stages)
        live = taken.get(name)
        weights.add_row(
            name, f"{source.weight:g}", stages or "-", "-" if live is None else f"{live:g}"
        )
    asked = Table("asked", "weights", "taken", title="live edits", box=SIMPLE_HEAD)
    for edit in edits:
        asked.add_row(edit.time, _shown(edit.weights), _fate(edit))
    return Group(weights, asked) if edits else weights


def _open(run_dir: Path) -> tuple[RunConfig, EditLog]:
    if not (run_dir / "config.yaml").is_file():
        raise ConfigError(
            Problem(where=str(run_dir), what="is no run directory: it has no config.yaml")
        )
    return load_recipe(run_dir / "config.yaml"), EditLog(run_dir / MIX_EDITS)


def _parse(
    cfg: RunConfig, option: str, text: str, weights: dict[str, float | None]
) -> Problem | None:
    """Put one `SOURCE.weight=W` or `SOURCE.weight` into `weights`; return what is wrong with it."""
    where = f"{option} {text}"
    key, equals, value = text.partition("=")
    name = key.strip().removesuffix(_FIELD)
    if not key.strip().endswith(_FIELD) or bool(equals) != (option == "--set"):
        form = "SOURCE.weight=W" if option == "--set" else "SOURCE.weight"
        return Problem(where=where, what=f"only weights change live: write it as {form}")
    names = [s.name for s in cfg.sources]
    if name not in names:
        return Problem(where=where, what=f"no source `{name}`", fix=f"They are {', '.join(names)}.")
    if name in weights:
        return Problem(where=where, what=f"`{name}` is given twice")
    if option == "--unset":
        weights[name] = None
        return None
    try:
        weights[name] = weight = float(value)
    except ValueError:
        return Problem(where=where, what=f"{value!r} is no number")
    if not math.isfinite(weight) or weight < 0:
        return Problem(where=where, what=f"{value} must be 0 or more, and finite")
    return None


def _standing(edits: Sequence[Edit]) -> dict[str, float | None]:
    """Return the weights that edits leave, the refused ones left out."""
    return {n: w for edit in edits if not edit.refused for n, w in edit.weights.items()}


def _shown(weights: Weights) -> str:
    return ", ".join(
        f"{name}.weight {'as in the recipe' if weight is None else f'= {weight:g}'}"
        for name, weight in weights.items()
    )


def _fate(edit: Edit) -> str:
    if edit.taken is None:
        return "waits"
    return f"refused at step {edit.taken}: {edit.refused}" if edit.refused else f"step {edit.taken}"
