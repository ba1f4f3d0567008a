"""Five sources on the real stack: true shares, no waiting for the slow one, exact resume.

    python benchmarks/five_sources.py [--steps 200] [--out runs/five_sources] [--jobs N]

The recipe is benchmarks/five_sources.yaml: one source is ten times slower than the others, one has
thirty rows, of one half the groups are rejected. The runs:
- whole: the recipe as it is;
- again: the same, same seed;
- without: the slow source's weight is 0, to compare the time of a step;
- waiting: 20 steps in which the slow source may not start earlier, to see what waiting takes;
- killed: `kill -9` at five random moments of the run, resumed each time.

Asserted, from what the runs left (`braid ledger --json`, ledger.jsonl, metrics.jsonl): realised
shares within 0.5% of their targets, a ledger that balances, nothing lost or trained twice, and the
same sequence of trained tasks in whole, again and killed.

Attempts that ended are not made again: an interrupted script goes on where it was. With `--jobs N`
it ends after N of them.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from actors.processes import ProcessId, descendants, identify, kill
from benchmarks.stack import (
    ROOT,
    braid,
    ledger,
    made_on,
    markdown,
    overrides,
    records,
    start,
    write_section,
)
from mixing.ledger.events import Attempt, Trained, from_row
from mixing.ledger.ledger import rows

RECIPE = ROOT / "benchmarks/five_sources.yaml"
BASELINE = ROOT / "benchmarks/baselines/five_sources.json"
SLOW = "slow"
KILLS, KILL_SEED = 5, 1
SHARE_BOUND = 0.005
WAITING_STEPS = 20
STEPS_OF = {
    "whole": "with all five sources",
    "without": "without the slow one",
    "waiting": "if the slow one may not start earlier",
}
SAME = {"again": "made again", "killed": f"killed {KILLS} times and resumed"}
SKIP = 20
"""Steps at the start that timings leave out: caches are cold and nothing is sampled ahead."""
ATTEMPT_S, GONE_S = 380.0, 10.0

Tasks = Sequence[tuple[int, tuple[str, ...]]]
"""Step -> group ids it trained on, in order."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One run, and the fields in which it differs from the recipe."""

    name: str
    steps: int
    fields: Mapping[str, object]
    kills: tuple[int, ...] = ()
    """Steps after which it is killed, each in an attempt of its own."""

    def run_dir(self, out: Path) -> Path:
        """Return its run directory."""
        return out / self.name


def variants(steps: int) -> list[Variant]:
    """Return all runs."""
    waiting = {f"sources.{SLOW}.max_staleness": 0}
    return [
        Variant("whole", steps, {}),
        Variant("killed", steps, {}, kill_steps(steps)),
        Variant("without", steps, {f"sources.{SLOW}.weight": 0}),
        Variant("waiting", min(steps, WAITING_STEPS), waiting),
        Variant("again", steps, {}),
    ]


def kill_steps(steps: int) -> tuple[int, ...]:
    """Return the random steps after which the killed run dies, in order."""
    return tuple(sorted(random.Random(KILL_SEED).sample(range(2, steps - 1), KILLS)))


def trained_tasks(path: Path) -> Tasks:
    """Return what each step trained on, by a ledger; what a resume undid does not count."""
    events = (from_row(row.text) for row in rows(path) if not row.undone)
    return [
        (event.step, tuple(group.group_id for group in event.groups))
        for event in events
        if isinstance(event, Trained)
    ]


def attempts(run_dir: Path) -> int:
    """Return how often a run was started."""
    path = run_dir / "ledger.jsonl"
    if not path.exists():
        return 0
    return sum(isinstance(from_row(row.text), Attempt) for row in rows(path))


def first_difference(one: Tasks, other: Tasks) -> str | None:
    """Say where two runs trained on different tasks; None if nowhere."""
    for (step, groups), (at, others) in zip(one, other, strict=False):
        if (step, groups) != (at, others):
            differ = [f"{a} / {b}" for a, b in zip(groups, others, strict=False) if a != b]
            return f"step {step} / {at}: {', '.join(differ[:3]) or 'as many groups'}"
    return None if len(one) == len(other) else f"{len(one)} steps / {len(other)}"


def last_step(run_dir: Path) -> int:
    """Return the last step that a run trained; 0 before the first."""
    done = records(run_dir / "metrics.jsonl")
    return done[-1]["step"] if done else 0


