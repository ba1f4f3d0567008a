"""Processes by identity: a pid alone may by now be somebody else's."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """A pid and its start time in clock ticks since boot."""

    pid: int
    started: int


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a living process, or None."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else ProcessId(pid=pid, started=int(fields[19]))


def descendants(pid: int) -> tuple[ProcessId, ...]:
    """Return the living processes below `pid`, without itself."""
    found: list[ProcessId] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found.extend(descendants(int(child)))
                identity = identify(int(child))
                if identity is not None:
                    found.append(identity)
    return tuple(found)


def family() -> tuple[ProcessId, ...]:
    """Return this process and those below it."""
    me = identify(os.getpid())
    assert me is not None
    return (me, *descendants(os.getpid()))


def kill(processes: Iterable[ProcessId]) -> int:
    """Send SIGKILL to those of `processes` that still are who they were; return how many."""
    killed = 0
    for process in processes:
        if identify(process.pid) == process:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
    return killed


def end(processes: Iterable[ProcessId], grace_s: float) -> int:
    """Wait up to `grace_s` seconds for processes to end, then kill the rest; return how many."""
    left = set(processes)
    deadline = time.monotonic() + grace_s
    while left and time.monotonic() < deadline:
        left = {p for p in left if identify(p.pid) == p}
        time.sleep(0.05)
    return kill(left)
