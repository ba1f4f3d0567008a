"""Graders that run code, in the killable workers of a pool."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.data import DataConfig
from configs.sandbox import SandboxConfig
from configs.schema import RewardConfig, RewardGroupConfig, SourceConfig
from rewards.pool import GraderPool, GraderStartError
from rewards.sandbox.inside.processes import Tree
from rollouts.types import Rollout, RolloutStatus, Task

Make = Callable[..., Rollout]
MakeTask = Callable[..., Task]


def source(grader: dict[str, Any]) -> SourceConfig:
    reward = RewardConfig.model_validate({"name": "r", "grader": grader})
    return SourceConfig(name="s", data=DataConfig(jsonl="x"), rewards=(reward,))


async def grade(cfg: RewardGroupConfig, grader: dict[str, Any], *pairs: tuple[Rollout, Task]):
    """Grade with one worker; return the rollouts, and the worker's processes that outlive it."""
    pool = GraderPool(cfg, [source(grader)])
    await pool.start()
    try:
        graded = [await pool.grade(rollout, task) for rollout, task in pairs]
        (worker,) = pool.pids
        below = Tree.descendants(worker)
        assert below
    finally:
        await pool.close()
    for _ in range(200):
        left = [pid for pid in below if Path(f"/proc/{pid}").exists()]
        if not left:
            break
        await asyncio.sleep(0.02)
    return graded, left


def test_code_is_graded_and_a_killed_worker_leaves_nothing(rollout: Make, task: MakeTask):
    tests = ["assert f(1) == 2", "assert f(2) == 4"]
    pairs = [
        (rollout("def f(x): return 2 * x"), task(tests=tests)),
        (rollout("def f(x): return 2"), task(tests=tests)),
        (rollout("while True: pass"), task(tests=tests[:1])),
        (rollout("import os; os._exit(0)"), task(tests=tests)),
    ]
    cfg = RewardGroupConfig(sandbox=SandboxConfig(cpu_s=3))
    graded, left = asyncio.run(grade(cfg, {"type": "code_tests"}, *pairs))
    assert [r.reward for r in graded] == [1.0, 0.5, 0.0, 0.0]
    assert left == []


def test_a_python_grader_that_raises_makes_the_rollout_invalid(rollout: Make, task: MakeTask):
    source = "def grade(sample, item):\n    return 1 / len(sample['output_text'].strip())\n"
    pairs = [(rollout(text), task()) for text in ("ab", " ")]
    graded, _ = asyncio.run(
        grade(RewardGroupConfig(), {"type": "python", "source": source}, *pairs)
    )
    assert graded[0].reward == 0.5
    assert graded[1].status is RolloutStatus.INVALID
    assert graded[1].error is not None
    assert graded[1].error.kind == "python_grader_runtime_error"
    assert "ZeroDivisionError" in graded[1].error.message


def test_a_worker_without_the_required_tier_does_not_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    cfg = RewardGroupConfig(sandbox=SandboxConfig(require="bwrap"))
    pool = GraderPool(cfg, [source({"type": "code_tests"})])

    async def start() -> None:
        with pytest.raises(GraderStartError, match=r"reward\.sandbox\.require"):
            await pool.start()
        await pool.close()

    asyncio.run(start())


HANGS = """
import subprocess, sys, time

def hangs(rollout, task):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    open(__file__ + ".hangs", "w").close()
    time.sleep(60)
"""
KILLED = """
import os, time
import of_this_test
from configs.graders.union import GRADER
from rewards import wire
from rewards.process import GraderProcess
from rewards.sandbox.inside import kernel
from rewards.sandbox.inside.processes import Tree
from rewards.subject import Subject

graders = {
    "code": GRADER.validate_python({"type": "code_tests"}),
    "hangs": GRADER.validate_python({"type": "function", "use": "of_this_test:hangs"}),
}
subject = Subject.of_text({"tests": ["assert f(1) == 2"]}, "def f(x): return 2 * x")
process = GraderProcess(graders)
receive = wire.receive

def receive_late(sock, deadline):
    end = time.monotonic() + 60
    while not os.path.exists(of_this_test.__file__ + ".hangs"):
        assert time.monotonic() < end, "it never hung"
        time.sleep(0.01)
    return receive(sock, 0.0)  # its deadline has passed

for interrupted in (False, True):
    assert process.grade("code", subject, 60).value == 1
    (jail,) = Tree.children(process.pid)
    if interrupted:
        process.interrupt()
    else:
        wire.receive = receive_late
        try:
            process.grade("hangs", subject, 60)
            raise AssertionError("it did not hang")
        except TimeoutError:
            pass
        wire.receive = receive
    process.kill()
    assert not os.path.exists(f"/proc/{jail}"), "the jail is there"
    left = [open(f"/proc/{pid}/stat").read()[:60] for pid in Tree.children(os.getpid())]
    assert not left and not kernel.is_subreaper(), left
print("done", flush=True)
"""


def test_a_killed_worker_leaves_no_zombie_where_nobody_else_reaps(tmp_path: Path):
    """Its owner runs below a process that takes orphans and reaps none, as in many containers."""
    (tmp_path / "of_this_test.py").write_text(HANGS)
    above = (
        "import os, subprocess, sys\n"
        "from rewards.sandbox.inside import kernel\n"
        "from rewards.sandbox.inside.processes import Tree\n"
        "kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)\n"
        "owner = subprocess.run([sys.executable, '-c', sys.argv[1]], timeout=90)\n"
        "left = Tree.children(os.getpid())\n"
        "sys.exit(owner.returncode or (f'left: {left}' if left else 0))\n"
    )
    places = os.pathsep.join([str(Path(__file__).parents[3]), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", above, KILLED],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == b"done\n"