def ended(variant: Variant, out: Path) -> bool:
    """Whether a run was trained to its end, and its last checkpoint committed."""
    final = variant.run_dir(out) / f"checkpoints/step_{variant.steps}"
    return final.is_dir() and last_step(variant.run_dir(out)) == variant.steps


def attempt(variant: Variant, out: Path) -> None:
    """Make one attempt of a run: to its next kill, or to its end."""
    run_dir = variant.run_dir(out)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log = run_dir.with_suffix(".txt")
    fields = overrides({"num_steps": variant.steps, **variant.fields})
    command = ("run", RECIPE, *fields, "--run-dir", run_dir, "--resume", "auto")
    before = attempts(run_dir)
    if before >= len(variant.kills):
        braid(*command, log=log)
        return
    process = start(*command, log=log)
    try:
        _wait_until_trained(run_dir, before, variant.kills[before], process)
        time.sleep(random.Random(f"{KILL_SEED}/{before}").random())
    finally:
        family = descendants(process.pid)
        process.kill()
        process.wait()
        _wait_until_gone(family)


def _wait_until_trained(
    run_dir: Path, before: int, step: int, process: subprocess.Popen[bytes]
) -> None:
    """Wait for a step of the attempt that follows `before` others."""
    deadline = time.monotonic() + ATTEMPT_S
    while attempts(run_dir) == before or last_step(run_dir) < step:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{run_dir} ended, or took over {ATTEMPT_S:g} s, before step {step}")
        time.sleep(0.2)


def _wait_until_gone(family: Sequence[ProcessId]) -> None:
    """Wait for what a killed driver leaves to end by itself; kill the rest, which is Ray's agents:
    they wait a minute for a head that is gone."""
    deadline = time.monotonic() + GONE_S
    while any(identify(p.pid) == p for p in family) and time.monotonic() < deadline:
        time.sleep(0.2)
    kill(family)


def step_seconds(run_dir: Path, skip: int) -> float:
    """Return the mean seconds of a step after the first `skip`."""
    return fmean(r["time/step"] for r in records(run_dir / "metrics.jsonl") if r["step"] > skip)


