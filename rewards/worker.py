"""The process in which graders run: `python -m rewards.worker FD`, started by `rewards.process`.

FD is one end of a socket pair. It reads the rewards of every source, loads all graders, answers
that it is ready, then grades one rollout a frame. It grades in its main thread, imports neither
torch nor ray nor vllm, and dies with its parent, be it busy (by the kernel) or idle (closed FD).
"""

import ctypes
import importlib
import math
import numbers
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import cast

import numpy as np
from pydantic import JsonValue

from configs.schema import RewardConfig
from rewards import wire
from rewards.graders import PRELOAD, Grader, resolve_grader
from rollouts.types import Rollout, Task

_PR_SET_PDEATHSIG = 1
_MESSAGE_CHARS = 500


def main() -> None:
    """Serve until the parent closes the connection."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    _die_with_parent(int(sys.argv[2]))
    try:
        graders = _load(cast("dict[str, list[JsonValue]]", wire.receive(sock)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the pool must hear of it
        wire.send(sock, {"ready": False, "message": f"{type(error).__name__}: {error}"})
        return
    wire.send(sock, {"ready": True, "message": ""})
    while True:
        try:
            request = cast("dict[str, JsonValue]", wire.receive(sock))
        except wire.WorkerLost:
            return
        task = wire.unpack_task(request["task"])
        rollout = wire.unpack_rollout(request["rollout"])
        parts = {name: _grade(fn, rollout, task) for name, fn in graders[task.source].items()}
        wire.send(sock, cast(JsonValue, parts))


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent died before this worker started")


def _load(sources: Mapping[str, list[JsonValue]]) -> dict[str, dict[str, Grader]]:
    graders: dict[str, dict[str, Grader]] = {}
    for source, rewards in sources.items():
        parts = [RewardConfig.model_validate(reward) for reward in rewards]
        for reward in parts:
            if reward.use in PRELOAD:
                importlib.import_module(PRELOAD[reward.use])
        graders[source] = {
            r.name: resolve_grader(r, where=f"sources.{source}.rewards.{r.name}") for r in parts
        }
    return graders


def _grade(grader: Grader, rollout: Rollout, task: Task) -> wire.PartResult:
    try:
        value = grader(rollout, task)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - becomes data: an invalid rollout
        message = str(error)[:_MESSAGE_CHARS]
        return {"value": None, "kind": type(error).__name__, "message": message}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    number = _finite(value)
    if number is None:
        shown = f"returned {value!r:.100}, must be a finite number"
        return {"value": None, "kind": "NotANumber", "message": shown}
    return {"value": number, "kind": "", "message": ""}


def _finite(value: object) -> float | None:
    if issubclass(type(value), np.bool_):  # what comparing arrays gives; no numbers.Real
        return 1.0 if value else 0.0
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond every float
        return None
    return number if math.isfinite(number) else None


if __name__ == "__main__":
    main()
