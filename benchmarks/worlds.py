"""A slow environment and a grader that tells nothing of half the items, for five_sources.yaml."""

import asyncio
import hashlib

from environments.environment import SingleTurn, StepOutput
from rollouts.types import Message, Rollout, Task


class SlowTurn(SingleTurn):
    """One prompt and one reply, which the world takes `seconds` to take in."""

    def __init__(self, seconds: float = 0.0):
        self._seconds = seconds

    async def step(self, reply: Message) -> StepOutput:
        """Wait; then end the episode."""
        await asyncio.sleep(self._seconds)
        return await super().step(reply)


def half_telling(rollout: Rollout, task: Task) -> float:
    """Give every answer to one half of the items 0; grade the other half.

    A graded answer gets 1 or 0 for right or wrong and a hundredth for its place in the group, so
    that no two marks are equal. Which groups are rejected is then a matter of the items alone, and
    runs whose samples differ can be compared task by task.
    """
    if hashlib.sha256(task.task_id.encode()).digest()[0] % 2:
        return 0.0
    return float(rollout.last_text.strip() == task.answer) + 0.01 * rollout.index
