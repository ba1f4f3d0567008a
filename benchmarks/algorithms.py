"""Each objective on the same model, tasks and samples: does it learn, and does any seed collapse.

    python benchmarks/algorithms.py [--seeds 1 2 3 4 5] [--steps 40] [--only NAME ...] [--jobs N]

Runs the recipes of `configs/recipes/algorithms/`, as they are but for the seed and what is
evaluated: those that `COMPARED` names once a seed, the others once, under the first seed. What is
compared takes 24 groups of 8 samples a step, in four optimizer steps. A seed fixes the tasks, so
that all objectives are asked the same ones. The table has the held-out pass rate after the last
step, its worst seed, and how far the training reward ends below the best that it had: an objective
that collapses falls by most of what it gained. Distillation has no reward: the policy that GRPO
came to under the same seed teaches it on the same samples.

Runs that ended are not made again: an interrupted script goes on where it was. With `--jobs N` it
ends after N runs; the tables are of the objectives that are complete.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

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

RECIPES = ROOT / "configs/recipes/algorithms"
COMPARED = {
    "grpo": "GRPO",
    "dr_grpo": "Dr. GRPO",
    "rloo": "RLOO",
    "reinforce_pp": "REINFORCE++",
    "ppo": "PPO",
    "gspo": "GSPO",
    "cispo": "CISPO",
    "distillation": "Distillation",
}
OTHERS = {
    "dapo": "DAPO",
    "dppo": "DPPO",
    "gdpo": "GDPO",
    "grpo_process": "GRPO, process supervision",
    "icepop": "IcePop, two steps stale",
    "kl_control": "GRPO, KL and entropy held",
    "reinforce_pp_baseline": "REINFORCE++-baseline",
    "remax": "ReMax",
}
ALGORITHMS = COMPARED | OTHERS
"""Recipe and name as shown; `OTHERS` may differ in more than their objective."""
TEACHER = "grpo"
"""Which objective's policy teaches, under the same seed."""
SOURCES = ("sums", "spelling", "filtering")
SAMPLES = 4
"""Completions of each held-out item."""
WINDOW = 5
"""Steps over which the training reward is averaged before its best and its end are compared."""
COLLAPSED = 0.5
"""Share of the gain in training reward whose loss counts as a collapse."""
BASELINE = ROOT / "benchmarks/baselines/algorithms.json"
PLOT = ROOT / "docs/algorithms.png"


@dataclass(frozen=True, slots=True)
class Job:
    """One run: an objective under a seed."""

    algorithm: str
    seed: int

    def run_dir(self, out: Path) -> Path:
        """Return its run directory."""
        return out / f"seed{self.seed}" / self.algorithm


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run came to."""

    algorithm: str
    seed: int
    before: dict[str, float]
    """Held-out pass rate of each source before the first step."""
    after: dict[str, float]
    """And after the last."""
    rewards: tuple[float, ...]
    """Share of right answers among the sampled ones, step by step."""
    samples: int
    """Trained on."""

    @property
    def mean(self) -> float:
        """Pass rate after the last step, over the sources."""
        return fmean(self.after.values())

    @property
    def lost(self) -> float:
        """Share of its gain in training reward that it had lost at its end."""
        return lost_share(self.rewards)


def lost_share(rewards: Sequence[float], window: int = WINDOW) -> float:
    """Return which share of the best gain over the start is gone at the end; 1 if none was gained.

    Args:
        rewards: one a step; compared as means over `window` steps.
    """
    if len(rewards) < 2 * window:
        raise ValueError(f"{len(rewards)} steps are too few: give at least {2 * window}")
    means = [fmean(rewards[i : i + window]) for i in range(len(rewards) - window + 1)]
    gain = max(means) - means[0]
    return (max(means) - means[-1]) / gain if gain > 0 else 1.0


def plan(names: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Return all runs, seed by seed, the others last; SystemExit if a teacher is not among them."""
    if "distillation" in names and TEACHER not in names:
        raise SystemExit(f"distillation needs a teacher: --only ... {TEACHER}")
    compared = sorted(set(names) & COMPARED.keys(), key=[*COMPARED].index)
    others = sorted(set(names) & OTHERS.keys())
    return [Job(name, seed) for seed in seeds for name in compared] + [
        Job(name, seeds[0]) for name in others
    ]


