"""A learning rate ten times too high: what becomes of the policy, without guards and with them.

    python benchmarks/too_fast.py [--arms none skip shrink rollback stop] [--seeds 1 2 3]

The recipe of GRPO, whose rate rises over `RISE` steps to `--factor` times its own and stays there,
so that guards know what was usual before it is too high. Arms differ in what every guard's alarm
leads to: nothing but a line (`none`), or one action. `skip` is that of the guards who can tell
before the update. Written down are the held-out pass rates where a run ended, the course of its
training reward, every alarm, what was done about it, and why the run ended.

Runs that ended are not made again: an interrupted script goes on where it was. With `--jobs N` it
ends after N runs; the table is of the arms that are there.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.algorithms import RECIPES, SAMPLES, SOURCES, WINDOW, evaluated
from benchmarks.stack import ROOT, made_on, markdown, overrides, records, start, write_section
from configs.load import load_recipe

RECIPE = RECIPES / "grpo.yaml"
BASELINE = ROOT / "benchmarks/baselines/too_fast.json"
BEFORE = ("loss", "grad_norm")
"""Guards that can tell before the update."""
AFTER = ("kl", "mismatch", "ratio", "entropy", "reward", "length")
ARMS = ("none", "skip", "shrink", "rollback", "stop")
RISE = 20
"""Training steps over which the rate rises."""
WATCH: dict[str, object] = {
    "guards.window": 12,
    "guards.warmup": 8,
    "guards.good_after": 3,
    "checkpoint.every": 4,
}
"""Guards that know what is usual while the rate still rises, and checkpoints to go back to."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run: an action under a seed."""

    arm: str
    seed: int

    def run_dir(self, out: Path) -> Path:
        """Return its run directory."""
        return out / f"seed{self.seed}" / self.arm

    def verdict(self, out: Path) -> Path:
        """Return the file that says how it ended."""
        return out / f"seed{self.seed}" / f"{self.arm}.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run came to."""

    arm: str
    seed: int
    why: str
    """Why it ended before its last step; empty where it did not."""
    before: dict[str, float]
    """Held-out pass rate of each source before the first step."""
    after: dict[str, float] | None
    """And after the last one that was trained; None where the run could not be asked any more."""
    rewards: tuple[float, ...]
    """Share of right answers among the sampled ones, step by step."""
    alarms: tuple[tuple[int, str], ...]
    """Step and guard of each alarm that was raised."""
    skipped: int
    """Updates that were not applied."""
    shrunk: int
    """Steps with a smaller rate."""
    rolled_back: tuple[tuple[int, int], ...]
    """Step after which the run went back, and to which."""


def actions(arm: str) -> dict[str, str]:
    """Return what each guard's alarm leads to."""
    if arm == "none":
        return {}
    watching = BEFORE if arm == "skip" else (*BEFORE, *AFTER)
    found = {f"guards.{name}.action": arm for name in watching}
    return found | {"guards.non_finite.action": "skip" if arm == "shrink" else arm}


def settings(job: Job, steps: int, factor: float) -> dict[str, object]:
    """Return the fields in which a run differs from the recipe."""
    cfg = load_recipe(RECIPE)
    optimizer = {
        "lr": cfg.trainer.optimizer.lr * factor,
        "warmup_steps": RISE * cfg.batch.updates,
        "decay": "constant",
    }
    return {
        "seed": job.seed,
        "num_steps": steps,
        "eval.every": 0,
        "eval.samples": SAMPLES,
        **{f"trainer.optimizer.{name}": value for name, value in optimizer.items()},
        **WATCH,
        **actions(job.arm),
    }


def run(job: Job, out: Path, steps: int, factor: float) -> None:
    """Make a run, or go on with one that was cut off; write down how it ended.

    Raises:
        SystemExit: it failed for another reason than that it diverged.
    """
    run_dir = job.run_dir(out)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log = run_dir.with_suffix(".txt")
    fields = overrides(settings(job, steps, factor))
    code = start("run", RECIPE, *fields, "--run-dir", run_dir, "--resume", "auto", log=log).wait()
    why = reason((run_dir / "log.txt").read_text() if (run_dir / "log.txt").exists() else "")
    if code != 0 and not why:
        raise SystemExit(f"{job.arm} ended with {code}; see {log}")
    job.verdict(out).write_text(json.dumps({"code": code, "why": why}) + "\n")


def reason(log: str) -> str:
    """Return why a run ended early, of its log; empty where that says nothing of it."""
    for line in reversed(log.splitlines()):
        _, mark, said = line.partition(" INFO braid.recorder: ")
        if mark and "The run ends here" in said:
            return said
        if " is nan " in line or " is inf " in line:  # a NonFiniteError
            return line[line.index("step ") :] if "step " in line else line
    return ""


