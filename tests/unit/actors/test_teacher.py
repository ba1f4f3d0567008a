"""The teacher: scores in batches as one by one, and what a reward actor makes of its word."""

import asyncio
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.errors import RunError
from actors.reward import RewardActor
from actors.teacher import TeacherActor, TeacherLink
from configs.errors import ConfigError
from configs.schema import RunConfig
from rollouts.packing import within_budget
from rollouts.types import (
    Completion,
    FinishReason,
    GeneratedGroup,
    GroupRequest,
    GroupSummary,
    Rollout,
    RolloutGroup,
    RolloutStatus,
    Sampling,
    Task,
    TrainingSample,
    Turn,
    VersionSpan,
)

TINY = str(Path(__file__).parents[3] / "configs/models/tiny")
MODEL = {"path": TINY, "dtype": "float32", "max_model_len": 128}


def run_config(**source: Any) -> RunConfig:
    data = {
        "name": "t",
        "num_steps": 1,
        "model": MODEL,
        "sources": [
            {
                "name": "s",
                "data": {"procedural": "reasoning_gym/chain_sum"},
                "distill": {"teacher": "big", "coef": 0.5},
                **source,
            }
        ],
        "batch": {"groups_per_step": 1},
        "teachers": {"big": {"model": MODEL, "max_tokens_per_batch": 128, "timeout_s": 5}},
    }
    return RunConfig.model_validate_json(json.dumps(data))


def sample(ids: list[int], sampled: int, temperature: float = 1.0) -> TrainingSample:
    n = len(ids)
    zero = np.zeros(n, np.float32)
    return TrainingSample(
        group_id="g",
        index=0,
        token_ids=np.array(ids, np.int32),
        loss_mask=np.arange(n) >= n - sampled,
        rollout_logprobs=zero,
        advantages=zero,
        loss_weight=zero + 1,
        kl_coef=zero,
        clip_low=zero,
        clip_high=zero,
        temperature=np.full(n, temperature, np.float32),
    )


@pytest.fixture(scope="module")
def teacher(outside_ray: None) -> TeacherActor:
    actor = TeacherActor(run_config(), "big")
    actor.start()
    return actor


def test_scores_are_the_models_own_at_each_samples_temperature(teacher: TeacherActor):
    rng = random.Random(0)
    samples = tuple(
        sample([rng.randrange(260) for _ in range(rng.randint(3, 60))], 2, rng.uniform(0.5, 2))
        for _ in range(12)
    )
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    for one, scores in zip(samples, teacher.score(samples), strict=True):
        ids = torch.from_numpy(one.token_ids).long()
        with torch.no_grad():
            logits = model(ids.unsqueeze(0)).logits[0] / float(one.temperature[0])
        expected = torch.log_softmax(logits, -1)[:-1].gather(1, ids[1:, None])[:, 0].numpy()
        np.testing.assert_allclose(scores[-2:], expected[-2:], atol=1e-4)
        assert not scores[:-2].any()


@pytest.mark.parametrize("seed", range(20))
def test_batches_keep_the_order_and_the_bound(seed: int):
    rng = random.Random(seed)
    samples = [sample([0] * rng.randint(1, 40), 1) for _ in range(30)]
    runs = within_budget(samples, 64)
    assert [id(s) for run in runs for s in run] == [id(s) for s in samples]
    sizes = [sum(len(s.token_ids) for s in run) for run in runs]
    assert all(n <= 64 for n in sizes)
    firsts = [len(run[0].token_ids) for run in runs[1:]]
    assert all(n + first > 64 for n, first in zip(sizes, firsts, strict=False))


def test_a_model_that_cannot_be_loaded_is_named_by_its_field(tmp_path: Path):
    cfg = run_config()
    big = cfg.teachers["big"]
    gone = big.model_copy(update={"model": big.model.model_copy(update={"path": str(tmp_path)})})
    with pytest.raises(ConfigError) as error:
        TeacherActor(cfg.model_copy(update={"teachers": {"big": gone}}), "big").start()
    assert error.value.problems[0].where == "teachers.big.model.path"


def handle(call: Any) -> Any:
    """Return something called as Ray calls an actor."""
    return SimpleNamespace(score=SimpleNamespace(remote=call))


