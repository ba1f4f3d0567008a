"""Draw a run from its own files: rewards and held-out pass rates by source, and where time went.

python benchmarks/picture.py runs/quickstart docs/quickstart.png
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#475569")
PHASES = {
    "generate": ("generate",),
    "grade": ("grade",),
    "train": ("train", "reference", "pack"),
    "weight sync": ("sync_gather", "sync_send", "sync_load", "sync_control", "sync_verify"),
    "evaluate": ("evaluate",),
    "checkpoint": ("checkpoint",),
    "other": ("dispatch", "log", "idle"),
}
"""What is shown as one -> phases of `time/<phase>`."""
SMOOTH = 5
"""Steps of the moving mean of training rewards."""


def read(path: Path) -> list[dict[str, Any]]:
    """Return a file's JSON objects."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw(run: Path, out: Path) -> None:
    """Write the picture of a run directory."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    steps, evals = read(run / "metrics.jsonl"), read(run / "eval.jsonl")
    record = json.loads((run / "run.json").read_text())
    names = list(dict.fromkeys(e["source"] for e in evals))
    colour = dict(zip(names, COLOURS * len(names), strict=False))
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, (learning, times) = plt.subplots(
        1, 2, figsize=(10, 3.6), width_ratios=(2.2, 1), layout="constrained"
    )
    for name in names:
        key = f"source/{name}/all/reward/mean"
        line = np.array([[s["step"], s[key]] for s in steps if s.get(key) is not None])
        kernel = np.ones(min(SMOOTH, len(line)))
        smooth = np.convolve(line[:, 1], kernel, "same") / np.convolve(
            np.ones(len(line)), kernel, "same"
        )
        learning.plot(line[:, 0], smooth, color=colour[name], alpha=0.45, linewidth=1.2)
        own = [e for e in evals if e["source"] == name and e["pass_rate"] is not None]
        rate = np.array([e["pass_rate"] for e in own])
        ends = np.array([[e["pass_rate_low"], e["pass_rate_high"]] for e in own]).T
        learning.errorbar(
            [e["step"] for e in own],
            rate,
            yerr=np.abs(ends - rate),
            color=colour[name],
            marker="o",
            markersize=5,
            linewidth=0,
            elinewidth=1,
            capsize=2,
            label=name,
        )
    learning.set(xlabel="step", ylim=(0, 1.02), ylabel="held-out pass rate, training reward")
    learning.legend(frameon=False, loc="lower right")
    learning.set_title(f"{record['name']}, seed {record['seed']}", loc="left")
    _draw_times(times, steps)
    figure.savefig(out, dpi=150)


def _draw_times(axes: Any, steps: list[dict[str, Any]]) -> None:
    spent = {
        label: sum(s.get(f"time/{phase}") or 0.0 for s in steps for phase in phases)
        for label, phases in PHASES.items()
    }
    labels = [label for label in reversed(PHASES) if spent[label] > 0]
    axes.barh(labels, [spent[label] for label in labels], color="#64748b")
    axes.set(xlabel="seconds of wall time")
    axes.set_title("where time went", loc="left")


def main() -> None:
    """Run the command line."""
    if len(sys.argv) != 3:
        sys.exit(f"{__doc__}")
    draw(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
