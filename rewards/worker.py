"""A grader process: `python -m rewards.worker REPLY_FD`.

Requests come as JSON lines on stdin, replies leave as JSON lines on a descriptor of their own, so
that a grader's prints spoil nothing. Graders run in the main thread (those that use signal.alarm
need it). The process ends when its parent does. It never imports torch, ray or vllm.
"""

import ctypes
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TextIO

from configs.schema import RewardConfig
from rewards.graders import Grader, resolve_grader
from rewards.wire import WireReply, WireRequest, WireSetup, decode

_PR_SET_PDEATHSIG = 1
Parts = Mapping[str, Sequence[tuple[str, Grader]]]


def main(reply_fd: int) -> None:
    """Serve until stdin ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    setup = WireSetup.model_validate_json(sys.stdin.readline())
    graders = {name: _graders(name, rewards) for name, rewards in setup.rewards.items()}
    with os.fdopen(reply_fd, "w", encoding="utf-8") as out:
        _reply(out, WireReply())
        for line in sys.stdin:
            _reply(out, grade(graders, WireRequest.model_validate_json(line)))


def _graders(source: str, rewards: Sequence[RewardConfig]) -> list[tuple[str, Grader]]:
    where = f"sources.{source}.rewards"
    found = [(r.name, resolve_grader(r, where=f"{where}.{r.name}")) for r in rewards]
    if any(r.use == "reasoning_gym" for r in rewards):
        import reasoning_gym  # noqa: F401 - imported now, so that the first grading is not slow
    return found


def _reply(out: TextIO, reply: WireReply) -> None:
    out.write(reply.model_dump_json() + "\n")
    out.flush()


def grade(graders: Parts, request: WireRequest) -> WireReply:
    """Run all graders of the request's source; the first failure is the reply."""
    rollout, task = decode(request)
    parts: dict[str, float] = {}
    for name, grader in graders[task.source]:
        try:
            value: object = grader(rollout, task)
        except Exception as error:  # noqa: BLE001 - a user's grader may raise anything; it is told
            return WireReply(error_kind=type(error).__name__, error=f"grader {name!r}: {error}")
        if isinstance(value, bool | int | float) and math.isfinite(value):
            parts[name] = float(value)
        else:
            what = f"grader {name!r} returned {value!r}, not a finite number"
            return WireReply(error_kind="NotANumber", error=what)
    return WireReply(parts=parts)


if __name__ == "__main__":
    main(int(sys.argv[1]))
