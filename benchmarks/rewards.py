"""What grading costs, and what it leaves behind.

    python benchmarks/rewards.py code [--runs 1500] [--rounds 3] [--record]
    python benchmarks/rewards.py leftovers [--runs 10000] [--tiers bwrap landlock] [--record]

`code`: Python answers graded per second on two cores by `code_tests`, each in a fresh process in
the strongest tier that holds here, as a ratio to starting the same interpreter bare on the same
program, with the two measured in turns; seconds of one answer; and what a stuck answer costs the
others.

`leftovers`: many runs in each tier that holds here, some of which fork, leave a daemon, write
files, crash or are killed at a limit, and what is there since: processes of ours or of the jail's,
wherever on the machine they went, zombies (also those that the machine's first process would have
reaped), folders, descriptors, mounts and cgroups. Ends with 1 if anything is left.

Both print a JSON object. `--record` puts it into `benchmarks/baselines/rewards.json` and the
section of docs/benchmarks.md, beside that of `rewards_math.py`.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # this file has the name of the package it measures
    sys.path[0] = str(Path(__file__).parents[1])

from pydantic import JsonValue

from benchmarks.stack import ROOT, commit, markdown, write_section
from configs.graders.code import CodeTestsGrader
from configs.sandbox import SandboxConfig
from rewards.code_tests import prepare_code_tests
from rewards.sandbox import shared
from rewards.sandbox.inside import kernel
from rewards.sandbox.inside.processes import Tree
from rewards.sandbox.jail import Sandbox
from rewards.sandbox.result import Call, Job, Limits, Script, Tier, Verdict
from rewards.sandbox.tiers import Probe, choose_tier, probe
from rewards.subject import Subject

BASELINE = ROOT / "benchmarks/baselines/rewards.json"
CORES = 2
_CODE = "def total(n):\n    return sum(i * i for i in range(n))\n"
_ANSWER = f"The sum of squares:\n```python\n{_CODE}```\n"
_TEST: JsonValue = ["assert total(100) == 328350"]
_SPIN = Script(code="while True: pass")
_FORK = "import os\nfor _ in range(3):\n    if os.fork() == 0: os._exit(0)\nopen('f', 'w')\n"
_DAEMON = "import os, time\nif os.fork() == 0:\n    time.sleep(600)\n"
_ENDINGS: tuple[tuple[int, Job, Verdict], ...] = (
    (500, _SPIN, Verdict.TIMEOUT),
    (100, Script(code=_DAEMON), Verdict.OK),
    (100, Script(code="import os; os.abort()"), Verdict.CRASH),
    (20, Script(code=_FORK), Verdict.OK),
)
"""How often a run ends otherwise than by a value: one in so many, the input, and its verdict."""
_MARK = f"of_process_{os.getpid()}"
"""In the command line of every process of the jails that are looked behind: as the name of a module
to load beforehand, which there is not."""


def grade_answers(runs: int) -> list[float]:
    """Grade the answer `runs` times; return the seconds of each."""
    shared.configure(SandboxConfig())
    grade = prepare_code_tests(CodeTestsGrader(type="code_tests"), "bench")
    subject = Subject.of_text({"tests": _TEST}, _ANSWER)
    assert grade(subject).value == 1.0
    return timed(lambda: grade(subject), runs)


def start_interpreters(runs: int) -> list[float]:
    """Run the program in a bare interpreter `runs` times; return the seconds of each."""
    interpreter = os.path.realpath(sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "solution.py")
        program.write_text(f"{_CODE}print(total(100))\n")
        command = [interpreter, "-I", "-S", str(program)]
        return timed(lambda: subprocess.run(command, stdout=subprocess.PIPE, env={}), runs)


def timed(call: Callable[[], object], runs: int) -> list[float]:
    """Return the seconds of each of `runs` calls."""
    seconds: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds


def per_second(
    pool: ProcessPoolExecutor, work: Callable[[int], list[float]], runs: int
) -> tuple[float, list[float]]:
    """Return runs per second of all cores at work at once, and the seconds of each run."""
    seconds = list(pool.map(work, [runs // CORES] * CORES))
    rate = sum(len(own) / sum(own) for own in seconds)
    return rate, [s for own in seconds for s in own]


def stuck_cost(found: Probe, runs: int = 200) -> float:
    """Return the median time of an answer beside one that spins, over that without it."""
    job = Call(code=_CODE, function="total", args=[100])

    def median(jail: Sandbox) -> float:
        return statistics.median(timed(lambda: jail.run(job), runs))

    userns = found.own_user_namespace
    with (
        Sandbox(found.tier, own_user_namespace=userns) as free,
        Sandbox(found.tier, own_user_namespace=userns) as stuck,
    ):
        free.start()
        stuck.start()
        alone = median(free)
        spinning = threading.Thread(target=stuck.run, args=(_SPIN, Limits(cpu_s=60, wall_s=20)))
        spinning.start()
        beside = median(free)
        still = spinning.is_alive()
        spinning.join()
    assert still
    return beside / alone


def leftovers(found: Probe, runs: int) -> dict[str, JsonValue]:
    """Return what there is since so many runs in a tier that was not there before, by kind."""
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)  # what loses its parent comes here, and stays
    before, began = traces(()), time.monotonic()
    limits = Limits(cpu_s=0.25, wall_s=5, processes=8)
    value = Call(code=_CODE, function="total", args=[100])
    folders: set[Path] = set()
    userns = found.own_user_namespace
    with Sandbox(found.tier, limits, preload=[_MARK], own_user_namespace=userns) as jail:
        for i in range(1, runs + 1):
            ending = next((e for e in _ENDINGS if (i + e[0] // 2) % e[0] == 0), None)
            _, job, due = ending or (1, value, Verdict.OK)
            result = jail.run(job)
            folders |= {jail.folder} if jail.folder else set()
            if result.verdict is not due:
                raise SystemExit(f"{found}: run {i} was to end as {due}: {result}")
    seconds = time.monotonic() - began
    after = traces(folders)
    left: dict[str, JsonValue] = {name: len(after[name] - before[name]) for name in after}
    return {"tier": str(found), "runs": runs, "ms_a_run": round(1e3 * seconds / runs, 1), **left}


def traces(folders: Iterable[Path]) -> dict[str, set[str]]:
    """Name what a sandbox could leave.

    Args:
        folders: those that inputs ran in.
    """
    return {
        "processes": {*map(str, Tree.descendants(os.getpid())), *_jailed()},
        "zombies": {str(pid) for pid in Tree.children(os.getpid()) if _is_zombie(pid)},
        "folders": {str(folder) for folder in folders if folder.exists()},
        "descriptors": set(os.listdir("/proc/self/fd")),
        "mounts": set(Path("/proc/self/mountinfo").read_text().splitlines()),
        "cgroups": {str(f) for own in _own_cgroups() for f in own.rglob("*") if f.is_dir()},
    }


def _jailed() -> set[str]:
    """Return the processes of our jails that run anywhere on this machine."""
    found: set[str] = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if _MARK.encode() in path.read_bytes():
                found.add(path.parent.name)
        except OSError:
            continue
    return found


def _own_cgroups() -> list[Path]:
    """Return the folders of the cgroups that this process is in, but for a hierarchy's root."""
    found: list[Path] = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if path != "/":
            found.append(Path("/sys/fs/cgroup", controllers, path.lstrip("/")))
    return found


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def measure_code(runs: int, rounds: int) -> dict[str, JsonValue]:
    """Return the figures of grading code."""
    found = choose_tier("any")
    load = os.getloadavg()[0]
    ratios: list[float] = []
    rates: list[float] = []
    seconds: list[float] = []
    bare_seconds: list[float] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CORES, mp_context=context) as pool:
        list(pool.map(grade_answers, [5] * CORES))  # warm
        for _ in range(rounds):
            bare, own_bare = per_second(pool, start_interpreters, runs)
            graded, own = per_second(pool, grade_answers, runs)
            ratios.append(graded / bare)
            rates.append(graded)
            seconds += own
            bare_seconds += own_bare
    centiles = statistics.quantiles(seconds, n=100)
    return {
        "tier": str(found),
        "graded_per_s": round(statistics.median(rates), 1),
        "ratio_to_bare_interpreter": round(statistics.median(ratios), 2),
        "ratio_lowest_round": round(min(ratios), 2),
        "ms_median": round(statistics.median(seconds) * 1e3, 2),
        "ms_p99": round(centiles[98] * 1e3, 2),
        "bare_ms_median": round(statistics.median(bare_seconds) * 1e3, 2),
        "beside_a_stuck_one": round(stuck_cost(found), 2),
        "runs": runs * rounds,
        "load_before": round(load, 1),
    }


