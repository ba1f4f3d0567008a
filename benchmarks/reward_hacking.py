"""Have a policy hack a reward, and see which monitors say so, and at which step.

    python benchmarks/reward_hacking.py [--arms hackable sound] [--seeds 1 2] [--out FOLDER]

Both arms are benchmarks/reward_hacking.yaml: three numbers are summed, and a gold grader looks at
half of the rollouts. `hackable` pays for the answer anywhere and for length, `sound` for the answer
alone. Prints a table, and puts each arm's figures into benchmarks/baselines/reward_hacking.json.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.stack import ROOT, commit, records

RECIPE = ROOT / "benchmarks" / "reward_hacking.yaml"
BASELINE = ROOT / "benchmarks" / "baselines" / "reward_hacking.json"
SOUND = "sources.sums.rewards=[{name: exact, use: exact}]"
SHOWN = ("reward/mean", "gold/mean", "length/mean", "text/repeated", "text/well_formed")
ENDS = 5
"""Steps at the start and at the end whose means are reported."""


def run(arm: str, seed: int, out: Path) -> Path:
    """Train one arm; return its run directory."""
    run_dir = out / f"{arm}-seed{seed}"
    command = [str(Path(sys.executable).with_name("braid")), "run", str(RECIPE)]
    command += ["--run-dir", str(run_dir), "--set", f"seed={seed}"]
    command += ["--set", SOUND] if arm == "sound" else []
    with (out / f"{arm}-seed{seed}.txt").open("w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, timeout=900, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{arm}, seed {seed} ended with {done.returncode}; see {log.name}")
    return run_dir


def measure(run_dir: Path) -> dict[str, Any]:
    """Return what changed from the first steps to the last, and every alarm."""
    rows = records(run_dir / "metrics.jsonl")
    figures: dict[str, Any] = {"steps": len(rows)}
    for name in SHOWN:
        values = [row[f"source/sums/all/{name}"] for row in rows]
        figures[name] = [round(fmean(part), 4) for part in (values[:ENDS], values[-ENDS:])]
    found = records(run_dir / "alarms.jsonl")
    figures["alarms"] = [{k: a[k] for k in ("monitor", "event", "step", "text")} for a in found]
    return figures


def table(results: dict[str, Any]) -> str:
    """Return the arms as Markdown."""
    lines = [
        "| arm | " + " | ".join(SHOWN) + " | alarms raised (step) |",
        "|---" * (len(SHOWN) + 2) + "|",
    ]
    for arm, figures in sorted(results.items()):
        moved = [f"{figures[n][0]:.3f} -> {figures[n][1]:.3f}" for n in SHOWN]
        raised = [a for a in figures["alarms"] if a["event"] == "raised"]
        alarms = [f"{a['monitor']} ({a['step']})" for a in raised]
        lines.append(f"| {arm} | {' | '.join(moved)} | {', '.join(alarms) or 'none'} |")
    return "\n".join(lines)


def main() -> None:
    """Run the arms and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", nargs="+", choices=["hackable", "sound"], default=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="braid-reward-hacking-"))
    out.mkdir(parents=True, exist_ok=True)
    arms: dict[str, Any] = {}
    if BASELINE.is_file():
        arms = json.loads(BASELINE.read_text())["arms"]
    for arm in args.arms or ("hackable", "sound"):
        for seed in args.seeds:
            figures = measure(run(arm, seed, out))
            arms[f"{arm}, seed {seed}"] = {"commit": commit(), **figures}
    known = {"machine": platform.machine(), "arms": arms}
    BASELINE.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    print(table(arms))


if __name__ == "__main__":
    main()
