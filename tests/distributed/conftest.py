"""Worlds of trainer ranks, each a process of its own."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

WORKER = Path(__file__).with_name("trainer_worker.py")
RunWorld = Callable[..., None]


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    """The module that a rank runs."""
    return _load("trainer_worker")


@pytest.fixture(scope="session")
def load_cases(worker: ModuleType) -> Callable[[str], ModuleType]:
    """Load a module of more modes, by its name."""
    sys.modules.setdefault("trainer_worker", worker)
    return _load


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, WORKER.with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_world() -> RunWorld:
    """Run all ranks of one world in a mode of a worker: `(mode, world, models, out[, worker])`."""
    return _run_world


def _run_world(mode: str, world: int, models: Path, out: Path, program: Path = WORKER) -> None:
    """On failure show the ranks' output; leave none behind."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    logs = [out / f"{mode}_{world}_{rank}.log" for rank in range(world)]
    ranks: list[subprocess.Popen[bytes]] = []
    try:
        for rank, log in enumerate(logs):
            command = [sys.executable, program, mode, rank, world, models, out]
            with log.open("w") as sink:
                ranks.append(
                    subprocess.Popen(
                        list(map(str, command)), stdout=sink, stderr=subprocess.STDOUT, env=env
                    )
                )
        codes = [process.wait(timeout=240) for process in ranks]
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"a rank is not done:\n{_tails(logs)}") from late
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
            process.wait()
    assert codes == [0] * world, f"ranks ended with {codes}:\n{_tails(logs)}"


def _tails(logs: list[Path]) -> str:
    return "\n".join(log.read_text()[-3000:] for log in logs if log.exists())
