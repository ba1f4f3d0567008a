"""What is graded: one rollout of one task, and how graders written as data see it."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from pydantic import JsonValue

from rollouts.types import Completion, FinishReason, Message, Rollout, RolloutStatus, Task, Turn


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A rollout with its task."""

    task: Task
    rollout: Rollout
    more: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """What `sample` has besides, such as the steps before the one that is graded."""

    @cached_property
    def item(self) -> Mapping[str, JsonValue]:
        """The row, as templates name it: its free fields, and `answer`."""
        return item_of(self.task)

    @cached_property
    def sample(self) -> Mapping[str, JsonValue]:
        """The answer, as templates name it: `output_text`, `output_json` where the text parses
        as JSON, `choices`. There are no `output_tools`: rollouts carry text alone."""
        text = self.rollout.last_text
        message: dict[str, JsonValue] = {"role": "assistant", "content": text}
        sample: dict[str, JsonValue] = {"output_text": text, "choices": [{"message": message}]}
        with contextlib.suppress(ValueError, RecursionError):
            sample["output_json"] = json.loads(text, parse_constant=_no_constant)
        return {**sample, **self.more}

    @staticmethod
    def of_text(item: Mapping[str, JsonValue], text: str) -> "Subject":
        """Return a subject made of a row and a text alone, without tokens. What was asked are the
        row's `messages`, or its `prompt`."""
        answer = item.get("answer")
        nothing = np.zeros(0, np.int32)
        done = Completion(
            token_ids=nothing,
            logprobs=np.zeros(0, np.float32),
            finish_reason=FinishReason.STOP,
            versions=(),
        )
        return Subject(
            task=Task(
                task_id="text",
                source="text",
                prompt=_prompt(item),
                answer=answer if isinstance(answer, str) else None,
                metadata=item,
            ),
            rollout=Rollout(
                index=0,
                turns=(Turn(prompt_ids=nothing, completion=done, text=text),),
                status=RolloutStatus.COMPLETED,
                reward_parts={},
            ),
        )


def _prompt(item: Mapping[str, JsonValue]) -> tuple[Message, ...]:
    messages, prompt = item.get("messages"), item.get("prompt")
    if isinstance(messages, list):
        return tuple(
            Message(role=str(m.get("role", "user")), content=str(m.get("content", "")))
            for m in messages
            if isinstance(m, dict)
        )
    return (Message(role="user", content=prompt),) if isinstance(prompt, str) else ()


def item_of(task: Task) -> dict[str, JsonValue]:
    """Return a task's row, as templates name it: its free fields, and `answer`."""
    answer: dict[str, JsonValue] = {} if task.answer is None else {"answer": task.answer}
    return {**answer, **task.metadata}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
