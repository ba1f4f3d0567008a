"""The grader pool, with real processes: failures are invalid, hangs are killed, nothing leaks."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from configs.schema import RewardConfig, RewardGroupConfig, SourceConfig
from rewards import wire
from rewards.pool import GraderPool, GraderStartError
from rewards.process import GraderProcess
from rollouts.types import Boundary, Rollout, RolloutStatus, Task

Make = Callable[..., Rollout]
MakeTask = Callable[..., Task]
MakeSource = Callable[..., SourceConfig]
UNWANTED = ["torch", "ray", "vllm", "transformers", "deepspeed"]


def reward(use: str, name: str = "r", weight: float = 1.0, **args: object) -> RewardConfig:
    return RewardConfig.model_validate({"name": name, "use": use, "weight": weight, "args": args})


def run_with(
    source: SourceConfig,
    play: Callable[[GraderPool], Awaitable[None]],
    *more: SourceConfig,
    workers: int = 1,
    timeout_s: float = 30.0,
    retries: int = 0,
) -> None:
    """Start a pool, play with it, close it; no process may be left."""

    async def main() -> None:
        cfg = RewardGroupConfig(workers=workers, timeout_s=timeout_s, retries=retries)
        pool = GraderPool(cfg, [source, *more])
        await pool.start()
        pids = set(pool.pids)
        assert len(pids) == workers
        try:
            await play(pool)
            pids |= set(pool.pids)
        finally:
            await pool.close()
        assert not any(map(exists, pids))

    asyncio.run(main())


def exists(pid: int) -> bool:
    """Return whether a process (or a zombie of ours) has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def await_file(path: Path) -> None:
    """Wait, bounded, for a file to be there."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Wait, bounded, for a process that is not our child to be gone or a zombie."""
    for _ in range(200):
        with suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                time.sleep(0.05)
                continue
        return True
    return False


def assert_invalid(graded: Rollout, kind: str, words: str) -> None:
    assert graded.status is RolloutStatus.INVALID
    assert graded.reward is None
    assert graded.error is not None and graded.error.boundary is Boundary.REWARD
    assert graded.error.kind == kind
    assert words in graded.error.message


def test_the_reward_is_the_weighted_sum_of_the_parts(
    grader_module: str, source: MakeSource, rollout: Make, task: MakeTask
) -> None:
    mixed = source(
        reward("exact", "answer", 1.0),
        reward(f"{grader_module}:length", "length", -0.25, factor=2),
        reward(f"{grader_module}:streams", "streams", 10.0),
        reward(f"{grader_module}:loaded", "heavy", 100.0, modules=UNWANTED),
    )

    async def play(pool: GraderPool) -> None:
        graded = await pool.grade(rollout("42"), task())
        assert graded.status is RolloutStatus.COMPLETED and graded.error is None
        assert graded.reward_parts == {"answer": 1, "length": 4, "streams": 1, "heavy": 0}
        assert graded.reward == 1.0 - 0.25 * 4 + 10.0
        cut = await pool.grade(rollout("42", status=RolloutStatus.TRUNCATED), task())
        assert cut.status is RolloutStatus.TRUNCATED and cut.reward == graded.reward

    run_with(mixed, play)


def test_spans_make_a_part_by_its_credit_and_lie_in_the_text_or_fail(
    grader_module: str, source: MakeSource, rollout: Make, task: MakeTask
) -> None:
    given = [[0, 0, 1, 1.0], [0, 1, 3, 0.5], [0, 3, 4, 0.25]]

    def part(name: str, credit: object = None, spans: object = given) -> RewardConfig:
        plain = reward(f"{grader_module}:spans", name, spans=spans)
        return RewardConfig.model_validate({**plain.model_dump(), "credit": credit})

    credited = source(
        part("own"),
        part("kept", {}),
        part("sum", {"aggregate": "sum"}),
        part("last", {"aggregate": "last", "to": "rollout"}),
        part("discounted", {"aggregate": "discounted", "gamma": 0.5}),
    )
    beyond = source(part("beyond", spans=[[0, 2, 9, 1.0]]))

    async def play(pool: GraderPool) -> None:
        graded = await pool.grade(rollout("abcd"), task())
        assert graded.reward_parts == {
            "own": 0.125,
            "kept": 0.125,
            "sum": 1.75,
            "last": 0.25,
            "discounted": 1 + 0.25 + 0.0625,
        }
        assert [s.part for s in graded.spans] == [p.name for p in credited.rewards for _ in given]
        assert [s.score for s in graded.spans[:3]] == [1.0, 0.5, 0.25]

    async def fail(pool: GraderPool) -> None:
        assert_invalid(await pool.grade(rollout("abcd"), task()), "BadSpan", "has 4 characters")

    run_with(credited, play)
    run_with(beyond, fail)


