"""Run the quickstart for several seeds; report gain, minutes, and peak memory of all processes.

    python benchmarks/quickstart.py [--seeds 1 2 3] [--out FOLDER]

Memory is the sum of proportional set sizes (PSS) of the driver and everything below it, sampled
twice a second: pages that processes share are counted once.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.stack import ROOT, commit, records

SAMPLE_S = 0.5


def tree(pid: int) -> list[int]:
    """Return `pid` and all processes below it."""
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    except OSError:
        pass
    return found


def pss_bytes(pid: int) -> int:
    """Return a process's proportional set size; 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def mean_pass_rates(run_dir: Path) -> dict[int, float]:
    """Return the mean over sources of the held-out pass rate, by step."""
    rates: dict[int, list[float]] = {}
    for record in records(run_dir / "eval.jsonl"):
        rates.setdefault(record["step"], []).append(record["pass_rate"])
    return {step: fmean(r) for step, r in rates.items()}


def measure(seed: int, out: Path) -> dict[str, object]:
    """Run the quickstart once."""
    run_dir = out / f"quickstart-seed{seed}"
    braid = Path(sys.executable).with_name("braid")
    recipe = ROOT / "configs/recipes/quickstart.yaml"
    command = [braid, "run", recipe, "--set", f"seed={seed}", "--run-dir", run_dir]
    began = time.monotonic()
    with (out / f"quickstart-seed{seed}.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        peak, processes = 0, 0
        while process.poll() is None:
            pids = tree(process.pid)
            peak = max(peak, sum(map(pss_bytes, pids)))
            processes = max(processes, len(pids))
            time.sleep(SAMPLE_S)
    minutes = (time.monotonic() - began) / 60
    if process.returncode != 0:
        raise SystemExit(f"seed {seed} ended with {process.returncode}; see {log.name}")
    rates = mean_pass_rates(run_dir)
    metrics = records(run_dir / "metrics.jsonl")
    split = {
        k.removeprefix("time/"): round(fmean(m[k] for m in metrics), 4)
        for k in metrics[0]
        if k.startswith("time/")
    }
    covered = sum(s for k, s in split.items() if k != "step") / split["step"]
    return {
        "seed": seed,
        "steps": len(metrics),
        "minutes": round(minutes, 2),
        "pass_rate": {str(s): round(r, 4) for s, r in sorted(rates.items())},
        "gain": round(rates[max(rates)] - rates[0], 4),
        "peak_gib": round(peak / 2**30, 2),
        "processes": processes,
        "seconds_a_step": split,
        "covered": round(covered, 4),
        "tokens_per_s": round(fmean(m["completion_tokens_per_s"] for m in metrics)),
        "max_logprob_gap": max(m.get("sync/logprob_gap_max", 0.0) for m in metrics),
    }


def main() -> None:
    """Print one JSON object a seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    out = args.out or Path(tempfile.mkdtemp(prefix="braid-quickstart-"))
    out.mkdir(parents=True, exist_ok=True)
    where = {"machine": platform.machine(), "commit": commit()}
    for seed in args.seeds:
        print(json.dumps({**where, **measure(seed, out)}), flush=True)


if __name__ == "__main__":
    main()
