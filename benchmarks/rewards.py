"""What grading costs.

    python benchmarks/rewards.py code [--runs 1500] [--rounds 3] [--leftovers 10000] [--json FILE]

`code`: Python answers graded per second on two cores by `code_tests`, each in a fresh process in
the strongest tier that holds here, as a ratio to starting the same interpreter bare on the same
program, with the two measured in turns; seconds of one answer; what a stuck answer costs the
others; and what many runs leave behind. Prints one JSON object.
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
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # this file has the name of the package it measures

from pydantic import JsonValue

from configs.graders.code import CodeTestsGrader
from configs.sandbox import SandboxConfig
from rewards.code_tests import prepare_code_tests
from rewards.sandbox import shared
from rewards.sandbox.inside.processes import Tree
from rewards.sandbox.jail import Sandbox
from rewards.sandbox.result import Call, Limits, Script, Verdict
from rewards.sandbox.tiers import Probe, choose_tier
from rewards.subject import Subject

CORES = 2
_CODE = "def total(n):\n    return sum(i * i for i in range(n))\n"
_ANSWER = f"The sum of squares:\n```python\n{_CODE}```\n"
_TEST: JsonValue = ["assert total(100) == 328350"]
_SPIN = Script(code="while True: pass")


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
        spinning = threading.Thread(target=stuck.run, args=(_SPIN, Limits(cpu_s=60, wall_s=8)))
        spinning.start()
        beside = median(free)
        still = spinning.is_alive()
        spinning.join()
    assert still
    return beside / alone


def leftovers(found: Probe, runs: int) -> dict[str, int]:
    """Return how many processes, zombies, folders and descriptors are there since the runs."""
    before = traces()
    fork = "import os\nfor _ in range(3):\n    if os.fork() == 0: os._exit(0)\nopen('f', 'w')\n"
    jobs = [Call(code=_CODE, function="total", args=[100])] * 19 + [Script(code=fork)]
    limits = Limits(processes=8)
    with Sandbox(found.tier, limits, own_user_namespace=found.own_user_namespace) as jail:
        for i in range(runs):
            result = jail.run(jobs[i % len(jobs)])
            assert result.verdict is Verdict.OK, result
    after = traces()
    return {name: len(after[name] - before[name]) for name in after}


def traces() -> dict[str, set[str]]:
    """Name what a sandbox could leave."""
    places = ("/dev/shm", tempfile.gettempdir())
    return {
        "processes": set(map(str, Tree.descendants(os.getpid()))),
        "zombies": {str(pid) for pid in Tree.children(os.getpid()) if _is_zombie(pid)},
        "folders": {str(f) for p in places for f in Path(p).glob("braid-sandbox-*")},
        "descriptors": set(os.listdir("/proc/self/fd")),
    }


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def measure_code(runs: int, rounds: int, many: int) -> dict[str, JsonValue]:
    """Return the figures of grading code."""
    found = choose_tier("any")
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
        "load": round(os.getloadavg()[0], 1),
        "left_behind": {"runs": many, **leftovers(found, many)},
    }


def main() -> None:
    """Measure, print, and merge into a JSON file where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    code = commands.add_parser("code", help="Python answers by tests, in the sandbox.")
    code.add_argument("--runs", type=int, default=1500, help="Answers a round.")
    code.add_argument("--rounds", type=int, default=3)
    code.add_argument("--leftovers", type=int, default=10_000, help="Runs to look behind.")
    for command in (code,):
        command.add_argument("--json", type=Path, help="File to put the figures into.")
    given = parser.parse_args()
    figures = measure_code(given.runs, given.rounds, given.leftovers)
    figures |= {"python": platform.python_version(), "machine": platform.machine()}
    print(json.dumps({given.command: figures}, indent=1))
    if given.json:
        held = json.loads(given.json.read_text()) if given.json.is_file() else {}
        given.json.write_text(json.dumps({**held, given.command: figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
