"""Processes that lose their parent: their ancestor here adopts them, and reaps them.

bubblewrap's first process ends before its second one, which is then nobody's child, and so are the
sandboxes of a grader process that is killed. They end by themselves; where the machine's first
process reaps none, as in many containers, each would leave a zombie.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterable
from typing import NamedTuple

from rewards.sandbox.inside import kernel
from rewards.sandbox.inside.processes import Tree

_LOOK_S = 0.002
_PATIENCE_S, _KILLED_S = 10.0, 1.0
_ADOPTING = threading.Lock()


class Member(NamedTuple):
    """A process, known by when it started beside its number, which another may get."""

    pid: int
    started: int

    @property
    def there(self) -> bool:
        """Whether it lives, or is a zombie."""
        return _started(self.pid) == self.started


def below(pid: int) -> list[Member]:
    """Return all descendants of a process, parents before children."""
    found = ((one, _started(one)) for one in Tree.descendants(pid))
    return [Member(one, started) for one, started in found if started is not None]


@contextlib.contextmanager
def adopting() -> Generator[None]:
    """Be the parent of all descendants that lose theirs, as long as it lasts; one thread at a
    time."""
    if sys.platform != "linux":
        yield
        return
    with _ADOPTING:
        before = kernel.is_subreaper()
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        try:
            yield
        finally:
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, int(before))


def reap(members: Iterable[Member]) -> None:
    """Wait for processes that are about to end, and are adopted; kill those that do not."""
    left = list(members)
    for patience_s in (_PATIENCE_S, _KILLED_S):
        deadline = time.monotonic() + patience_s
        while left := [member for member in left if not _gone(member)]:
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_S)
        for member in reversed(left):
            if member.there:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(member.pid, signal.SIGKILL)


def _gone(member: Member) -> bool:
    """Return whether a process is no more; reap it if it ended and is ours."""
    if not member.there:
        return True
    with contextlib.suppress(ChildProcessError):  # its parent still lives
        return os.waitpid(member.pid, os.WNOHANG)[0] != 0
    return False


def _started(pid: int) -> int | None:
    """Return when a process started, in ticks since the machine did; None if it is no more."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except OSError:
        return None
