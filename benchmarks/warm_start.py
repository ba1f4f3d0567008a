"""Fine-tuning then RL against on-policy distillation, and RL alone, at equal compute.

    python benchmarks/warm_start.py [--seeds 1 2 3] [--steps 40] [--teacher RUN] [--jobs N]

All start from the tiny model and use the recipe of GRPO: its sources, batches and optimizer. Per
seed:

    rl             GRPO for `--steps` steps; what it costs is the budget of the others
    sft then rl    `braid sample` keeps right answers of the start, `braid sft` imitates them, and
                   GRPO takes what steps are left of the budget; once at the recipe's learning
                   rate, and once at a quarter of it
    distillation   `--steps` steps on a teacher's word alone, at the cost of as many of `rl`

What is counted are passes of the network over answer tokens: one to sample a token, one to have it
scored by the reference or the teacher, three to train on it (forward, and a backward pass of twice
its cost). The teacher is there beforehand and costs nothing: a run directory or a model given by
`--teacher`, else the end of a run of GRPO that this makes, under another seed.

Nothing is made twice: an interrupted script goes on where it was. With `--jobs N` it ends after N
jobs; the table is of the seeds that are complete.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, TypeAlias

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.algorithms import RECIPES, SOURCES, evaluated
from benchmarks.algorithms import SAMPLES as ASKED
from benchmarks.stack import ROOT, braid, made_on, markdown, overrides, records, write_section

Kind: TypeAlias = Literal["teacher", "rl", "rows", "sft", "warm", "gentle", "distillation"]
Rates: TypeAlias = dict[str, float]

RUN, SFT = RECIPES / "grpo.yaml", ROOT / "configs/recipes/sft.yaml"
BASELINE = ROOT / "benchmarks/baselines/warm_start.json"
KINDS: tuple[Kind, ...] = ("rl", "rows", "sft", "warm", "gentle", "distillation")
"""What is made for each seed, in this order: each needs those before it."""
BEFORE: tuple[Kind, ...] = ("rl", "rows", "sft")
"""What says how many steps those have that begin with fine-tuning."""
AFTER_SFT: tuple[Kind, ...] = ("warm", "gentle")
GENTLE_LR = 5e-5
"""A quarter of the recipe's."""
TEACHER_SEED = 100
ITEMS, SAMPLES, KEPT, EPOCHS = 200, 8, 4, 3
"""Items of each source that the start is asked, how often, right answers kept of one, and passes
over them."""
TRAINING = 3
"""Passes that training on a token costs."""
START, TEACHER = "start", "teacher"
MODELS = {
    "rl": "RL",
    "sft": "SFT",
    "warm": "SFT, then RL",
    "gentle": "SFT, then RL at a quarter of the rate",
    "distillation": "distillation",
}
"""Rows of the table below start and teacher, as shown."""


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to make."""

    kind: Kind
    seed: int

    def at(self, out: Path) -> Path:
        """Return its run directory; of rows, their file."""
        folder = out / f"seed{self.seed}"
        return folder / ("rows.jsonl" if self.kind == "rows" else self.kind)

    def model(self, out: Path) -> Path:
        """Return the folder of what it trained."""
        return out / f"seed{self.seed}" / f"{self.kind}-model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Answer tokens, by what was done with them."""

    sampled: float = 0.0
    scored: float = 0.0
    trained: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            sampled=self.sampled + other.sampled,
            scored=self.scored + other.scored,
            trained=self.trained + other.trained,
        )

    @property
    def passes(self) -> float:
        """Of the network over a token."""
        return self.sampled + self.scored + TRAINING * self.trained


def plan(seeds: Sequence[int]) -> list[Job]:
    """Return all jobs in an order in which they can be done."""
    return [Job("teacher", TEACHER_SEED), *(Job(kind, seed) for seed in seeds for kind in KINDS)]


def settings(job: Job, steps: int, model: Path | None = None) -> dict[str, object]:
    """Return the fields in which a run differs from the recipe of GRPO.

    Args:
        model: what it starts from; of distillation, the teacher.
    """
    fields: dict[str, object] = {
        "seed": job.seed,
        "num_steps": steps,
        "eval.every": 0,
        "eval.samples": ASKED,
        "checkpoint.every": 20,
    }
    if job.kind == "distillation":
        shape = {"path": str(model), "dtype": "float32", "max_model_len": 128}
        actors = {"count": 1, "cpus": 0.5}
        known = {TEACHER: {"model": shape, "actors": actors, "max_tokens_per_batch": 2048}}
        fields |= {"teachers": known, "algorithm.kl.coef": 0}  # the teacher holds the policy
        for source in SOURCES:
            fields[f"sources.{source}.advantage"] = {"use": "none"}
            fields[f"sources.{source}.distill"] = {"teacher": TEACHER}
    elif model is not None:
        fields["model.path"] = str(model)
    if job.kind == "gentle":
        fields["trainer.optimizer.lr"] = GENTLE_LR
    return fields


