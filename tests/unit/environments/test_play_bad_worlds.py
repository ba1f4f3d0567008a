"""Environments that return something else than they should: invalid data, never a crash."""

import asyncio
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

from environments.environment import Environment, StepOutput
from environments.play import play
from rollouts.types import (
    I32,
    Boundary,
    Completion,
    FinishReason,
    Message,
    RolloutStatus,
    Sampling,
    Task,
    VersionSpan,
)

PROMPT = (Message(role="user", content="hi"),)
TASK = Task(task_id="s/train/0", source="s", prompt=PROMPT, answer=None, metadata={})


class Growing:
    """A renderer whose conversation is three ids longer for each message."""

    def render(self, messages: Sequence[Message]) -> I32:
        return np.arange(3 * len(messages), dtype=np.int32)

    def decode(self, ids: I32) -> str:
        return "said"


async def reply(prompt_ids: I32, sampling: Sampling) -> Completion:
    return Completion(
        token_ids=np.arange(len(prompt_ids), len(prompt_ids) + 2, dtype=np.int32),
        logprobs=np.full(2, -0.5, np.float32),
        finish_reason=FinishReason.STOP,
        versions=(VersionSpan(version=0, start=0, end=2),),
    )


class Says(Environment):
    """Returns whatever it was given."""

    def __init__(self, opening: object, output: object):
        self._opening, self._output = opening, output

    async def reset(self, task: Task) -> tuple[Message, ...]:
        return cast(tuple[Message, ...], self._opening)

    async def step(self, reply: Message) -> StepOutput:
        return cast(StepOutput, self._output)


DONE = StepOutput(done=True)


@pytest.mark.parametrize(
    ("opening", "output", "words", "turns"),
    [
        (None, DONE, "reset() must give a tuple of Message, gave None", 0),
        ("hi", DONE, "gave 'hi'", 0),
        (({"role": "user", "content": "hi"},), DONE, "one is {'role'", 0),
        (PROMPT, None, "step() must return a StepOutput, returned None", 1),
        (PROMPT, ("next", 0.0, True), "returned ('next'", 1),
        (PROMPT, StepOutput(done=False, messages=cast(tuple[Message], "x")), "gave 'x'", 1),
        (PROMPT, StepOutput(done=True, reward_parts={"r": cast(float, "1")}), "", 1),
    ],
)
def test_what_an_environment_must_not_return(
    opening: object, output: object, words: str, turns: int
) -> None:
    rollout = asyncio.run(
        play(
            Says(opening, output),
            TASK,
            index=0,
            sampling=Sampling(temperature=1.0, max_tokens=4),
            max_model_len=50,
            generate=reply,
            renderer=Growing(),
        )
    )
    assert rollout.status is RolloutStatus.INVALID and rollout.reward is None
    assert rollout.error is not None
    assert (rollout.error.boundary, rollout.error.kind) == (Boundary.ENVIRONMENT, "TypeError")
    assert words in rollout.error.message
    assert len(rollout.turns) == turns


def test_a_good_world_with_the_same_parts_completes() -> None:
    rollout = asyncio.run(
        play(
            Says(list(PROMPT), DONE),
            TASK,
            index=0,
            sampling=Sampling(temperature=1.0, max_tokens=4),
            max_model_len=50,
            generate=reply,
            renderer=Growing(),
        )
    )
    assert rollout.status is RolloutStatus.COMPLETED and rollout.error is None
