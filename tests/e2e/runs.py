"""A `braid run` under test: started, watched, and what it leaves."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from actors.processes import descendants, identify

ROOT = Path(__file__).parents[2]
BRAID = Path(sys.executable).with_name("braid")
PLANTED = {
    "HF_TOKEN": "hf_PlantedPlantedPlantedPlanted01",
    "WANDB_API_KEY": "planted0" * 5,
    "OPENAI_API_KEY": "sk-planted-0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "planted/Secret+0123456789",
    "JUDGE_TOKEN": "planted-judge-token-0123",
    "DATABASE_PASSWORD": "planted-hunter2-hunter2",
}
"""Secrets in the environment of every run."""


class Job:
    """A `braid run` in a process of its own, killed with all its processes at the end."""

    def __init__(self, recipe_path: Path, run_dir: Path, *arguments: str):
        self.run_dir = run_dir
        self.output = run_dir.parent / f"output-{time.monotonic_ns()}.txt"
        with self.output.open("w") as out:
            self.process = subprocess.Popen(
                [BRAID, "run", recipe_path, "--run-dir", run_dir, *arguments],
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_WAIT_POLICY": "passive", **PLANTED},
            )

    def text(self) -> str:
        return self.output.read_text()

    def wait_for_steps(self, count: int) -> None:
        deadline = time.monotonic() + 300
        while len(steps(self.run_dir)) < count:
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, f"no step {count}:\n{self.text()}"
            time.sleep(0.1)

    def wait_until_said(self, words: str) -> None:
        deadline = time.monotonic() + 300
        while words not in self.text():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, f"not a word of {words!r}:\n{self.text()}"
            time.sleep(0.1)

    def family(self):
        return descendants(self.process.pid)

    def wait(self, seconds: float = 300) -> int:
        return self.process.wait(timeout=seconds)


def assert_no_secret_was_written(job: Job) -> None:
    files = [p for p in job.run_dir.rglob("*") if p.is_file()]
    assert any("wandb" in p.parts for p in files) and any("trainer" in p.parts for p in files)
    for path in (*files, job.output):
        content = path.read_bytes()
        assert [n for n, value in PLANTED.items() if value.encode() in content] == [], path


def records(run_dir: Path, name: str) -> list[dict]:
    """Return a file's objects; the last line may be half written while the run goes on."""
    path = run_dir / name
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def steps(run_dir: Path) -> list[int]:
    return [r["step"] for r in records(run_dir, "metrics.jsonl")]


RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own; they wait a minute for a head that was killed, and end by themselves."""


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def assert_gone(family, seconds: float = 30) -> None:
    """Assert that all processes end within a while."""
    deadline = time.monotonic() + seconds
    left = {p: command_line(p.pid) for p in family}
    left = {p: name for p, name in left.items() if not name.startswith(RAY_AGENTS)}
    while left and time.monotonic() < deadline:
        left = {p: name for p, name in left.items() if identify(p.pid) == p}
        time.sleep(0.2)
    assert not left


def ledger(run_dir: Path) -> dict:
    """Ask `braid ledger`, which exits 1 when the account does not add up."""
    command = [BRAID, "ledger", run_dir, "--json"]
    asked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    return json.loads(asked.stdout)