def lessons(job: Job, rows: Path) -> dict[str, object]:
    """Return the fields in which fine-tuning differs from its recipe."""
    return {
        "seed": job.seed,
        "epochs": EPOCHS,
        "data.jsonl": str(rows),
        "data.held_out": 0,
        "eval.every": 0,
    }


def run_cost(run_dir: Path) -> Cost:
    """Return what a run with a reference, or a teacher, has cost."""
    rows = records(run_dir / "metrics.jsonl")
    tokens = sum(float(r["completion_tokens"]) for r in rows)
    trained = sum(float(r["train/loss_tokens"]) for r in rows)
    return Cost(sampled=tokens, scored=tokens, trained=trained)


def sft_cost(run_dir: Path) -> Cost:
    """Return what fine-tuning has cost."""
    rows = records(run_dir / "metrics.jsonl")
    return Cost(trained=sum(float(r["train/loss_tokens"]) for r in rows))


def rows_cost(start: Path) -> Cost:
    """Return what `braid sample` has cost, which asked the same policy as a run's first evaluation
    at the same temperature.

    Args:
        start: the run's directory.
    """
    lengths = [
        float(r["completion_tokens_mean"])
        for r in records(start / "eval.jsonl")
        if r["step"] == 0 and r["source"] in SOURCES
    ]
    return Cost(sampled=ITEMS * SAMPLES * sum(lengths))


def steps_left(budget: Cost, spent: Cost, steps: int) -> int:
    """Return how many steps a run may take that costs `budget` in `steps` of them.

    Raises:
        ValueError: none is left.
    """
    left = round((budget.passes - spent.passes) * steps / budget.passes)
    if left < 1:
        raise ValueError(
            f"{spent.passes:,.0f} passes are spent before the first step, of {budget.passes:,.0f}: "
            "give more --steps"
        )
    return left


def costs(seed: int, out: Path) -> dict[str, Cost]:
    """Return what the models of a seed have cost, as far as they are made."""
    at = {kind: Job(kind, seed).at(out) for kind in KINDS}
    sft = rows_cost(at["rl"]) + sft_cost(at["sft"])
    return {
        "rl": run_cost(at["rl"]),
        "sft": sft,
        **{kind: sft + run_cost(at[kind]) for kind in AFTER_SFT},
        "distillation": run_cost(at["distillation"]),
    }


def length(job: Job, out: Path, steps: int) -> int:
    """Return how many steps a run has; after fine-tuning, once what comes before is made."""
    if job.kind not in AFTER_SFT:
        return steps
    found = costs(job.seed, out)
    return steps_left(found["rl"], found["sft"], steps)


def is_made(job: Job, out: Path, steps: int) -> bool:
    """Return whether a job is done."""
    match job.kind:
        case "rows":
            return job.at(out).exists()
        case "teacher" | "sft":
            return job.model(out).exists()
        case "warm" | "gentle" if not all(is_made(Job(k, job.seed), out, steps) for k in BEFORE):
            return False
        case _:
            return evaluated(job.at(out), length(job, out, steps)) is not None


def make(job: Job, out: Path, steps: int, teacher: Path | None) -> None:
    """Do a job, or go on with one that was cut off.

    Args:
        teacher: a run directory, or a model's folder; None for one of our own.
    """
    at = job.at(out)
    at.parent.mkdir(parents=True, exist_ok=True)
    log = at.with_suffix(".txt")
    taught = Job("teacher", TEACHER_SEED).model(out)
    match job.kind:
        case "rows":
            fields = overrides({"seed": job.seed})
            kept = ("--items", ITEMS, "--n", SAMPLES, "--keep", "passed", "--per-item", KEPT)
            braid("sample", RUN, *fields, *kept, "--out", at, log=log)
        case "sft":
            fields = overrides(lessons(job, Job("rows", job.seed).at(out)))
            braid("sft", SFT, *fields, "--run-dir", at, "--resume", "auto", log=log)
            export(at, job.model(out), log)
        case "teacher" if teacher is not None and (teacher / "config.json").exists():
            shutil.copytree(teacher, job.model(out))
        case "teacher" if teacher is not None:
            export(teacher, job.model(out), log)
        case _:
            start = Job("sft", job.seed).model(out) if job.kind in AFTER_SFT else None
            model = taught if job.kind == "distillation" else start
            fields = overrides(settings(job, length(job, out, steps), model))
            braid("run", RUN, *fields, "--run-dir", at, "--resume", "auto", log=log)
            if job.kind == "teacher":
                export(at, job.model(out), log)