def test_gates_and_formulas_make_the_reward_and_parts_stay_raw(
    grader_module: str, source: MakeSource, rollout: Make, task: MakeTask
) -> None:
    parts = (reward("exact", "right"), reward(f"{grader_module}:length", "style", 0.5))
    plain = source(*parts).model_dump()
    gate = [{"part": "style", "needs": "right"}]
    gated = SourceConfig.model_validate({**plain, "objective": {"gates": gate}})
    unweighed = source(parts[0], reward(f"{grader_module}:length", "style")).model_dump()
    formula = {"combine": "formula", "formula": "right / style"}
    divided = SourceConfig.model_validate({**unweighed, "objective": formula})

    async def shut(pool: GraderPool) -> None:
        wrong, right = [await pool.grade(rollout(t), task()) for t in ("xxxx", "42")]
        assert wrong.reward == 0.0 and wrong.reward_parts == {"right": 0.0, "style": 4.0}
        assert right.reward == 2.0 and right.reward_parts == {"right": 1.0, "style": 2.0}

    async def compute(pool: GraderPool) -> None:
        assert (await pool.grade(rollout("42"), task())).reward == 0.5
        by_zero = await pool.grade(rollout(""), task())
        assert_invalid(by_zero, "formula_parse_error", "")

    run_with(gated, shut)
    run_with(divided, compute)


def test_a_failing_grader_makes_the_rollout_invalid_and_never_zero(
    grader_module: str, source: MakeSource, rollout: Make, task: MakeTask
) -> None:
    expected = {
        "raise": ("ValueError", "cannot judge"),
        "exit": ("SystemExit", "3"),
        "die": ("WorkerLost", "exit code 7"),
        "segv": ("WorkerLost", "SIGSEGV"),
        "nan": ("NotANumber", "nan"),
        "inf": ("NotANumber", "inf"),
        "none": ("NotANumber", "None"),
        "str": ("NotANumber", "'1.0'"),
        "list": ("NotANumber", "[1.0]"),
    }
    values = {"fine": 1.0, "true": 1.0, "numpy": 0.5, "print": 0.25, "stdin": 0.0, "alarm": 0.75}

    async def play(pool: GraderPool) -> None:
        for text, (kind, words) in expected.items():
            assert_invalid(await pool.grade(rollout(text), task()), kind, words)
        for text, value in values.items():
            assert (await pool.grade(rollout(text), task())).reward == value

    run_with(source(reward(f"{grader_module}:by_text")), play)


def test_an_alarm_left_behind_does_not_hit_the_next_rollout(
    grader_module: str, source: MakeSource, rollout: Make, task: MakeTask
) -> None:
    async def play(pool: GraderPool) -> None:
        before = pool.pids
        assert (await pool.grade(rollout("leave alarm"), task())).reward == 0.5
        assert (await pool.grade(rollout("nap"), task())).reward == 0.5
        assert pool.pids == before

    run_with(source(reward(f"{grader_module}:by_text")), play)


def test_one_hung_grader_costs_no_other_sample(
    grader_module: str, source: MakeSource, rollout: Make, task: MakeTask
) -> None:
    async def play(pool: GraderPool) -> None:
        before = set(pool.pids)
        texts = ["hang", *["fine"] * 20, "sleep", *["fine"] * 20]
        of = {"fine": "s", "hang": "hung", "sleep": "hung"}
        graded = await asyncio.gather(*(pool.grade(rollout(t), task(of[t])) for t in texts))
        for text, result in zip(texts, graded, strict=True):
            if text == "fine":
                assert result.reward == 1.0
            else:
                assert_invalid(result, "timeout", "no reward within 2 s")
        assert (await pool.grade(rollout("fine"), task())).reward == 1.0
        killed = before - set(pool.pids)
        assert killed and not any(map(exists, killed))

    by_text = f"{grader_module}:by_text"
    short = {"type": "function", "use": by_text, "timeout_s": 2}
    hung = source(RewardConfig.model_validate({"name": "r", "grader": short}), name="hung")
    run_with(source(reward(by_text)), play, hung, workers=2, timeout_s=60)