def settings(job: Job, steps: int, out: Path) -> dict[str, object]:
    """Return the fields in which a run differs from its recipe."""
    fields: dict[str, object] = {
        "seed": job.seed,
        "num_steps": steps,
        "eval.every": 0,
        "eval.samples": SAMPLES,
        "checkpoint.every": 20,
    }
    if job.algorithm != "distillation":
        return fields
    for name in SOURCES:
        fields |= {
            f"sources.{name}.group_size": 8,
            f"sources.{name}.advantage.use": "none",
            f"sources.{name}.distill.coef": 1.0,
        }
    teacher = taught_by(job, out)
    return fields | {"batch.num_minibatches": 4, "teachers.sft.model.path": str(teacher)}


def taught_by(job: Job, out: Path) -> Path:
    """Return the folder of a run's teacher."""
    return Job(TEACHER, job.seed).run_dir(out).with_name("teacher")


def evaluated(run_dir: Path, step: int) -> dict[str, float] | None:
    """Return the pass rates at a step; None unless every source has one."""
    found = {
        r["source"]: float(r["pass_rate"])
        for r in records(run_dir / "eval.jsonl")
        if r["step"] == step
    }
    return {name: found[name] for name in SOURCES} if found.keys() >= set(SOURCES) else None


def outcome(job: Job, out: Path, steps: int) -> Outcome | None:
    """Return what a run came to; None if it did not end yet."""
    run_dir = job.run_dir(out)
    before, after = evaluated(run_dir, 0), evaluated(run_dir, steps)
    if before is None or after is None:
        return None
    rows = records(run_dir / "metrics.jsonl")
    accounts = ledger(run_dir)["sources"]
    return Outcome(
        algorithm=job.algorithm,
        seed=job.seed,
        before=before,
        after=after,
        rewards=tuple(fmean(r[f"source/{n}/all/pass@1"] for n in SOURCES) for r in rows),
        samples=sum(accounts[name]["trained"]["samples"] for name in SOURCES),
    )


def run(job: Job, out: Path, steps: int) -> None:
    """Make a run, or go on with one that was cut off."""
    run_dir = job.run_dir(out)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    recipe = RECIPES / f"{job.algorithm}.yaml"
    fields = overrides(settings(job, steps, out))
    log = run_dir.with_suffix(".txt")
    if job.algorithm == "distillation" and not (taught_by(job, out) / "config.json").exists():
        braid("export", Job(TEACHER, job.seed).run_dir(out), "latest", taught_by(job, out), log=log)
    braid("run", recipe, *fields, "--run-dir", run_dir, "--resume", "auto", log=log)


HEADER = ("objective", *SOURCES, "mean", "worst seed", "worst source, any seed", "lost, worst seed")


def cells(name: str, runs: Sequence[Outcome]) -> list[str]:
    """Return an objective's row, in %: means over its seeds, and its worst."""
    figures = [fmean(r.after[source] for r in runs) for source in SOURCES]
    figures += [fmean(r.mean for r in runs), min(r.mean for r in runs)]
    figures += [min(min(r.after.values()) for r in runs), max(r.lost for r in runs)]
    return [name, *(f"{100 * figure:.1f}" for figure in figures)]


def start_cells(runs: Sequence[Outcome]) -> list[str]:
    """Return the row of the model that all start from."""
    one = {r.seed: r for r in runs}.values()
    figures = [fmean(r.before[source] for r in one) for source in SOURCES]
    means = [fmean(r.before.values()) for r in one]
    lowest = min(min(r.before.values()) for r in one)
    shown = [f"{100 * f:.1f}" for f in (*figures, fmean(means), min(means), lowest)]
    return ["start", *shown, "-"]


def table_rows(by_name: Mapping[str, Sequence[Outcome]]) -> list[list[str]]:
    """Return the table: the start, then the objectives, best mean first."""
    order = sorted(by_name, key=lambda n: -fmean(r.mean for r in by_name[n]))
    every = [r for runs in by_name.values() for r in runs]
    return [start_cells(every), *(cells(ALGORITHMS[name], by_name[name]) for name in order)]


