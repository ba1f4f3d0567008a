"""What a grader process can see, what counts as a number, and a pool that is closed."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.data import DataConfig
from configs.schema import RewardConfig, RewardGroupConfig, SourceConfig
from mixing.sources.procedural import ProceduralSource
from rewards.graders import reasoning_gym
from rewards.pool import GraderPool, GraderStartError
from rewards.process import GraderProcess
from rollouts.types import Rollout, RolloutStatus, Task

Make = Callable[..., Rollout]
MakeTask = Callable[..., Task]

ODD_GRADERS = """
import json, os, sys
import numpy as np

def see(rollout, task):
    with open(task.metadata["marker"], "w") as file:
        json.dump({"env": dict(os.environ), "modules": sorted(sys.modules)}, file)
    return 1.0

def odd(rollout, task):
    return {
        "np.bool": np.bool_(True),
        "np.int": np.int64(3),
        "huge": 10**400,
        "complex": 1j,
        "array": np.ones(1),
    }[rollout.last_text]

async def later(rollout, task):
    return 1.0

def noted(rollout, task):
    from rewards.score import Score
    from rollouts.types import SpanScore
    return {
        "notes": Score(value=1.0, notes={"seen": np.int64(3)}),
        "span": Score(value=1.0, spans=(SpanScore(turn=0, start="0", end=None, score=1.0),)),
        "fine": Score(value=1.0),
    }[rollout.last_text]
