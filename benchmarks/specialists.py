"""One policy on three environments, against three specialists and against their average.

    python benchmarks/specialists.py [--seeds 1 2 3] [--steps 40] [--out FOLDER] [--jobs N]

Per seed, on the quickstart's recipe (tiny model, two cores):
- mix: all three sources in every batch, 8 groups of each;
- three specialists: one source alone, 8 groups a step. So a specialist sees as many groups of its
  source as the mix does, in as many optimizer steps, and the three together cost what the mix
  costs;
- average: the mean of the three specialists' weights, as exported.
All are asked the same held-out items of all three sources, under the same sampling, by the
evaluation of `braid run`: trained models after their last step, the average before the first step
of a run that starts from it.

Runs that ended are not made again: an interrupted script goes on where it was. With `--jobs N` it
ends after N runs; the table is of the seeds that are complete.
"""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.stack import (
    ROOT,
    braid,
    ledger,
    made_on,
    markdown,
    overrides,
    records,
    write_section,
)

RECIPE = ROOT / "configs/recipes/quickstart.yaml"
SOURCES = ("sums", "spelling", "filtering")
GROUPS = 8
"""Of each source in a step that trains on it."""
SAMPLES = 4
"""Completions of each held-out item."""
MIX, AVERAGE, START = "mix", "average", "start"
OWN = "specialists, each its own"
BASELINE = ROOT / "benchmarks/baselines/specialists.json"
PLOT = ROOT / "docs/specialists.png"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a model that is trained, or the average, which is only evaluated."""

    seed: int
    model: str
    """`mix`, a source for its specialist, or `average`."""

    def run_dir(self, out: Path) -> Path:
        """Return its run directory."""
        return out / f"seed{self.seed}" / self.model

    def export_dir(self, out: Path) -> Path:
        """Return the folder of its model, as exported or averaged."""
        return out / f"seed{self.seed}" / "models" / self.model


@dataclass(frozen=True, slots=True)
class Rate:
    """A held-out pass rate and its standard error."""

    value: float
    stderr: float


Rates = Mapping[str, Rate]
"""By source."""


def plan(seeds: Sequence[int]) -> list[Job]:
    """Return all runs, seed by seed; a seed's average comes after its specialists."""
    return [Job(seed, model) for seed in seeds for model in (MIX, *SOURCES, AVERAGE)]


def settings(job: Job, steps: int, averaged: Path | None = None) -> dict[str, object]:
    """Return the fields in which a run differs from the quickstart."""
    trained = SOURCES if job.model in (MIX, AVERAGE) else (job.model,)
    fields: dict[str, object] = {
        "name": f"specialists-{job.model}",
        "seed": job.seed,
        "num_steps": steps,
        "batch.groups_per_step": GROUPS * len(trained),
        **{f"sources.{name}.weight": 0 for name in SOURCES if name not in trained},
        "eval.every": 0,
        "eval.samples": SAMPLES,
        "checkpoint.every": 20,
    }
    if job.model == AVERAGE:
        fields |= {
            "model.path": str(averaged),
            "num_steps": 1,
            "batch.groups_per_step": len(SOURCES),
            "algorithm.kl.coef": 0,  # no reference: nothing is trained that counts
            "eval.at_end": False,
        }
    return fields


def evaluated(run_dir: Path, step: int) -> Rates | None:
    """Return the pass rates at a step; None unless every source has one."""
    found = {
        r["source"]: Rate(r["pass_rate"], r["pass_rate_stderr"])
        for r in records(run_dir / "eval.jsonl")
        if r["step"] == step
    }
    return {name: found[name] for name in SOURCES} if found.keys() >= set(SOURCES) else None


def result(job: Job, out: Path, steps: int) -> Rates | None:
    """Return what a run came to; None if it did not end yet."""
    return evaluated(job.run_dir(out), 0 if job.model == AVERAGE else steps)


