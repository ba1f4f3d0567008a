"""ReMax's greedy rollout, from the order to the summary: sampled once a task at temperature 0,
graded, and trained on nowhere."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import ray

from actors.reward import RewardActor
from actors.rollout import RolloutRunner
from configs.schema import RunConfig
from rollouts.types import (
    Boundary,
    Completion,
    FinishReason,
    GeneratedGroup,
    GroupRequest,
    GroupSummary,
    Rollout,
    RolloutError,
    RolloutGroup,
    RolloutStatus,
    Sampling,
    Task,
    TrainingSample,
    Turn,
)

CFG = RunConfig.model_validate(
    {
        "name": "t",
        "num_steps": 1,
        "model": {"path": "m"},
        "batch": {"groups_per_step": 1},
        "sources": [
            {
                "name": name,
                "data": {"procedural": "reasoning_gym/lcm"},
                "rewards": [{"name": "r", "use": "exact"}],
                "advantage": {"use": use},
            }
            for name, use in (("remax", "remax"), ("plain", "rloo"))
        ],
    }
)


def order(source: str, *, step: int = 1) -> GroupRequest:
    task = Task(task_id=f"{source}/0", source=source, prompt=(), answer="!", metadata={})
    return GroupRequest(
        group_id=f"{source}/0#e0a0",
        task=task,
        group_size=3,
        sampling=Sampling(temperature=0.7, max_tokens=8),
        step=step,
    )


def played(request: GroupRequest, index: int) -> Rollout:
    tokens = index + 1
    completion = Completion(
        token_ids=np.arange(tokens, dtype=np.int32),
        logprobs=np.full(tokens, -request.sampling.temperature, np.float32),
        finish_reason=FinishReason.STOP,
        versions=(),
    )
    return Rollout(
        index=index,
        turns=(Turn(prompt_ids=np.arange(2, dtype=np.int32), completion=completion, text="x"),),
        status=RolloutStatus.COMPLETED,
        reward_parts={},
    )


class Runner(RolloutRunner):
    """Plays without an engine."""

    def __init__(self) -> None:
        self._cfg = CFG
        self._environments = {s.name: lambda: None for s in CFG.sources}  # type: ignore[dict-item,return-value]

    async def _play_one(self, make: object, request: GroupRequest, index: int) -> Rollout:
        return played(request, index)


def play(request: GroupRequest) -> RolloutGroup:
    return asyncio.run(Runner().play_group(request))


def test_one_is_sampled_besides_where_it_is_a_baseline_and_only_in_training() -> None:
    group = play(order("remax"))
    assert [r.index for r in group.rollouts] == [0, 1, 2]
    drawn = [float(r.turns[0].completion.logprobs[0]) for r in group.rollouts]
    assert drawn == pytest.approx([-0.7] * 3)
    assert group.greedy is not None and group.greedy.index == 3
    assert not group.greedy.turns[0].completion.logprobs.any()
    assert group.request.sampling.temperature == 0.7
    assert play(order("plain")).greedy is None
    assert play(order("remax", step=-1)).greedy is None


class Pool:
    """Gives each rollout a reward by its index, or none."""

    def __init__(self, rewards: dict[int, float]) -> None:
        self._rewards = rewards

    async def grade(self, rollout: Rollout, task: Task) -> Rollout:
        reward = self._rewards.get(rollout.index)
        if reward is None:
            error = RolloutError(boundary=Boundary.REWARD, kind="timeout", message="too slow")
            return replace(rollout, status=RolloutStatus.INVALID, error=error)
        return replace(rollout, reward=reward, reward_parts={"r": reward})


def grade(
    monkeypatch: pytest.MonkeyPatch, rewards: dict[int, float]
) -> tuple[GroupSummary, list[TrainingSample]]:
    held: list[object] = []

    def put(value: object) -> int:
        held.append(value)
        return len(held) - 1

    monkeypatch.setattr(ray, "put", put)

    async def go() -> GroupSummary:
        actor = RewardActor(CFG, {}, {}, {})
        actor._pool = Pool(rewards)  # type: ignore[assignment]
        group: asyncio.Future[RolloutGroup] = asyncio.get_running_loop().create_future()
        group.set_result(await Runner().play_group(order("remax")))
        return await actor.grade(
            GeneratedGroup(group_id="g", ref=group, num_completion_tokens=0, generate_s=0.0)
        )

    summary = asyncio.run(go())
    return summary, [held[s.ref][s.row] for s in summary.samples]  # type: ignore[index]


def test_its_reward_is_the_baseline_and_it_is_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    summary, samples = grade(monkeypatch, {0: 1.0, 2: 0.0, 3: 0.5})
    assert [r.reward for r in summary.rollouts] == [1.0, None, 0.0]
    assert summary.rewards == (1.0, 0.0)
    assert summary.greedy is not None and summary.greedy.reward == 0.5
    assert summary.greedy.num_completion_tokens == 4
    assert [s.index for s in samples] == [0, 2]
    assert [set(s.advantages[s.loss_mask].tolist()) for s in samples] == [{0.5}, {-0.5}]
    assert summary.has_signal


def test_without_it_the_group_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    summary, samples = grade(monkeypatch, {0: 1.0, 1: 1.0, 2: 0.0})
    assert (summary.rewards, summary.samples, samples) == ((), (), [])
    assert {r.status for r in summary.rollouts} == {RolloutStatus.INVALID}
    assert "greedy rollout" in str(summary.rollouts[0].error)