def measure_leftovers(runs: int, tiers: Sequence[str]) -> dict[str, JsonValue]:
    """Return what the runs leave in each tier, or why it does not hold here."""
    figures: dict[str, JsonValue] = {}
    for tier in map(Tier, tiers):
        found = probe(tier)
        figures[tier] = leftovers(found, runs) if found.works else _why_not(found)
    return figures


def _why_not(found: Probe) -> str:
    """Return why a tier does not hold here, without this machine's folders."""
    return "does not hold: " + found.detail.replace(f"{Path(sys.executable).resolve().parent}/", "")


def left_behind(figures: Mapping[str, JsonValue]) -> dict[str, int]:
    """Return what was left in some tier, by tier and kind."""
    return {
        f"{tier}: {kind}": count
        for tier, found in figures.items()
        if isinstance(found, Mapping)
        for kind, count in _remains(found).items()
    }


def _remains(found: Mapping[str, JsonValue]) -> dict[str, int]:
    told = ("tier", "runs", "ms_a_run")
    counts = {k: n for k, n in found.items() if k not in told and isinstance(n, int)}
    return {kind: count for kind, count in counts.items() if count}


def record(name: str, figures: Mapping[str, JsonValue]) -> None:
    """Put a command's figures into the baseline, and the page's section."""
    made = {"python": platform.python_version(), "machine": platform.machine(), "commit": commit()}
    held = json.loads(BASELINE.read_text()) if BASELINE.is_file() else {}
    held |= {name: {**figures, **made}}
    BASELINE.write_text(json.dumps(dict(sorted(held.items())), indent=1) + "\n")
    write_section("grading", page_section(held))


