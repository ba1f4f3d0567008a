"""What the ledger costs: per group written, on disk, in memory, and to read it all back.

    python benchmarks/ledger.py [--groups 1000000] [--json FILE]

A run of 1,000 groups a step, eight rollouts each, one in twenty replaced for zero variance, is
entered through `mixing.ledger.ledger.Ledger` as the driver enters it. The yardstick, in the same
run, is the bare work that no ledger can do without: `json.dumps` and one append for each of the
very rows, and `json.loads` of each line to read them. Ratios are ledger / bare, so 1 would be free.
Then `braid ledger RUN --json` answers from that file, in a process of its own. `memory_mb` is what
the writer has grown by at the end.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.stack import show_figures
from configs.load import save_config
from configs.schema import RunConfig
from mixing.ledger.events import Reason
from mixing.ledger.ledger import Ledger
from rollouts.types import (
    GroupRequest,
    GroupSummary,
    MicroBatchPlan,
    MinibatchPlan,
    RolloutStats,
    RolloutStatus,
    SampleHandle,
    Sampling,
    Task,
    TrainBatch,
)

PER_STEP, GROUP_SIZE, REPLACED = 1000, 8, 20
SOURCES = ("arith", "code", "search")
_BRAID = "from orchestrator.cli import main; main()"


def recipe(steps: int) -> RunConfig:
    """Return the run's recipe."""
    return RunConfig.model_validate(
        {
            "name": "ledger",
            "num_steps": steps,
            "model": {"path": "owner/model"},
            "batch": {"groups_per_step": PER_STEP},
            "sources": [
                {
                    "name": name,
                    "data": {"procedural": "reasoning_gym/lcm"},
                    "rewards": [{"name": "right", "use": "exact"}],
                }
                for name in SOURCES
            ],
        }
    )


def orders(step: int, count: int, first: int) -> list[GroupRequest]:
    """Return requests of a step, with ids of their own."""
    sampling = Sampling(temperature=1.0, max_tokens=512)
    found: list[GroupRequest] = []
    for number in range(first, first + count):
        source = SOURCES[number % len(SOURCES)]
        name = f"{source}/train/{step * PER_STEP + number}"
        task = Task(task_id=name, source=source, prompt=(), answer=None, metadata={})
        found.append(
            GroupRequest(
                group_id=f"{name}#e0a0",
                task=task,
                group_size=GROUP_SIZE,
                sampling=sampling,
                step=step,
            )
        )
    return found


class Graded:
    """Summaries of a step's groups; rollouts and samples are made once and used for each step."""

    def __init__(self, count: int):
        rollouts = tuple(
            RolloutStats(
                reward=float(i % 2),
                reward_parts={"right": float(i % 2)},
                num_completion_tokens=100 + i,
                status=RolloutStatus.COMPLETED,
                error=None,
            )
            for i in range(GROUP_SIZE)
        )
        self._blank = [
            GroupSummary(
                group_id="",
                task_id="",
                source="",
                step=0,
                rollouts=rollouts,
                samples=tuple(
                    SampleHandle(ref=None, row=row, num_tokens=200, num_loss_tokens=100 + row)
                    for row in range(GROUP_SIZE)
                ),
                group_ref=None,
                oldest_version=0,
                newest_version=0,
                generate_s=1.0,
                grade_s=0.1,
            )
            for _ in range(count)
        ]

    def of(self, requests: Sequence[GroupRequest]) -> list[GroupSummary]:
        """Return what grading these said."""
        return [
            replace(
                blank,
                group_id=r.group_id,
                task_id=r.task.task_id,
                source=r.task.source,
                step=r.step,
            )
            for blank, r in zip(self._blank, requests, strict=False)
        ]


def plan_of(step: int, groups: Sequence[GroupSummary]) -> TrainBatch:
    """Return a step's plan, all on one rank."""
    plan = MicroBatchPlan(samples=tuple(s for g in groups for s in g.samples))
    minibatch = MinibatchPlan(grid=((plan,),), num_loss_tokens=1, num_samples=1)
    return TrainBatch(step=step, minibatches=(minibatch,))


