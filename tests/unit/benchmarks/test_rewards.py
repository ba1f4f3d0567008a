"""What benchmarks/rewards.py counts and writes, without its long runs."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rewards
from benchmarks.stack import PAGE, ROOT, section
from rewards.sandbox.inside import kernel
from rewards.sandbox.result import Tier
from rewards.sandbox.tiers import choose_tier

CODE = {
    "graded_per_s": 151.4,
    "ratio_to_bare_interpreter": 2.0349,
    "ms_median": 12.34,
    "ms_p99": 20.0,
    "beside_a_stuck_one": 1.1,
}
KINDS = ("processes", "zombies", "folders", "descriptors", "mounts", "cgroups")


@pytest.fixture
def no_subreaper() -> Iterator[None]:
    """Let orphans go where they went before, after the test."""
    before = kernel.is_subreaper()
    yield
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, int(before))


@pytest.mark.usefixtures("no_subreaper")
def test_runs_of_every_ending_leave_nothing() -> None:
    found = rewards.leftovers(choose_tier("any"), 60)
    assert found["runs"] == 60
    assert {kind: found[kind] for kind in KINDS} == dict.fromkeys(KINDS, 0)
    assert rewards.left_behind({"bwrap": found}) == {}


def test_what_is_left_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "left"
    gc.collect()  # descriptors that only wait for it
    before = rewards.traces([folder])
    program = "import time; time.sleep(60)"
    away = [sys.executable, "-c", program, rewards._MARK]
    start = f"import subprocess; print(subprocess.Popen({away!r}, stdout=subprocess.DEVNULL).pid)"
    shell = [sys.executable, "-c", start]
    orphan = int(subprocess.run(shell, stdout=subprocess.PIPE, check=True, timeout=30).stdout)
    lives, ended = subprocess.Popen(away[:3]), subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        folder.mkdir()
        with folder.joinpath("f").open("w"):
            after = rewards.traces([folder])
    finally:
        os.kill(orphan, signal.SIGKILL)
        lives.kill()
        lives.wait()
        ended.wait()
    new = {kind: after[kind] - before[kind] for kind in before}
    assert new["processes"] == {str(orphan), str(lives.pid), str(ended.pid)}
    assert new["zombies"] == {str(ended.pid)} and new["folders"] == {str(folder)}
    assert len(new["descriptors"]) == 1 and not new["mounts"]
    counts = {kind: len(found) for kind, found in new.items()}
    told = rewards.left_behind({"bwrap": {"tier": "t", "runs": 5, "ms_a_run": 9.1, **counts}})
    assert told["bwrap: zombies"] == 1 and "bwrap: mounts" not in told


def test_the_page_says_what_was_measured_and_what_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, str] = {}
    monkeypatch.setattr(rewards, "BASELINE", tmp_path / "rewards.json")
    monkeypatch.setattr(rewards, "write_section", lambda name, text: written.update({name: text}))
    assert rewards.page_section({}).count("not recorded yet") == 8 + len(Tier)
    rewards.record("code", CODE)
    assert "| 2.03 |" in written["grading"] and "not recorded yet" in written["grading"]
    one: dict[str, Any] = {"tier": "t", "runs": 10_000, "ms_a_run": 9.0, "zombies": 0}
    left = {"bwrap": {**one, "zombies": 3}, "landlock": one, "rlimits": "does not hold: x"}
    rewards.record("leftovers", left)
    rates = {kind: {"graded_per_s": 9.6} for kind in ("numbers", "expressions", "mix")}
    rewards.record("math", rates)
    page = written["grading"]
    assert "not recorded yet" not in page and page.count("| 10 |") == 3
    assert "3 zombies, after 10,000 runs" in page and "nothing, after 10,000 runs" in page
    assert "does not hold: x" in page
    held = json.loads((tmp_path / "rewards.json").read_text())
    assert list(held) == ["code", "leftovers", "math"] and held["code"]["ms_median"] == 12.34


def test_the_page_has_a_place_for_the_figures() -> None:
    assert section(PAGE.read_text(), "grading").startswith("| what |")


@pytest.mark.parametrize("name", ["rewards", "rewards_math", "process_reward"])
def test_a_script_finds_our_packages_and_not_its_neighbours(name: str) -> None:
    """Run as `python benchmarks/NAME.py`: its folder holds a rewards.py and a trainer.py too."""
    program = (
        "import importlib.util, runpy, sys\n"
        f"sys.path[0], sys.argv = 'benchmarks', ['benchmarks/{name}.py', '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "assert importlib.util.find_spec('rewards.pool'), 'rewards'\n"
        "assert importlib.util.find_spec('trainer.sft'), 'trainer'\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