def export(run_dir: Path, model: Path, log: Path) -> None:
    """Export a run's last checkpoint; the folder appears whole."""
    partial = model.with_name(f".{model.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    braid("export", run_dir, "latest", partial, log=log)
    partial.rename(model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one seed came to."""

    seed: int
    rates: dict[str, Rates]
    """Model -> source -> held-out pass rate; `start` among them."""
    costs: dict[str, Cost]
    """Model -> what it has cost from the start on."""
    warm_steps: int
    """RL steps after fine-tuning."""


def outcome(seed: int, out: Path, steps: int) -> Outcome | None:
    """Return what a seed came to; None where something is not made yet."""
    if not all(is_made(Job(kind, seed), out, steps) for kind in KINDS):
        return None
    at = {kind: Job(kind, seed).at(out) for kind in KINDS}
    warm_steps = length(Job("warm", seed), out, steps)
    found = {
        START: evaluated(at["rl"], 0),
        "rl": evaluated(at["rl"], steps),
        "sft": evaluated(at["warm"], 0),
        **{kind: evaluated(at[kind], warm_steps) for kind in AFTER_SFT},
        "distillation": evaluated(at["distillation"], steps),
    }
    rates = {name: own for name, own in found.items() if own is not None}
    if len(rates) < len(found):
        return None
    return Outcome(seed=seed, rates=rates, costs=costs(seed, out), warm_steps=warm_steps)


def teacher_rates(run_dir: Path) -> Rates | None:
    """Return a teacher's pass rates at the end of its run; None where it was not evaluated."""
    steps = [int(r["step"]) for r in records(run_dir / "eval.jsonl")]
    return evaluated(run_dir, max(steps)) if steps else None


HEADER = ("model", *SOURCES, "mean", "worst seed", "worst source, any seed", "1,000 passes")


def cells(name: str, rates: Sequence[Rates], passes: Sequence[float]) -> list[str]:
    """Return a model's row, pass rates in %: means over its seeds, and its worst."""
    figures = [fmean(r[source] for r in rates) for source in SOURCES]
    means = [fmean(r.values()) for r in rates]
    figures += [fmean(means), min(means), min(min(r.values()) for r in rates)]
    spent = f"{fmean(passes) / 1000:,.0f}" if passes else "-"
    return [name, *(f"{100 * figure:.1f}" for figure in figures), spent]


def table_rows(found: Sequence[Outcome], teacher: Rates | None) -> list[list[str]]:
    """Return the table: the start, the teacher, then what was made of the one and by the other."""
    rows = [cells(START, [o.rates[START] for o in found], [])]
    if teacher is not None:
        rows.append(cells(TEACHER, [teacher], []))
    return rows + [
        cells(shown, [o.rates[name] for o in found], [o.costs[name].passes for o in found])
        for name, shown in MODELS.items()
    ]


def page_section(found: Sequence[Outcome], teacher: Rates | None, steps: int) -> str:
    """Return what docs/benchmarks.md says."""
    listed = ", ".join(str(o.seed) for o in found)
    after = ", ".join(str(o.warm_steps) for o in found)
    table = markdown(HEADER, table_rows(found, teacher))
    said = f"Held-out pass rate in %, mean of seeds {listed}; {steps} steps of RL or distillation, "
    return f"{said}and {after} of RL after fine-tuning.\n\n{table}"


def record(
    found: Sequence[Outcome], teacher: Rates | None, out: Path, steps: int
) -> dict[str, Any]:
    """Return what is written to the baseline."""
    dirs = [job.at(out) for job in plan([o.seed for o in found]) if job.kind != "rows"]
    return {
        "command": f"python benchmarks/warm_start.py --steps {steps}",
        **made_on(dirs),
        "steps": steps,
        "teacher": teacher,
        "seeds": [asdict(o) for o in found],
    }


def main() -> None:
    """Make what is missing; print the table; write the figures and the page's section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--teacher", type=Path, default=None, help="a run directory, or a model")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/warm_start")
    parser.add_argument("--jobs", type=int, default=None, help="end after so many jobs")
    parser.add_argument("--json", type=Path, default=BASELINE)
    args = parser.parse_args()
    out, console = args.out.resolve(), Console()
    given = None if args.teacher is None else args.teacher.resolve()
    left = [job for job in plan(args.seeds) if not is_made(job, out, args.steps)]
    for job in left[: args.jobs]:
        console.print(f"seed {job.seed}: {job.kind}")
        make(job, out, args.steps, given)
    seen = [o for seed in args.seeds if (o := outcome(seed, out, args.steps)) is not None]
    if not seen:
        console.print("no seed is complete yet")
        return
    teacher = teacher_rates(given or Job("teacher", TEACHER_SEED).at(out))
    table = Table(*HEADER, title=f"Held-out pass rate in %, seeds {[o.seed for o in seen]}")
    for row in table_rows(seen, teacher):
        table.add_row(*row)
    (console if console.is_terminal else Console(width=120)).print(table)
    args.json.write_text(json.dumps(record(seen, teacher, out, args.steps), indent=1) + "\n")
    if args.json == BASELINE:
        write_section("warm start", page_section(seen, teacher, args.steps))
    console.print(f"written: {args.json}")


if __name__ == "__main__":
    main()