def average(folders: Sequence[Path], out: Path) -> None:
    """Write the mean of models of one shape: weights in double precision, the rest as it is.

    Raises:
        ValueError: their tensors differ in name or shape, or are not of floats.
    """
    models = [load_file(folder / WEIGHTS) for folder in folders]
    shapes = [{name: (t.shape, t.dtype) for name, t in model.items()} for model in models]
    if any(s != shapes[0] for s in shapes):
        raise ValueError(f"the models in {', '.join(map(str, folders))} are not of one shape")
    odd = [name for name, t in models[0].items() if not np.issubdtype(t.dtype, np.floating)]
    if odd:
        raise ValueError(f"{odd[0]} is not of floats, so it has no mean")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(folders[0], partial, ignore=shutil.ignore_patterns("*.safetensors"))
    means = {
        name: np.mean([m[name] for m in models], axis=0, dtype=np.float64).astype(first.dtype)
        for name, first in models[0].items()
    }
    save_file(means, partial / WEIGHTS, metadata={"format": "pt"})
    partial.rename(out)


def run(job: Job, out: Path, steps: int) -> None:
    """Make a run, or go on with one that was cut off."""
    run_dir = job.run_dir(out)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log = run_dir.with_suffix(".txt")
    averaged = _averaged(job, out, log) if job.model == AVERAGE else None
    fields = overrides(settings(job, steps, averaged))
    braid("run", RECIPE, *fields, "--run-dir", run_dir, "--resume", "auto", log=log)


def _averaged(job: Job, out: Path, log: Path) -> Path:
    specialists = [Job(job.seed, name) for name in SOURCES]
    for one in specialists:
        if not one.export_dir(out).exists():
            one.export_dir(out).parent.mkdir(exist_ok=True)
            braid("export", one.run_dir(out), "latest", one.export_dir(out), log=log)
    if not job.export_dir(out).exists():
        average([s.export_dir(out) for s in specialists], job.export_dir(out))
    return job.export_dir(out)


def tokens(job: Job, out: Path) -> dict[str, int]:
    """Return the tokens that a model was trained on, by source."""
    models = SOURCES if job.model == AVERAGE else (job.model,)
    accounts = [ledger(Job(job.seed, m).run_dir(out))["sources"] for m in models]
    return {name: sum(a[name]["trained"]["tokens"] for a in accounts) for name in SOURCES}


