"""The process in which graders run: `python -m rewards.worker FD`, started by `rewards.process`.

FD is one end of a socket pair. It reads the graders by path, loads them all, answers that it is
ready, then grades one rollout a frame. It grades in its main thread, imports neither
torch nor ray nor vllm, and dies with its parent, be it busy (by the kernel) or idle (closed FD).
"""

import ctypes
import math
import numbers
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
from pydantic import JsonValue

from configs.graders.union import GRADER
from configs.sandbox import SandboxConfig
from rewards import wire
from rewards.registry import load_prepare
from rewards.sandbox.shared import configure
from rewards.score import FailureKind, GradeFailed, Score
from rewards.subject import Subject

_PR_SET_PDEATHSIG = 1
_MESSAGE_CHARS = 500


def main() -> None:
    """Serve until the parent closes the connection."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.set_inheritable(False)
    _die_with_parent(int(sys.argv[2]))
    try:
        graders = _load(cast("dict[str, dict[str, JsonValue]]", wire.receive(sock)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the pool must hear of it
        wire.send(sock, {"ready": False, "message": f"{type(error).__name__}: {error}"})
        return
    wire.send(sock, {"ready": True, "message": ""})
    while True:
        try:
            request = cast("dict[str, JsonValue]", wire.receive(sock))
        except wire.WorkerLost:
            return
        subject = wire.unpack_subject(request["subject"])
        wire.send(sock, wire.pack_result(_grade(graders[str(request["path"])], subject)))


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent died before this worker started")


def _load(hello: Mapping[str, Mapping[str, JsonValue]]) -> dict[str, Callable[[Subject], object]]:
    configure(SandboxConfig.model_validate(hello["sandbox"]))
    loaded: dict[str, Callable[[Subject], object]] = {}
    for path, data in hello["graders"].items():
        cfg = GRADER.validate_python(data)
        loaded[path] = load_prepare(cfg.type)(cfg, path)
    return loaded


def _grade(grader: Callable[[Subject], object], subject: Subject) -> Score | GradeFailed:
    try:
        return _checked(grader(subject))
    except GradeFailed as failed:
        return GradeFailed(failed.kind, failed.message[:_MESSAGE_CHARS])
    except (Exception, SystemExit) as error:  # noqa: BLE001 - becomes data: an invalid rollout
        return GradeFailed(type(error).__name__, str(error)[:_MESSAGE_CHARS])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _checked(value: object) -> Score:
    """Return what a grader returned as a score of finite numbers."""
    if not isinstance(value, Score):
        return Score(value=_number(value, "returned"))
    parts = {name: _number(part, f"scored part {name!r}") for name, part in value.parts.items()}
    for span in value.spans:
        _number(span.score, f"scored characters {span.start} to {span.end}")
    return replace(value, value=_number(value.value, "scored"), parts=parts)


def _number(value: object, verb: str) -> float:
    number = _finite(value)
    if number is None:
        shown = f"{verb} {value!r:.100}, must be a finite number"
        raise GradeFailed(FailureKind.NOT_A_NUMBER, shown)
    return number


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
