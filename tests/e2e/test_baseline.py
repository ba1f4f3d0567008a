"""`braid baseline` as a user meets it: real engines and graders on the tiny model, then freed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from actors.processes import ProcessId, descendants, identify

ROOT = Path(__file__).parents[2]
BRAID = Path(sys.executable).with_name("braid")
RECIPE = ROOT / "configs" / "recipes" / "quickstart.yaml"
pytestmark = pytest.mark.timeout(600)


def baseline(err: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [BRAID, "baseline", RECIPE, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=err.open("w"),
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )


def wait_for(text: str, err: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while text not in err.read_text():
        assert process.poll() is None, err.read_text()
        assert time.monotonic() < deadline, err.read_text()
        time.sleep(0.1)


def assert_gone(family: Iterable[ProcessId]) -> None:
    """Assert that no process is left; Ray's agents end by themselves some seconds later."""
    deadline = time.monotonic() + 30
    left = list(family)
    assert left
    while left and time.monotonic() < deadline:
        left = [p for p in left if identify(p.pid) == p]
        time.sleep(0.2)
    assert not left


def test_a_baseline_has_figures_of_every_source_and_frees_all(tmp_path: Path):
    err = tmp_path / "err.txt"
    process = baseline(err, "--items", "12", "--samples", "4", "--json")
    wait_for("sampling 36 items, 144 samples", err, process)
    family = descendants(process.pid)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, err.read_text()
    found = json.loads(out)
    assert (found["go"], found["items"], found["samples"]) == (True, 12, 4)
    assert [s["source"] for s in found["sources"]] == ["sums", "spelling", "filtering"]
    for s in found["sources"]:
        assert sum(bar["items"] for bar in s["histogram"]) == 12
        assert 0 < s["pass_rate"] < 1 and s["invalid"] == 0
        assert s["reward_mean"] == pytest.approx(s["pass_rate"])  # binary rewards
        assert 1 <= s["tokens_mean"] <= 18
        assert s["majority_share"] is not None and s["majority_share"] < 0.5
    assert_gone(family)
