"""Tasks, rollouts and a module of graders that behave and misbehave."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.data import DataConfig
from configs.schema import RewardConfig, SourceConfig
from rollouts.types import (
    Boundary,
    Completion,
    FinishReason,
    Message,
    Rollout,
    RolloutError,
    RolloutStatus,
    Task,
    Turn,
    VersionSpan,
)

GRADERS = '''
import os, signal, subprocess, sys, time

def length(rollout, task, *, factor: float = 1.0):
    return factor * len(rollout.last_text)

def loaded(rollout, task, *, modules: list[str]):
    return float(any(m in sys.modules for m in modules))

def by_text(rollout, task):
    """Misbehave as the text says."""
    text = rollout.last_text
    if text == "hang":
        while True: pass
    if text == "sleep": time.sleep(1000)
    if text == "raise": raise ValueError("cannot judge")
    if text == "exit": sys.exit(3)
    if text == "die": os._exit(7)
    if text == "segv": os.kill(os.getpid(), signal.SIGSEGV)
    if text == "nan": return float("nan")
    if text == "inf": return float("inf")
    if text == "none": return None
    if text == "str": return "1.0"
    if text == "list": return [1.0]
    if text == "true": return True
    if text == "numpy":
        import numpy
        return numpy.float32(0.5)
    if text == "print":
        print("to stdout", flush=True)
        print("to stderr", file=sys.stderr)
        return 0.25
    if text == "stdin": return float(len(sys.stdin.read()))
    if text == "alarm":
        def late(*_): raise TimeoutError("alarm")
        signal.signal(signal.SIGALRM, late)
        signal.alarm(1)
        try:
            while True: sum(range(100))
        except TimeoutError:
            return 0.75
    if text == "leave alarm":
        signal.alarm(1)
        return 0.5
    if text == "nap":
        time.sleep(1.5)
        return 0.5
    return 1.0

def once(rollout, task):
    """Fail the first time, in whatever process."""
    path = task.metadata["marker"]
    if os.path.exists(path): return 1.0
    open(path, "w").close()
    raise OSError("not yet")

def gated(rollout, task):
    """Say that it has started, and wait until it may end."""
    open(task.metadata["started"], "w").close()
    while not os.path.exists(task.metadata["go"]): time.sleep(0.01)
    return 0.5

def grandchild(rollout, task):
    """Start a process, tell its id, hang."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    marker = task.metadata["marker"]
    with open(marker + ".part", "w") as file: file.write(str(child.pid))
    os.replace(marker + ".part", marker)
    while True: pass

def streams(rollout, task):
    """Pay 1 if the rollout arrived as it was."""
    turn = rollout.turns[0]
    done = turn.completion
    same = (
        turn.prompt_ids.tolist() == [1, 2]
        and done.token_ids.tolist() == [3, 4, 5]
        and str(done.token_ids.dtype) == "int32"
        and str(done.logprobs.dtype) == "float32"
        and abs(done.logprobs.sum() + 0.3) < 1e-6
        and done.finish_reason == "stop"
        and rollout.versions == (4,)
        and rollout.reward_parts == {"world": 2.0}
        and task.prompt[0].content == "hi"
        and task.metadata["deep"] == {"k": [1, None, "x"]}
        and task.answer == "42"
    )
    return float(same)

def spans(rollout, task, *, spans: list):
    from rewards.score import Score
    from rollouts.types import SpanScore
    keys = ("turn", "start", "end", "score")
    return Score(value=0.125, spans=tuple(SpanScore(**dict(zip(keys, s))) for s in spans))

def no_task(rollout): return 0.0
not_callable = 3
'''


@pytest.fixture
def grader_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write the graders to a module that the driver and its workers can import."""
    (tmp_path / "graders_for_test.py").write_text(GRADERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "graders_for_test"


def _task(source: str = "s", *, answer: str | None = "42", **metadata: object) -> Task:
    return Task(
        task_id=f"{source}/train/0",
        source=source,
        prompt=(Message(role="user", content="hi"),),
        answer=answer,
        metadata={"deep": {"k": [1, None, "x"]}, **metadata},  # type: ignore[dict-item]
    )


def _rollout(text: str, *, status: RolloutStatus = RolloutStatus.COMPLETED) -> Rollout:
    error = RolloutError(boundary=Boundary.GENERATE, kind="X", message="engine said no")
    completion = Completion(
        token_ids=np.array([3, 4, 5], np.int32),
        logprobs=np.full(3, -0.1, np.float32),
        finish_reason=FinishReason.STOP,
        versions=(VersionSpan(version=4, start=0, end=3),),
    )
    return Rollout(
        index=1,
        turns=(Turn(prompt_ids=np.array([1, 2], np.int32), completion=completion, text=text),),
        status=status,
        reward_parts={"world": 2.0},
        error=error if status is RolloutStatus.INVALID else None,
    )


def _source(*rewards: RewardConfig, name: str = "s", procedural: str | None = None) -> SourceConfig:
    data = DataConfig(procedural=procedural) if procedural else DataConfig(jsonl="x")
    return SourceConfig(name=name, data=data, rewards=rewards)


@pytest.fixture
def task() -> Callable[..., Task]:
    """Return a maker of tasks."""
    return _task


@pytest.fixture
def rollout() -> Callable[..., Rollout]:
    """Return a maker of rollouts that said `text`."""
    return _rollout


@pytest.fixture
def source() -> Callable[..., SourceConfig]:
    """Return a maker of sources with the given rewards."""
    return _source