def outcome(job: Job, out: Path) -> Outcome | None:
    """Return what a run came to; None if it did not end yet."""
    run_dir = job.run_dir(out)
    if not job.verdict(out).exists():
        return None
    rows = records(run_dir / "metrics.jsonl")
    before = evaluated(run_dir, 0)
    if before is None or not rows:
        return None
    return Outcome(
        arm=job.arm,
        seed=job.seed,
        why=json.loads(job.verdict(out).read_text())["why"],
        before=before,
        after=evaluated(run_dir, int(rows[-1]["step"])),
        rewards=tuple(fmean(r[f"source/{n}/all/pass@1"] for n in SOURCES) for r in rows),
        alarms=tuple(
            (int(a["step"]), str(a["monitor"]).removeprefix("guards/"))
            for a in records(run_dir / "alarms.jsonl")
            if a["event"] == "raised" and str(a["monitor"]).startswith("guards/")
        ),
        skipped=int(sum(r.get("train/skipped") or 0 for r in rows)),
        shrunk=sum(bool(r.get("guards/shrunk_for")) for r in rows),
        rolled_back=tuple(
            (int(r["step"]), int(r["guards/rolled_back_to"]))
            for r in rows
            if r.get("guards/rolled_back_to") is not None
        ),
    )


HEADER = (
    "action",
    "seed",
    "steps",
    "first alarm",
    "alarms",
    "skipped",
    "shrunk",
    "rolled back",
    *SOURCES,
    "best in training",
    "at its end",
    "ended",
)


def cells(o: Outcome) -> list[str]:
    """Return a run's row, shares of right answers in %."""
    first = f"{o.alarms[0][1]}, step {o.alarms[0][0]}" if o.alarms else "-"
    went = ", ".join(f"{a} to {b}" for a, b in o.rolled_back) or "-"
    means = [fmean(o.rewards[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(o.rewards))]
    held_out = ["-" if o.after is None else f"{100 * o.after[n]:.1f}" for n in SOURCES]
    trained = [f"{100 * max(means):.1f}", f"{100 * means[-1]:.1f}"]
    counts = [str(len(o.alarms)), str(o.skipped), str(o.shrunk), went]
    ended = "with the reason" if o.why else "at its last step"
    return [o.arm, str(o.seed), str(len(o.rewards)), first, *counts, *held_out, *trained, ended]


def page_section(found: Sequence[Outcome], factor: float) -> str:
    """Return what docs/benchmarks.md says."""
    table = markdown(HEADER, [cells(o) for o in found])
    first: dict[str, Outcome] = {}
    for o in found:
        if o.why:
            first.setdefault(o.arm, o)
    said = "".join(f"\n- `{o.arm}`, seed {o.seed}: {o.why}" for o in first.values())
    reasons = f"\nReasons that were given, one for each action:\n{said}\n" if said else ""
    return f"Shares of right answers in %, {factor:g} times the rate.\n\n{table}{reasons}"


def main() -> None:
    """Make what runs are missing; print the table; write the figures and the page's section."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/too_fast")
    parser.add_argument("--jobs", type=int, default=None, help="end after so many runs")
    parser.add_argument("--json", type=Path, default=BASELINE)
    args = parser.parse_args()
    out, console = args.out.resolve() / f"x{args.factor:g}", Console()
    jobs = [Job(arm, seed) for arm in args.arms for seed in args.seeds]
    for job in [j for j in jobs if outcome(j, out) is None][: args.jobs]:
        console.print(f"seed {job.seed}: {job.arm}")
        run(job, out, args.steps, args.factor)
    found = [o for job in jobs if (o := outcome(job, out)) is not None]
    if not found:
        console.print("no run has ended yet")
        return
    table = Table(*HEADER, title=f"Learning rate times {args.factor:g}")
    for o in found:
        table.add_row(*cells(o))
    (console if console.is_terminal else Console(width=160)).print(table)
    command = f"python benchmarks/too_fast.py --steps {args.steps} --factor {args.factor:g}"
    made = made_on(Job(o.arm, o.seed).run_dir(out) for o in found)
    runs = [{**asdict(o), "rewards": [round(r, 4) for r in o.rewards]} for o in found]
    figures = {"command": command, **made, "steps": args.steps, "runs": runs}
    args.json.write_text(json.dumps(figures, indent=1) + "\n")
    if args.json == BASELINE:
        write_section("too fast", page_section(found, args.factor))
    console.print(f"written: {args.json}")


if __name__ == "__main__":
    main()