def page_section(by_name: Mapping[str, Sequence[Outcome]], seeds: Sequence[int]) -> str:
    """Return what docs/benchmarks.md says of objectives that ran under these seeds."""
    table = markdown(HEADER, table_rows(by_name))
    fallen = [
        f"{ALGORITHMS[n]} (seed {r.seed})"
        for n, runs in by_name.items()
        for r in runs
        if r.lost > COLLAPSED
    ]
    verdict = f"Collapsed: {', '.join(fallen)}." if fallen else "None collapsed."
    listed = f"mean of seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {seeds[0]}"
    return f"Held-out pass rate in %, {listed}. {verdict}\n\n{table}"


def draw(by_name: Mapping[str, Sequence[Outcome]], path: Path) -> None:
    """Draw a panel for each objective: its seeds' training curves, their mean, and its end."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(4, len(by_name))
    lines = -(-len(by_name) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(2.3 * columns, 2.3 * lines), dpi=120, sharex=True, sharey=True
    )
    panels = [grid] if len(by_name) == 1 else list(grid.flat)
    for axes, (name, runs) in zip(panels, by_name.items(), strict=False):
        for r in runs:
            axes.plot(_smooth(r.rewards), color="#56b4e9", linewidth=0.8, alpha=0.8)
        mean = [fmean(values) for values in zip(*(r.rewards for r in runs), strict=True)]
        axes.plot(_smooth(mean), color="#0072b2", linewidth=2)
        held_out = fmean(r.mean for r in runs)
        axes.axhline(held_out, color="#e69f00", linewidth=1, linestyle="--")
        worst = min(r.mean for r in runs)
        axes.set_title(f"{ALGORITHMS[name]}\n{held_out:.3f}, worst {worst:.3f}", fontsize=8)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    for axes in panels[len(by_name) :]:
        axes.set_visible(False)
    figure.supxlabel("training step", fontsize=8)
    figure.supylabel("share of right answers", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the running mean over the last `WINDOW` steps."""
    return [fmean(values[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(values))]


def main() -> None:
    """Make what runs are missing; print the table; write the figures and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs/algorithms")
    parser.add_argument("--jobs", type=int, default=None, help="end after so many runs")
    parser.add_argument("--json", type=Path, default=BASELINE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    args = parser.parse_args()
    out, console = args.out.resolve(), Console()
    jobs = plan(args.only, args.seeds)
    left = [job for job in jobs if outcome(job, out, args.steps) is None]
    for job in left[: args.jobs]:
        console.print(f"seed {job.seed}: {ALGORITHMS[job.algorithm]}")
        run(job, out, args.steps)
    found = {job: outcome(job, out, args.steps) for job in jobs}
    ended = {n: [o for j, o in found.items() if j.algorithm == n] for n in args.only}
    complete = {
        n: own for n, runs in ended.items() if len(own := [o for o in runs if o]) == len(runs)
    }
    compared = {n: own for n, own in complete.items() if n in COMPARED}
    others = {n: own for n, own in complete.items() if n in OTHERS}
    if not compared:
        console.print("no objective that is compared has all seeds yet")
        return
    tables = [(compared, args.seeds), *([(others, args.seeds[:1])] if others else [])]
    for shown, seeds in tables:
        table = Table(*HEADER, title=f"Held-out pass rate in %, seeds {seeds}")
        for row in table_rows(shown):
            table.add_row(*row)
        (console if console.is_terminal else Console(width=120)).print(table)
    record = {
        "command": f"python benchmarks/algorithms.py --steps {args.steps}",
        **made_on(job.run_dir(out) for job in jobs if job.algorithm in complete),
        "steps": args.steps,
        "runs": [
            {**asdict(r), "rewards": [round(x, 4) for x in r.rewards], "lost": round(r.lost, 4)}
            for own in complete.values()
            for r in own
        ],
    }
    args.json.write_text(json.dumps(record, indent=1) + "\n")
    draw(compared, args.plot)
    if args.json == BASELINE:
        write_section("algorithms", "\n".join(page_section(*t) for t in tables))
    console.print(f"written: {args.json}, {args.plot}")


if __name__ == "__main__":
    main()