def test_a_teacher_that_does_not_answer_ends_the_run_with_the_remedy():
    cfg = run_config().teachers["big"].model_copy(update={"timeout_s": 0.01})

    async def never(_: object) -> None:
        await asyncio.Event().wait()

    link = TeacherLink("big", cfg, [handle(never)])
    with pytest.raises(RunError, match=r"no logprobs of 3 tokens.*teachers\.big\.timeout_s"):
        asyncio.run(link.score((sample([1, 2, 3], 1),)))


def test_the_least_busy_actor_is_asked():
    asked: list[int] = []

    async def ask() -> None:
        links: list[Any] = []
        done = asyncio.Event()
        for i in range(2):

            async def call(samples: Any, i: int = i) -> tuple[()]:
                asked.append(i)
                await done.wait()
                return ()

            links.append(handle(call))
        link = TeacherLink("big", run_config().teachers["big"], links)
        lengths = (9, 2, 2, 2, 9)
        waiting = []
        for n in lengths:
            waiting.append(asyncio.create_task(link.score((sample([1] * n, 1),))))
            await asyncio.sleep(0)
        done.set()
        await asyncio.gather(*waiting)

    asyncio.run(ask())
    assert asked == [0, 1, 1, 1, 1]


def rollout(index: int, logprobs: list[float]) -> Rollout:
    n = len(logprobs)
    done = Completion(
        token_ids=np.arange(n, dtype=np.int32),
        logprobs=np.array(logprobs, np.float32),
        finish_reason=FinishReason.STOP,
        versions=(VersionSpan(version=0, start=0, end=n),),
    )
    turn = Turn(prompt_ids=np.array([5, 6], np.int32), completion=done, text="x")
    return Rollout(index=index, turns=(turn,), status=RolloutStatus.COMPLETED, reward_parts={})


def graded(
    monkeypatch: pytest.MonkeyPatch, cfg: RunConfig, step: int, logprob: float
) -> tuple[GroupSummary, list[Any]]:
    """Grade a group of two with a teacher that gives every token `logprob`."""
    stored: list[Any] = []

    def put(value: Any) -> Any:
        stored.append(value)
        return value

    monkeypatch.setattr(ray, "put", put)

    async def scores(samples: tuple[TrainingSample, ...]) -> tuple[np.ndarray, ...]:
        return tuple(np.full(len(s.token_ids), logprob, np.float32) for s in samples)

    actor = RewardActor(cfg, {}, {}, {"big": [handle(scores)]})
    task = Task(task_id="s/train/0", source="s", prompt=(), answer=None, metadata={})
    request = GroupRequest(
        group_id="s/train/0#e0a0",
        task=task,
        group_size=2,
        sampling=Sampling(temperature=1.0, max_tokens=4),
        step=step,
    )
    rollouts = (rollout(0, [-1.0, -2.0]), rollout(1, [-1.0]))
    group = RolloutGroup(request=request, rollouts=rollouts, generate_s=0.0)

    async def grade() -> GroupSummary:
        ref: asyncio.Future[RolloutGroup] = asyncio.get_running_loop().create_future()
        ref.set_result(group)
        return await actor.grade(
            GeneratedGroup(
                group_id=request.group_id, ref=ref, num_completion_tokens=3, generate_s=0.0
            )
        )

    return asyncio.run(grade()), stored


def test_a_group_is_taught_without_any_reward(monkeypatch: pytest.MonkeyPatch):
    summary, stored = graded(monkeypatch, run_config(), 1, -1.0)
    assert summary.has_signal is True  # though all rewards are 0
    assert [r.teacher_gap for r in summary.rollouts] == [-1.0, 0.0]
    samples: tuple[TrainingSample, ...] = stored[0]
    np.testing.assert_allclose(samples[0].taught, [0, 0, 0, 0.5])  # type: ignore[arg-type]
    np.testing.assert_allclose(samples[1].taught, [0, 0, 0])  # type: ignore[arg-type]
    assert not samples[0].advantages.any()


def test_an_evaluation_is_not_scored(monkeypatch: pytest.MonkeyPatch):
    summary, _ = graded(monkeypatch, run_config(), -1, -1.0)
    assert summary.has_signal is None
    assert [r.teacher_gap for r in summary.rollouts] == [None, None]