def seed_record(seed: int, out: Path, steps: int) -> dict[str, Any] | None:
    """Return the figures of a seed; None if a run of it is missing."""
    jobs = plan([seed])
    rates = {job.model: result(job, out, steps) for job in jobs}
    rates[START] = evaluated(jobs[0].run_dir(out), 0)
    if any(r is None for r in rates.values()):
        return None
    return {
        "seed": seed,
        "pass_rate": {m: {n: r.value for n, r in (own or {}).items()} for m, own in rates.items()},
        "stderr": {m: {n: r.stderr for n, r in (own or {}).items()} for m, own in rates.items()},
        "trained_tokens": {job.model: tokens(job, out) for job in jobs},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A model over all seeds."""

    model: str
    rates: Rates
    """Means over the seeds; every seed asks the same items, so errors are not divided by them."""
    mean: float
    worst: float
    """Pass rate of the worst source, of the means over the seeds."""
    worst_source: str
    mean_of_worst_seed: float
    """The lowest mean over the sources that a seed had."""
    worst_of_worst_seed: float
    """The lowest pass rate of any source in any seed."""
    tokens: int | None
    """Trained on, mean over the seeds; None for the start, which was trained on none."""


def summarise(seeds: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the rows of the table."""
    return [_row(m, seeds) for m in (START, MIX, AVERAGE, OWN, *SOURCES)]


def _row(model: str, seeds: Sequence[Mapping[str, Any]]) -> Row:
    def of(record: Mapping[str, Any], key: str) -> dict[str, float]:
        if model == OWN:
            return {name: record[key][name][name] for name in SOURCES}
        return record[key][model]

    rates = {
        name: Rate(
            fmean(of(s, "pass_rate")[name] for s in seeds),
            fmean(of(s, "stderr")[name] for s in seeds),
        )
        for name in SOURCES
    }
    worst = min(SOURCES, key=lambda name: rates[name].value)
    spent = AVERAGE if model == OWN else model
    return Row(
        model=f"specialist of {model}" if model in SOURCES else model,
        rates=rates,
        mean=fmean(r.value for r in rates.values()),
        worst=rates[worst].value,
        worst_source=worst,
        mean_of_worst_seed=min(fmean(of(s, "pass_rate").values()) for s in seeds),
        worst_of_worst_seed=min(min(of(s, "pass_rate").values()) for s in seeds),
        tokens=None
        if model == START
        else round(fmean(sum(s["trained_tokens"][spent].values()) for s in seeds)),
    )


HEADER = (
    "model",
    *SOURCES,
    "mean",
    "worst source",
    "mean, worst seed",
    "worst source, any seed",
    "trained tokens",
)


def cells(row: Row) -> list[str]:
    """Return a row as shown, pass rates in %."""
    figures = (row.mean, row.mean_of_worst_seed, row.worst_of_worst_seed)
    mean, low, lowest = (f"{100 * figure:.1f}" for figure in figures)
    rates = (f"{100 * r.value:.1f} ± {100 * r.stderr:.1f}" for r in row.rates.values())
    worst = f"{100 * row.worst:.1f} {row.worst_source}"
    return [row.model, *rates, mean, worst, low, lowest, f"{row.tokens or 0:,}"]


def render(rows: Sequence[Row], seeds: Sequence[int]) -> Table:
    """Return the table for a terminal."""
    title = f"Held-out pass rate in %, mean of seeds {', '.join(map(str, seeds))}"
    table = Table(title=title, caption="± is the standard error over held-out items")
    for heading in HEADER:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        table.add_row(*cells(row))
    return table


def page_section(seeds: Sequence[Mapping[str, Any]]) -> str:
    """Return what docs/benchmarks.md says of these seeds."""
    names = [str(record["seed"]) for record in seeds]
    listed = f"seed {names[0]}" if len(names) == 1 else f"mean of seeds {', '.join(names)}"
    table = markdown(HEADER, [cells(row) for row in summarise(seeds)])
    return f"Held-out pass rate in %, {listed}; ± is the standard error over items:\n\n{table}"


def draw(rows: Sequence[Row], seeds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw bars by source, the mean and the worst one, with a dot for each seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = {START: "#b8b8b8", AVERAGE: "#e69f00", OWN: "#56b4e9", MIX: "#0072b2"}
    by_model = {row.model: row for row in rows}
    figure, axes = plt.subplots(figsize=(8, 4), dpi=120)
    width = 0.8 / len(shown)
    for k, (model, colour) in enumerate(shown.items()):
        row = by_model[model]
        at = [i + (k - (len(shown) - 1) / 2) * width for i in range(len(SOURCES) + 2)]
        heights = [*(row.rates[n].value for n in SOURCES), row.mean, row.worst]
        errors = [*(row.rates[n].stderr for n in SOURCES), math.nan, math.nan]
        label = "three specialists, each asked its own" if model == OWN else model
        axes.bar(at, heights, width * 0.92, yerr=errors, color=colour, label=label, capsize=2)
        for record in seeds:
            own = _row(model, [record])
            dots = [*(own.rates[n].value for n in SOURCES), own.mean, own.worst]
            axes.plot(at, dots, linestyle="", marker=".", markersize=4, color="black")
    axes.set_xticks(range(len(SOURCES) + 2), [*SOURCES, "mean", "worst source"])
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("held-out pass rate")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Make what runs are missing; print the table; write the figures and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/specialists")
    parser.add_argument("--jobs", type=int, default=None, help="end after so many runs")
    parser.add_argument("--json", type=Path, default=BASELINE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    args = parser.parse_args()
    out, console = args.out.resolve(), Console()
    left = [job for job in plan(args.seeds) if result(job, out, args.steps) is None]
    for job in left[: args.jobs]:
        console.print(f"seed {job.seed}: {job.model}")
        run(job, out, args.steps)
    found = [r for s in args.seeds if (r := seed_record(s, out, args.steps)) is not None]
    if not found:
        console.print("no seed is complete yet")
        return
    rows, seeds = summarise(found), [r["seed"] for r in found]
    (console if console.is_terminal else Console(width=140)).print(render(rows, seeds))
    command = f"python benchmarks/specialists.py --steps {args.steps}"
    made = made_on(job.run_dir(out) for job in plan(seeds))
    figures = {"command": command, **made, "steps": args.steps, "seeds": found}
    args.json.write_text(json.dumps(figures, indent=1) + "\n")
    draw(rows, found, args.plot)
    if args.json == BASELINE:
        write_section("specialists", page_section(found))
    console.print(f"written: {args.json}, {args.plot}")


if __name__ == "__main__":
    main()