def test_what_a_hung_grader_started_is_killed_with_it(
    grader_module: str,
    source: MakeSource,
    rollout: Make,
    task: MakeTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marker = tmp_path / "child.pid"
    receive = wire.receive

    def receive_late(sock: socket.socket, deadline: float | None = None) -> object:
        """Let the deadline pass once the grader hangs; the next worker starts as ever."""
        monkeypatch.setattr(wire, "receive", receive)
        await_file(marker)
        return receive(sock, 0.0)

    async def play(pool: GraderPool) -> None:
        monkeypatch.setattr(wire, "receive", receive_late)
        graded = await pool.grade(rollout("x"), task(marker=str(marker)))
        assert_invalid(graded, "timeout", "killed")
        assert gone(int(marker.read_text()))

    run_with(source(reward(f"{grader_module}:grandchild")), play, timeout_s=60)


def test_a_failure_is_tried_again(
    grader_module: str, source: MakeSource, rollout: Make, task: MakeTask, tmp_path: Path
) -> None:
    async def retried(pool: GraderPool) -> None:
        graded = await pool.grade(rollout("x"), task(marker=str(tmp_path / "once")))
        assert graded.reward == 1.0 and graded.error is None

    async def not_retried(pool: GraderPool) -> None:
        graded = await pool.grade(rollout("x"), task(marker=str(tmp_path / "never")))
        assert_invalid(graded, "OSError", "not yet")

    once = source(reward(f"{grader_module}:once"))
    run_with(once, retried, retries=1)
    run_with(once, not_retried, retries=0)


def test_an_invalid_rollout_passes_untouched(
    grader_module: str, source: MakeSource, rollout: Make, task: MakeTask
) -> None:
    async def play(pool: GraderPool) -> None:
        broken = rollout("fine", status=RolloutStatus.INVALID)
        assert await pool.grade(broken, task()) is broken

    run_with(source(reward(f"{grader_module}:by_text")), play)


def test_a_cancelled_caller_gives_the_worker_back(
    grader_module: str, source: MakeSource, rollout: Make, task: MakeTask, tmp_path: Path
) -> None:
    started, go = tmp_path / "started", tmp_path / "go"

    async def play(pool: GraderPool) -> None:
        given = task("gated", started=str(started), go=str(go))
        first = asyncio.create_task(pool.grade(rollout("x"), given))
        await asyncio.to_thread(await_file, started)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        before = pool.pids
        go.touch()
        assert (await pool.grade(rollout("fine"), task())).reward == 1.0
        assert pool.pids == before

    gated = source(reward(f"{grader_module}:gated"), name="gated")
    run_with(source(reward(f"{grader_module}:by_text")), play, gated)


def test_closing_ends_gradings_under_way_and_those_that_wait(
    grader_module: str, source: MakeSource, rollout: Make, task: MakeTask
) -> None:
    async def main() -> None:
        cfg = RewardGroupConfig(workers=1, timeout_s=100, retries=2)
        pool = GraderPool(cfg, [source(reward(f"{grader_module}:by_text"))])
        await pool.start()
        hung = [asyncio.create_task(pool.grade(rollout("hang"), task())) for _ in range(3)]
        await asyncio.sleep(0.2)
        pids = pool.pids
        await asyncio.wait_for(pool.close(), 30)
        for graded in await asyncio.wait_for(asyncio.gather(*hung), 30):
            assert_invalid(graded, "WorkerLost", "")
        assert not any(map(exists, pids))

    asyncio.run(main())


def test_closing_ends_a_grading_whose_worker_has_yet_to_start(
    grader_module: str,
    source: MakeSource,
    rollout: Make,
    task: MakeTask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ensure_started, asked = GraderProcess.ensure_started, threading.Event()

    def start_late(process: GraderProcess) -> None:
        process.kill()
        asked.set()
        deadline = time.monotonic() + 60
        while not process._interrupted:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        ensure_started(process)

    async def main() -> None:
        cfg = RewardGroupConfig(workers=1, timeout_s=100, retries=2)
        pool = GraderPool(cfg, [source(reward(f"{grader_module}:by_text"))])
        await pool.start()
        monkeypatch.setattr(GraderProcess, "ensure_started", start_late)
        grading = asyncio.create_task(pool.grade(rollout("fine"), task()))
        assert await asyncio.to_thread(asked.wait, 60)
        await asyncio.wait_for(pool.close(), 30)
        assert_invalid(await grading, "WorkerLost", "the grader pool is closed")
        assert pool.pids == ()

    asyncio.run(main())


def test_a_worker_that_cannot_load_its_graders_fails_the_start(source: MakeSource) -> None:
    pool = GraderPool(RewardGroupConfig(workers=2), [source(reward("no_such_module_y:f"))])

    async def main() -> None:
        with pytest.raises(GraderStartError, match="no_such_module_y"):
            await pool.start()

    asyncio.run(main())
    assert pool.pids == ()


@pytest.mark.parametrize("text", ["fine", "hang"])
def test_workers_die_with_a_killed_parent(grader_module: str, tmp_path: Path, text: str) -> None:
    """Idle or busy, a worker does not outlive a SIGKILL of the process that owns it."""
    script = tmp_path / "parent.py"
    script.write_text(
        f"""
import asyncio, sys
from dataclasses import replace
sys.path.insert(0, {str(tmp_path)!r})
from configs.schema import *
from rewards.pool import GraderPool
from rollouts.types import *
reward = RewardConfig(name="r", use="{grader_module}:by_text")
source = SourceConfig(name="s", data=DataConfig(jsonl="x"), rewards=(reward,))
async def main():
    pool = GraderPool(RewardGroupConfig(timeout_s=1000), [source])
    await pool.start()
    completion = Completion(token_ids=np.zeros(1), logprobs=np.zeros(1), versions=(),
                            finish_reason=FinishReason.STOP)
    turn = Turn(prompt_ids=np.zeros(1), completion=completion, text={text!r})
    rollout = Rollout(index=0, turns=(turn,), status=RolloutStatus.COMPLETED, reward_parts={{}})
    task = Task(task_id="t", source="s", prompt=(), answer=None, metadata={{}})
    grading = asyncio.create_task(pool.grade(rollout, task))
    await asyncio.sleep(0.5)
    print(*pool.pids, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=env)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert exists(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate(timeout=30)
    died = gone(pid)
    if not died:
        os.kill(pid, signal.SIGKILL)
    assert died
