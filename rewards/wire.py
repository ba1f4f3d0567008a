"""What travels between the pool and its workers: frames of JSON, a length before each.

Arrays travel as base64 of their bytes, so a grader sees the very rollout that was sampled.
"""

import base64
import json
import socket
import struct
import time
from collections.abc import Mapping
from typing import TypeVar, cast

import numpy as np
from pydantic import JsonValue, TypeAdapter, ValidationError

from rewards.score import GradeFailed, Score
from rewards.subject import Subject
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

_LENGTH = struct.Struct("!Q")
MAX_FRAME = 1 << 30
"""Bytes; a longer frame is a protocol error, not a message."""

N = TypeVar("N", bound=np.generic)


_SCORE: TypeAdapter[Score] = TypeAdapter(Score)


class WorkerLost(Exception):
    """The other end of the connection closed."""


def send(sock: socket.socket, message: JsonValue, deadline: float | None = None) -> None:
    """Send one frame. TimeoutError at `deadline` (monotonic seconds), WorkerLost on a dead peer."""
    body = json.dumps(message).encode()
    _arm(sock, deadline)
    try:
        sock.sendall(_LENGTH.pack(len(body)) + body)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise WorkerLost(str(error)) from error


def receive(sock: socket.socket, deadline: float | None = None) -> JsonValue:
    """Receive one frame. TimeoutError at `deadline`, WorkerLost when the peer closed."""
    (length,) = _LENGTH.unpack(_read(sock, _LENGTH.size, deadline))
    if length > MAX_FRAME:
        raise WorkerLost(f"a frame of {length} bytes is announced")
    body = _read(sock, length, deadline)
    try:
        return cast(JsonValue, json.loads(body))
    except ValueError as error:
        raise WorkerLost(f"a frame is not JSON: {error}") from error


def _read(sock: socket.socket, size: int, deadline: float | None) -> bytes:
    chunks: list[bytes] = []
    while size > 0:
        _arm(sock, deadline)
        try:
            chunk = sock.recv(min(size, 1 << 20))
        except ConnectionResetError as error:
            raise WorkerLost(str(error)) from error
        if not chunk:
            raise WorkerLost("the connection was closed")
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)


def _arm(sock: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        sock.settimeout(None)
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)


def pack_subject(subject: Subject) -> JsonValue:
    """Return what is graded as JSON."""
    return {
        "task": pack_task(subject.task),
        "rollout": pack_rollout(subject.rollout),
        "more": dict(subject.more),
    }


def unpack_subject(data: JsonValue) -> Subject:
    """Return the subject that `pack_subject` wrote."""
    fields = cast("dict[str, JsonValue]", data)
    return Subject(
        task=unpack_task(fields["task"]),
        rollout=unpack_rollout(fields["rollout"]),
        more=cast("dict[str, JsonValue]", fields["more"]),
    )


def pack_result(result: Score | GradeFailed) -> JsonValue:
    """Return a score, or why there is none, as JSON. A score of what JSON has not is none."""
    if isinstance(result, Score):
        try:
            return {"score": _SCORE.dump_python(result, mode="json", warnings=False)}
        except ValueError as error:
            result = GradeFailed(type(error).__name__, f"the score cannot be sent: {error}"[:500])
    return {"failed": {"kind": result.kind, "message": result.message}}


def unpack_result(data: JsonValue) -> Score:
    """Return the score that `pack_result` wrote, or raise its GradeFailed."""
    fields = cast("dict[str, JsonValue]", data)
    if "failed" in fields:
        failed = cast("dict[str, str]", fields["failed"])
        raise GradeFailed(failed["kind"], failed["message"])
    try:
        return _SCORE.validate_python(fields["score"])
    except ValidationError as error:
        why = f"the score is none: {' '.join(str(error).split())[:450]}"
        raise GradeFailed(type(error).__name__, why) from None


def pack_task(task: Task) -> JsonValue:
    """Return the task as JSON."""
    return {
        "task_id": task.task_id,
        "source": task.source,
        "prompt": [[m.role, m.content] for m in task.prompt],
        "answer": task.answer,
        "metadata": dict(task.metadata),
    }


def unpack_task(data: JsonValue) -> Task:
    """Return the task that `pack_task` wrote."""
    fields = cast("dict[str, JsonValue]", data)
    prompt = cast("list[list[str]]", fields["prompt"])
    return Task(
        task_id=str(fields["task_id"]),
        source=str(fields["source"]),
        prompt=tuple(Message(role=role, content=content) for role, content in prompt),
        answer=cast("str | None", fields["answer"]),
        metadata=cast("dict[str, JsonValue]", fields["metadata"]),
    )


def pack_rollout(rollout: Rollout) -> JsonValue:
    """Return an ungraded rollout as JSON."""
    return {
        "index": rollout.index,
        "status": rollout.status.value,
        "reward_parts": dict(rollout.reward_parts),
        "turns": [_pack_turn(turn) for turn in rollout.turns],
    }


def unpack_rollout(data: JsonValue) -> Rollout:
    """Return the rollout that `pack_rollout` wrote."""
    fields = cast("dict[str, JsonValue]", data)
    return Rollout(
        index=cast(int, fields["index"]),
        turns=tuple(_unpack_turn(t) for t in cast("list[dict[str, JsonValue]]", fields["turns"])),
        status=RolloutStatus(cast(str, fields["status"])),
        reward_parts=cast("dict[str, float]", fields["reward_parts"]),
    )


def _pack_turn(turn: Turn) -> JsonValue:
    done = turn.completion
    return {
        "prompt_ids": _pack(turn.prompt_ids, np.int32),
        "token_ids": _pack(done.token_ids, np.int32),
        "logprobs": _pack(done.logprobs, np.float32),
        "finish_reason": done.finish_reason.value,
        "versions": [[s.version, s.start, s.end] for s in done.versions],
        "text": turn.text,
        "token_ends": None if turn.token_ends is None else _pack(turn.token_ends, np.int32),
    }


def _unpack_turn(data: Mapping[str, JsonValue]) -> Turn:
    spans = cast("list[list[int]]", data["versions"])
    return Turn(
        prompt_ids=_unpack(data["prompt_ids"], np.int32),
        completion=Completion(
            token_ids=_unpack(data["token_ids"], np.int32),
            logprobs=_unpack(data["logprobs"], np.float32),
            finish_reason=FinishReason(cast(str, data["finish_reason"])),
            versions=tuple(VersionSpan(version=v, start=s, end=e) for v, s, e in spans),
        ),
        text=str(data["text"]),
        token_ends=None if data["token_ends"] is None else _unpack(data["token_ends"], np.int32),
    )


def _pack(array: np.ndarray[tuple[int, ...], np.dtype[N]], dtype: type[N]) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype).tobytes()).decode()


def _unpack(data: JsonValue, dtype: type[N]) -> np.ndarray[tuple[int, ...], np.dtype[N]]:
    return np.frombuffer(base64.b64decode(cast(str, data)), dtype)