def write(path: Path, steps: int) -> float:
    """Enter a run; return the seconds that the ledger took of it."""
    graded, spent = Graded(PER_STEP), 0.0
    replaced = PER_STEP // REPLACED
    with Ledger.open(path, attempt=1, step=0, offset=0, pending=()) as ledger:
        for step in range(1, steps + 1):
            # A replaced group counts too: PER_STEP groups are ordered, fewer are trained.
            first = orders(step, PER_STEP - replaced, 0)
            fresh = orders(step, replaced, PER_STEP - replaced)
            summaries = graded.of([*first, *fresh])
            gone, kept = summaries[:replaced], summaries[replaced:]
            plan = plan_of(step, kept)
            began = time.perf_counter()
            ledger.dispatched(first, step - 1)
            for old, new in zip(gone, fresh, strict=True):
                ledger.rejected(old, Reason.ZERO_VARIANCE, "all rewards are equal")
                ledger.dispatched([new], step - 1)
            for summary in kept:
                ledger.accepted(summary)
            ledger.trained(step, step, kept, plan)
            ledger.check(())
            spent += time.perf_counter() - began
    return spent


def lines_of(path: Path) -> Iterator[bytes]:
    """Yield the rows of a file."""
    with path.open("rb") as file:
        yield from file


def write_bare(path: Path, beside: Path) -> float:
    """Dump and append each row of a ledger again; return the seconds of that alone."""
    spent = 0.0
    with beside.open("ab", buffering=0) as file:
        for line in lines_of(path):
            row = json.loads(line)
            began = time.perf_counter()
            file.write(json.dumps(row).encode() + b"\n")
            spent += time.perf_counter() - began
    return spent


def read_bare(path: Path) -> float:
    """Parse each row; return the seconds."""
    began = time.perf_counter()
    for line in lines_of(path):
        json.loads(line)
    return time.perf_counter() - began


def ask(run: Path) -> tuple[float, float]:
    """Return seconds and MB of `braid ledger RUN --json`; it must find that all adds up."""
    command = [sys.executable, "-c", _BRAID, "ledger", str(run), "--json"]
    began = time.perf_counter()
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    seconds = time.perf_counter() - began
    report = json.loads(said.stdout)
    if not report["balanced"] or report["trained_twice"] or report["in_flight"]:
        raise SystemExit(f"the ledger does not add up: {report['faults'][:3]}")
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3


def resident_mb() -> float:
    """Return this process's memory, MB."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(groups: int, run: Path) -> dict[str, float | str]:
    """Return all figures."""
    steps = max(1, groups // PER_STEP)
    groups, path = steps * PER_STEP, run / "ledger.jsonl"
    save_config(recipe(steps), run / "config.yaml")
    before = resident_mb()
    written = write(path, steps)
    memory = resident_mb() - before
    bare = write_bare(path, run / "bare.jsonl")
    parsed = read_bare(path)
    asked, asked_mb = ask(run)
    return {
        "groups": groups,
        "us_per_group": round(1e6 * written / groups, 2),
        "bare_us_per_group": round(1e6 * bare / groups, 2),
        "write_ratio": round(written / bare, 3),
        "bytes_per_group": round(path.stat().st_size / groups, 1),
        "memory_mb": round(memory, 1),
        "braid_ledger_s": round(asked, 2),
        "bare_read_s": round(parsed, 2),
        "read_ratio": round(asked / parsed, 3),
        "braid_ledger_mb": round(asked_mb, 1),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--groups", type=int, default=1_000_000, help="Groups dispatched.")
    parser.add_argument("--json", type=Path, help="File to write the figures to.")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="Where to write.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as run:
        figures = measure(given.groups, Path(run))
    show_figures(figures, given.json)


if __name__ == "__main__":
    main()