"""


@pytest.fixture
def odd_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "odd_graders_for_test.py").write_text(ODD_GRADERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "odd_graders_for_test"


def source(*rewards: RewardConfig) -> SourceConfig:
    return SourceConfig(name="s", data=DataConfig(jsonl="x"), rewards=rewards)


def reward(use: str, weight: float = 1.0) -> RewardConfig:
    return RewardConfig(name="r", use=use, weight=weight)


async def grade_all(given: SourceConfig, pairs: list[tuple[Rollout, Task]]) -> list[Rollout]:
    """Grade each in turn with one worker."""
    pool = GraderPool(RewardGroupConfig(workers=1, timeout_s=60, retries=0), [given])
    await pool.start()
    try:
        return [await pool.grade(rollout, task) for rollout, task in pairs]
    finally:
        await pool.close()


def test_a_worker_sees_no_secret_and_loads_nothing_heavy(
    odd_module: str,
    rollout: Make,
    task: MakeTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "s3cret")
    marker = tmp_path / "seen"
    (graded,) = asyncio.run(
        grade_all(source(reward(f"{odd_module}:see")), [(rollout("x"), task(marker=str(marker)))])
    )
    assert graded.reward == 1.0
    seen = json.loads(marker.read_text())
    assert "s3cret" not in seen["env"].values()
    assert seen["env"]["PATH"] == os.environ["PATH"]
    assert not {"torch", "ray", "vllm", "transformers", "deepspeed"} & set(seen["modules"])
    assert "rewards.worker" not in seen["modules"]  # it is __main__, imported once
    assert odd_module in seen["modules"]


def test_numbers_of_numpy_count_and_others_do_not(
    odd_module: str, rollout: Make, task: MakeTask
) -> None:
    texts = ["np.bool", "np.int", "huge", "complex", "array"]
    graded = asyncio.run(
        grade_all(source(reward(f"{odd_module}:odd")), [(rollout(t), task()) for t in texts])
    )
    assert [g.reward for g in graded] == [1.0, 3.0, None, None, None]
    assert [g.status for g in graded[2:]] == [RolloutStatus.INVALID] * 3
    assert {g.error.kind for g in graded[2:] if g.error} == {"NotANumber"}


def test_a_sum_beyond_every_float_is_invalid(rollout: Make, task: MakeTask) -> None:
    parts = [RewardConfig(name=name, use="exact", weight=1.7e308) for name in ("first", "second")]
    good, bad = asyncio.run(
        grade_all(source(*parts), [(rollout("no"), task()), (rollout("42"), task())])
    )
    assert good.reward == 0.0
    assert bad.status is RolloutStatus.INVALID and bad.reward is None
    assert bad.error is not None and bad.error.kind == "NotANumber"


def test_an_async_grader_is_refused_at_the_start(odd_module: str) -> None:
    pool = GraderPool(RewardGroupConfig(workers=1), [source(reward(f"{odd_module}:later"))])

    async def main() -> None:
        with pytest.raises(GraderStartError, match="async def"):
            await pool.start()

    asyncio.run(main())
    assert pool.pids == ()


def test_a_closed_pool_answers_at_once(rollout: Make, task: MakeTask) -> None:
    async def main() -> list[Rollout]:
        pool = GraderPool(RewardGroupConfig(workers=1, retries=3), [source(reward("exact"))])
        await pool.start()
        await pool.close()
        await pool.close()
        return await asyncio.wait_for(
            asyncio.gather(*(pool.grade(rollout("42"), task()) for _ in range(5))), 10
        )

    for graded in asyncio.run(main()):
        assert graded.status is RolloutStatus.INVALID and graded.reward is None
        assert graded.error is not None and "closed" in graded.error.message


def test_an_interrupted_process_starts_no_other() -> None:
    process = GraderProcess({"s/r": reward("exact").definition})
    process.ensure_started()
    pid = process.pid
    process.interrupt()
    process.kill()
    assert pid is not None and not Path(f"/proc/{pid}").exists()
    with pytest.raises(GraderStartError, match="closed"):
        process.ensure_started()
    assert process.pid is None


def test_reasoning_gym_pays_the_gold_answer_and_it_alone(rollout: Make) -> None:
    """Through the pipe: items of three datasets, each gold, wrong, and gold within a sentence."""
    names = ("lcm", "spell_backward", "chain_sum")
    sources = [
        SourceConfig(
            name=name,
            data=DataConfig(procedural=f"reasoning_gym/{name}", size=4, held_out=2),
            rewards=(RewardConfig(name="r", use="reasoning_gym"),),
        )
        for name in names
    ]
    tasks = [ProceduralSource(s).task(i) for s in sources for i in range(4)]

    async def main() -> list[list[float | None]]:
        pool = GraderPool(RewardGroupConfig(workers=1, timeout_s=60), sources)
        await pool.start()
        try:
            return [
                [
                    (await pool.grade(rollout(text), task)).reward
                    for text in (
                        f" {task.answer}\n",
                        f"{task.answer}0",
                        f"The answer is {task.answer}",
                        "",
                    )
                ]
                for task in tasks
            ]
        finally:
            await pool.close()

    assert asyncio.run(main()) == [[1.0, 0.0, 0.0, 0.0]] * 12


def test_partial_credit_that_sums_to_a_hair_over_one_is_no_full_score(
    rollout: Make, task: MakeTask
) -> None:
    entry = {"question": "Spell hypomeron backward", "answer": "noremopyh", "metadata": {}}
    given = task(dataset="spell_backward", args={}, entry=entry)
    assert reasoning_gym(rollout("noremopyh and more"), given, binary=False) > 1.0
    assert reasoning_gym(rollout("noremopyh and more"), given) == 0.0
    assert reasoning_gym(rollout("noremopyh"), given) == 1.0


def test_a_score_that_cannot_travel_is_invalid_and_costs_no_process(
    odd_module: str, rollout: Make, task: MakeTask
) -> None:
    async def main() -> tuple[list[Rollout], list[tuple[int, ...]]]:
        cfg = RewardGroupConfig(workers=1, timeout_s=60, retries=0)
        pool = GraderPool(cfg, [source(reward(f"{odd_module}:noted"))])
        await pool.start()
        try:
            before = pool.pids
            found = [await pool.grade(rollout(t), task()) for t in ("notes", "span", "fine")]
            return found, [before, pool.pids]
        finally:
            await pool.close()

    (notes, span, fine), (before, after) = asyncio.run(main())
    assert before == after and fine.reward == 1.0
    for lost in (notes, span):
        assert lost.status is RolloutStatus.INVALID and lost.error is not None
        assert lost.error.kind != "WorkerLost" and "score" in lost.error.message