def page_section(found: Mapping[str, Any]) -> str:
    """Return the page's section: figures with their goals.

    Args:
        found: of the baseline; what was not measured yet is said to be so.
    """
    code, math, left = (found.get(name) for name in ("code", "math", "leftovers"))
    told = "not recorded yet"
    rows = [
        ["code answers/s, two cores", "", f"{code['graded_per_s']:.0f}" if code else told],
        ["the same, to the bare interpreter's", "0.8 or more",
         f"{code['ratio_to_bare_interpreter']:.2f}" if code else told],
        ["one code answer of one test, median", "15 ms or less",
         f"{code['ms_median']:.1f} ms" if code else told],
        ["the same, 99th percentile", "", f"{code['ms_p99']:.1f} ms" if code else told],
        ["one beside a stuck one, to one alone", "about 1",
         f"{code['beside_a_stuck_one']:.2f}" if code else told],
    ]  # fmt: skip
    kinds = {"numbers": "numbers", "expressions": "expressions", "mix": "three numbers to one"}
    for kind, shown in kinds.items():
        rate = f"{math[kind]['graded_per_s']:.0f}" if math else told
        rows.append([f"math answers/s, {shown}", "", rate])
    for tier in Tier:
        own = left.get(str(tier), "not tried") if left else told
        if isinstance(own, Mapping):
            what = ", ".join(f"{n} {kind}" for kind, n in _remains(own).items())
            own = f"{what or 'nothing'}, after {own['runs']:,} runs"
        rows.append([f"left behind in the tier `{tier}`", "nothing", str(own)])
    return markdown(["what", "goal", "measured"], rows)


def main() -> None:
    """Measure, print, and record where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    code = commands.add_parser("code", help="Python answers by tests, in the sandbox.")
    code.add_argument("--runs", type=int, default=1500, help="Answers a round.")
    code.add_argument("--rounds", type=int, default=3)
    left = commands.add_parser("leftovers", help="What many runs leave behind, tier by tier.")
    left.add_argument("--runs", type=int, default=10_000, help="Runs in each tier.")
    left.add_argument("--tiers", nargs="+", choices=list(Tier), default=list(Tier))
    for command in (code, left):
        command.add_argument("--record", action="store_true", help="Write baseline and page.")
    given = parser.parse_args()
    if given.command == "code":
        figures = measure_code(given.runs, given.rounds)
    else:
        figures = measure_leftovers(given.runs, given.tiers)
    print(json.dumps({given.command: figures}, indent=1))
    if given.record:
        record(given.command, figures)
    if given.command == "leftovers" and (remains := left_behind(figures)):
        raise SystemExit(f"left behind: {remains}")


if __name__ == "__main__":
    main()
