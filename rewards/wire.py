"""Rollouts and tasks as JSON, for the pipe to a grader process: data alone, never pickled code."""

import base64
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue

from configs.schema import RewardConfig
from rollouts.types import (
    Completion,
    FinishReason,
    Message,
    Rollout,
    RolloutStatus,
    Task,
    Turn,
    VersionSpan,
)


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WireSetup(_Wire):
    """First line to a worker: each source's rewards."""

    rewards: dict[str, tuple[RewardConfig, ...]]


class WireTurn(_Wire):
    """A turn, its arrays as base64 of little-endian bytes."""

    prompt_ids: str
    token_ids: str
    logprobs: str
    finish_reason: FinishReason
    versions: tuple[tuple[int, int, int], ...]
    text: str


class WireTask(_Wire):
    """A task."""

    task_id: str
    source: str
    prompt: tuple[tuple[str, str], ...]
    answer: str | None
    metadata: dict[str, JsonValue]


class WireRequest(_Wire):
    """Grade this rollout."""

    index: int
    status: RolloutStatus
    turns: tuple[WireTurn, ...]
    task: WireTask


class WireReply(_Wire):
    """Parts by name, or what went wrong."""

    parts: dict[str, float] = {}
    error_kind: str = ""
    error: str = ""


def encode(rollout: Rollout, task: Task) -> WireRequest:
    """Return the request to grade `rollout`."""
    return WireRequest(
        index=rollout.index,
        status=rollout.status,
        turns=tuple(
            WireTurn(
                prompt_ids=_pack(t.prompt_ids.astype("<i4")),
                token_ids=_pack(t.completion.token_ids.astype("<i4")),
                logprobs=_pack(t.completion.logprobs.astype("<f4")),
                finish_reason=t.completion.finish_reason,
                versions=tuple((v.version, v.start, v.end) for v in t.completion.versions),
                text=t.text,
            )
            for t in rollout.turns
        ),
        task=WireTask(
            task_id=task.task_id,
            source=task.source,
            prompt=tuple((m.role, m.content) for m in task.prompt),
            answer=task.answer,
            metadata=dict(task.metadata),
        ),
    )


def decode(request: WireRequest) -> tuple[Rollout, Task]:
    """Return what `encode` was given."""
    wire = request.task
    task = Task(
        task_id=wire.task_id,
        source=wire.source,
        prompt=tuple(Message(role=r, content=c) for r, c in wire.prompt),
        answer=wire.answer,
        metadata=wire.metadata,
    )
    turns = tuple(_turn(t) for t in request.turns)
    return Rollout(index=request.index, turns=turns, status=request.status, reward_parts={}), task


def _turn(wire: WireTurn) -> Turn:
    completion = Completion(
        token_ids=np.frombuffer(base64.b64decode(wire.token_ids), "<i4").astype(np.int32),
        logprobs=np.frombuffer(base64.b64decode(wire.logprobs), "<f4").astype(np.float32),
        finish_reason=wire.finish_reason,
        versions=_spans(wire.versions),
    )
    prompt = np.frombuffer(base64.b64decode(wire.prompt_ids), "<i4").astype(np.int32)
    return Turn(prompt_ids=prompt, completion=completion, text=wire.text)


def _spans(spans: Sequence[tuple[int, int, int]]) -> tuple[VersionSpan, ...]:
    return tuple(VersionSpan(version=v, start=a, end=b) for v, a, b in spans)


def _pack(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
