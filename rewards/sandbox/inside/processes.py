"""What a process and its descendants use, read from /proc."""

import os
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


class Memory(NamedTuple):
    """Bytes of one process."""

    virtual: int
    resident: int


class Tree:
    """A process with all its descendants.

    Args:
        shared: bytes that each one has from being forked, and that are not its own.
    """

    def __init__(self, pid: int, shared: int):
        self._pid = pid
        self._shared = shared

    def measure(self) -> tuple[float, int]:
        """Return seconds of CPU and bytes of memory of all that live; what ended counts with
        the parent that waited for it."""
        seconds, memory = 0.0, 0
        for pid in (self._pid, *self.descendants(self._pid)):
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            seconds += sum(int(ticks) for ticks in fields[11:15]) / _TICK
            memory += max(0, int(fields[21]) * _PAGE - self._shared)
        return seconds, memory

    @staticmethod
    def memory_of(pid: int) -> Memory:
        """Return the memory of one process."""
        with open(f"/proc/{pid}/statm", "rb") as file:
            virtual, resident = file.read().split()[:2]
        return Memory(int(virtual) * _PAGE, int(resident) * _PAGE)

    @staticmethod
    def children(pid: int) -> list[int]:
        """Return the children of a process, of all its threads."""
        found: list[int] = []
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    found += [int(child) for child in file.read().split()]
        except OSError:
            return found
        return found

    @classmethod
    def descendants(cls, pid: int) -> list[int]:
        """Return all descendants, parents before children."""
        found: list[int] = []
        waiting = cls.children(pid)
        while waiting:
            one = waiting.pop()
            found.append(one)
            waiting += cls.children(one)
        return found
