"""What is written down of a rollout: each kept token, with the numbers of the sampled ones."""

import json
import random

import numpy as np
import pytest

from rollouts.record import TOKENS_A_STEP, Spelled, record, room_for, stretches
from rollouts.types import (
    Completion,
    FinishReason,
    GroupRequest,
    Message,
    Rollout,
    RolloutGroup,
    RolloutStatus,
    Sampling,
    Task,
    TrainingSample,
    Turn,
    VersionSpan,
)


def played(rng: random.Random, turns: int) -> Rollout:
    """Make a rollout whose tokens are numbered, and whose logprobs tell the number too."""
    made: list[Turn] = []
    at = 0
    for _ in range(turns):
        heard, said = rng.randint(1, 9), rng.randint(0, 20)
        prompt = np.arange(at, at + heard, dtype=np.int32)
        sampled = np.arange(at + heard, at + heard + said, dtype=np.int32)
        at += heard + said
        completion = Completion(
            token_ids=sampled,
            logprobs=-sampled.astype(np.float32),
            finish_reason=FinishReason.STOP,
            versions=(VersionSpan(version=3, start=0, end=said),),
        )
        made.append(Turn(prompt_ids=prompt, completion=completion, text="said"))
    status = RolloutStatus.COMPLETED if turns else RolloutStatus.INVALID
    reward = 1.0 if turns else None
    return Rollout(index=0, turns=tuple(made), status=status, reward=reward, reward_parts={})


def group_of(rollout: Rollout) -> RolloutGroup:
    task = Task(
        task_id="s/train/1",
        source="s",
        prompt=(Message(role="user", content="?"),),
        answer="4",
        metadata={},
    )
    drawn = Sampling(temperature=1.0, max_tokens=9)
    request = GroupRequest(group_id="g", task=task, group_size=1, sampling=drawn, step=5)
    return RolloutGroup(request=request, rollouts=(rollout,), generate_s=0.0)


def sample_of(rollout: Rollout, advantages: np.ndarray) -> TrainingSample:  # type: ignore[type-arg]
    size = rollout.num_tokens
    pieces = [p for t in rollout.turns for p in (t.prompt_ids, t.completion.token_ids)]
    mask = np.concatenate([np.full(len(p), i % 2 == 1) for i, p in enumerate(pieces)])
    flat = np.zeros(size, np.float32)
    return TrainingSample(
        group_id="g",
        index=0,
        token_ids=np.concatenate(pieces).astype(np.int32),
        loss_mask=mask,
        rollout_logprobs=flat,
        advantages=np.where(mask, advantages, 0).astype(np.float32),
        loss_weight=flat,
        kl_coef=flat,
        clip_low=flat,
        clip_high=flat,
        temperature=flat,
    )


@pytest.mark.parametrize("seed", range(200))
def test_each_kept_token_has_its_own_numbers(seed: int):
    rng = random.Random(seed)
    rollout = played(rng, rng.randint(1, 4))
    size, room = rollout.num_tokens, rng.choice([2, 5, 8, 17, 400])
    head, tail, kept = stretches(rollout, room)
    ids = [int(i) for piece in kept for i in piece]
    assert ids == [i for i in range(size) if i < head or i >= tail]
    assert len(ids) == min(size, room)
    spelled = Spelled(pieces=tuple(map(str, ids)), head=head, tail=tail, heard=("x" * 9999,))
    sample = sample_of(rollout, np.arange(size) * 2)
    policy = np.arange(size, dtype=np.float32) * -3
    (row,) = record(group_of(rollout), 5, [spelled], {0: sample}, {0: policy})
    tokens = json.loads(json.dumps(row))["tokens"]
    shown = [int(tokens["text"][i]) for a, b in tokens["sampled"] for i in range(a, b)]
    assert shown == [i for i in ids if sample.loss_mask[i]]
    assert tokens["logprob"] == [-i for i in shown]
    assert tokens["trainer_logprob"] == [-3 * i for i in shown]
    advantage = tokens["advantage"]
    assert (advantage if isinstance(advantage, list) else [advantage] * len(shown)) == [
        2 * i for i in shown
    ]
    assert tokens.get("left_out") == ([head, tail - head] if size > room else None)
    assert len(row["heard"][0]) == 2000  # type: ignore[index, arg-type]


def test_one_advantage_for_all_tokens_is_one_number():
    rollout = played(random.Random(1), 2)
    spelled = Spelled(pieces=("x",) * rollout.num_tokens, head=10**6, tail=10**6, heard=())
    sample = sample_of(rollout, np.full(rollout.num_tokens, -0.5))
    (row,) = record(group_of(rollout), 5, [spelled], {0: sample})
    assert row["tokens"]["advantage"] == -0.5  # type: ignore[index, call-overload]
    assert "trainer_logprob" not in row["tokens"]  # type: ignore[operator]


def test_a_rollout_that_failed_has_no_tokens_and_no_advantage():
    rollout = played(random.Random(1), 0)
    assert stretches(rollout, 8) == (0, 0, ())
    (row,) = record(group_of(rollout), 5, [Spelled(pieces=(), head=0, tail=0, heard=())])
    assert row["tokens"] == {"text": [], "sampled": [], "logprob": []}
    assert row["reward"] is None and row["status"] == "invalid"


def test_a_step_is_bounded():
    for count in (1, 7, 32, 100):
        assert room_for(count) * count <= TOKENS_A_STEP
    assert room_for(10**6) == 64
