"""The world a task is played in: what a new environment implements."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from rollouts.types import Message, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput:
    """The world's answer to one reply of the policy."""

    messages: tuple[Message, ...] = ()
    """Said to the policy before its next reply; ignored when `done`."""
    done: bool
    reward_parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Parts of the reward earned in this step; summed over steps, read by `environment` graders."""


class Environment(ABC):
    """One episode's world; made anew for every rollout, so it may keep state in itself."""

    @abstractmethod
    async def reset(self, task: Task) -> tuple[Message, ...]:
        """Return the messages that open the episode."""

    @abstractmethod
    async def step(self, reply: Message) -> StepOutput:
        """Take the policy's reply; return what the world says and whether the episode is over."""


class SingleTurn(Environment):
    """One prompt, one reply."""

    async def reset(self, task: Task) -> tuple[Message, ...]:
        """Return the task's prompt as it is."""
        return task.prompt

    async def step(self, reply: Message) -> StepOutput:
        """End the episode; the graders judge the reply."""
        return StepOutput(done=True)