def group_seconds(done: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean seconds that sampling a group of each source took."""
    suffix = "/all/generate_s"
    seconds: dict[str, list[float]] = {}
    for key, value in (pair for record in done for pair in record.items()):
        if key.endswith(suffix):
            seconds.setdefault(key.split("/")[1], []).append(value)
    return {name: fmean(values) for name, values in seconds.items()}


def source_figures(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each source's share against its target, in the run's unit, and its survival."""
    return {
        name: {
            "target": round(account["target_share"], 6),
            "trained": round(account["trained"]["share"][report["unit"]], 6),
            "groups": account["trained"]["groups"],
            "samples": account["trained"]["samples"],
            "rejected": account["rejected"],
            "survival": round(account["survival"], 4),
        }
        for name, account in report["sources"].items()
        if account["trained"]["groups"]
    }


def share_error(figures: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the largest distance of a share from its target."""
    return max(abs(f["trained"] - f["target"]) for f in figures.values())


def variant_figures(variant: Variant, out: Path) -> dict[str, Any]:
    """Return what a run came to."""
    run_dir = variant.run_dir(out)
    report = ledger(run_dir)
    sources = source_figures(report)
    done = records(run_dir / "metrics.jsonl")
    return {
        "steps": report["step"],
        "attempts": report["attempts"],
        "balanced": report["balanced"],
        "lost": len(report["lost"]),
        "trained_twice": len(report["trained_twice"]),
        "unit": report["unit"],
        "worst_share_error": round(share_error(sources), 6),
        "step_s": round(step_seconds(run_dir, min(SKIP, variant.steps // 2)), 3),
        "max_staleness": max(r["staleness/max"] for r in done),
        "sources": sources,
    }


def failures(found: Mapping[str, Mapping[str, Any]], differences: Mapping[str, str]) -> list[str]:
    """Return everything that is not as it must be, in words."""
    wrong = [f"{name} trained on other tasks: {what}" for name, what in differences.items()]
    for name, figures in found.items():
        if not figures["balanced"]:
            wrong.append(f"{name}: the ledger does not balance")
        wrong += [
            f"{name}: {figures[k]} groups {k}" for k in ("lost", "trained_twice") if figures[k]
        ]
        if name != "waiting" and figures["worst_share_error"] > SHARE_BOUND:
            wrong.append(f"{name}: a share is {figures['worst_share_error']:.2%} off its target")
    return wrong


HEADER = ("source", "target", "share", "samples", "groups", "rejected", "survival")


def cells(name: str, figures: Mapping[str, Any]) -> list[str]:
    """Return a source's account as shown."""
    return [
        name,
        f"{figures['target']:.2%}",
        f"{figures['trained']:.2%}",
        f"{figures['samples']:,}",
        f"{figures['groups']:,}",
        f"{sum(figures['rejected'].values()):,}",
        f"{figures['survival']:.1%}",
    ]


def render(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the account of every run for a terminal."""
    table = Table(title="Five sources", caption="share: of samples trained on")
    for heading in ("run", *HEADER):
        table.add_column(heading, justify="left" if heading in ("run", "source") else "right")
    for name, run in found.items():
        for source, figures in run["sources"].items():
            table.add_row(name, *cells(source, figures))
        table.add_section()
    return table


def page_section(figures: Mapping[str, Any]) -> str:
    """Return what docs/benchmarks.md says of the figures."""
    runs, seconds = figures["runs"], figures["group_s"]
    whole, other = runs["whole"], max(s for name, s in seconds.items() if name != SLOW)
    lines = [
        f"- A group of `{SLOW}` takes {seconds[SLOW]:.2f} s, {seconds[SLOW] / other:.0f} times as "
        "long as one of the slowest other source.",
        f"- Largest distance of a share from its target, in all runs of {whole['steps']} steps: "
        f"{max(r['worst_share_error'] for r in runs.values() if r['steps'] > WAITING_STEPS):.3%}.",
        *(
            f"- A step takes {run['step_s']:.2f} s {STEPS_OF[name]}."
            for name, run in runs.items()
            if name in STEPS_OF
        ),
        *(
            f"- Tasks of the run {SAME[name]}: {'the same' if same else 'OTHERS'}, step by step."
            for name, same in figures["same_tasks"].items()
        ),
    ]
    if missing := [v.name for v in variants(whole["steps"]) if v.name not in runs]:
        lines.append(f"- Not recorded yet: the runs {', '.join(missing)}.")
    table = markdown(HEADER, [cells(name, f) for name, f in whole["sources"].items()])
    return table + "\n" + "\n".join(lines) + "\n"


def report(steps: int, out: Path) -> dict[str, Any]:
    """Return the figures of the runs that ended."""
    done = [v for v in variants(steps) if ended(v, out)]
    found = {v.name: variant_figures(v, out) for v in done}
    figures: dict[str, Any] = {"killed_after": kill_steps(steps), "runs": found}
    if "whole" not in found:
        return figures
    tasks = {v.name: trained_tasks(v.run_dir(out) / "ledger.jsonl") for v in done}
    same = [name for name in ("again", "killed") if name in found]
    compared = {name: first_difference(tasks["whole"], tasks[name]) for name in same}
    figures["differences"] = {name: what for name, what in compared.items() if what is not None}
    figures["same_tasks"] = {name: what is None for name, what in compared.items()}
    seconds = group_seconds(records(out / "whole/metrics.jsonl"))
    figures["group_s"] = {name: round(value, 3) for name, value in seconds.items()}
    figures["step_time_ratio"] = {
        name: round(found["whole"]["step_s"] / found[name]["step_s"], 3)
        for name in ("without", "waiting")
        if name in found
    }
    return figures


def main() -> None:
    """Make what attempts are missing; print the account; write the figures; exit 1 if they fail."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/five_sources")
    parser.add_argument("--jobs", type=int, default=10**6, help="end after so many attempts")
    parser.add_argument("--json", type=Path, default=BASELINE)
    args = parser.parse_args()
    out, console = args.out.resolve(), Console()
    jobs = args.jobs
    for variant in variants(args.steps):
        while jobs > 0 and not ended(variant, out):
            console.print(f"{variant.name}, attempt {attempts(variant.run_dir(out)) + 1}")
            attempt(variant, out)
            jobs -= 1
    figures = report(args.steps, out)
    console.print(render(figures["runs"]))
    summary = {key: value for key, value in figures.items() if key != "runs"}
    console.print_json(json.dumps(summary))
    command = f"python benchmarks/five_sources.py --steps {args.steps}"
    made = made_on(v.run_dir(out) for v in variants(args.steps))
    args.json.write_text(json.dumps({"command": command, **made, **figures}, indent=1) + "\n")
    if args.json == BASELINE and "whole" in figures["runs"]:
        write_section("five sources", page_section(figures))
    wrong = failures(figures["runs"], figures.get("differences", {}))
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
