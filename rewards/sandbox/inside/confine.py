"""How a forked child gives up what it must not have, before any tested code runs."""

import os
import resource
from dataclasses import dataclass

from . import kernel


@dataclass(frozen=True)
class Confinement:
    """The walls of a tier, the same for every input; made by the parent."""

    tier: str
    uid: int | None
    """User to become; empty keeps the parent's."""
    read_as_root: bool
    """Keep the capability to read where modes forbid it: the interpreter lies in a folder that is
    shut to other users. Landlock still says what can be reached."""
    work: str
    """The folder that the input runs in, empty at its start."""
    readable: list[str]
    path: list[str]
    """sys.path of the tested code."""
    preload: list[str]
    """Modules loaded once, before any input."""
    counted: int
    """Processes of the jail itself that count as the user's."""


@dataclass(frozen=True)
class Limits:
    """What one input may use; bytes and seconds."""

    cpu_s: float
    wall_s: float
    memory: int
    processes: int
    open_files: int
    file_size: int
    disk: int
    files: int


_THREADS = 64
"""Threads of an input that may not start processes; otherwise they count as processes."""


def private_mounts(given: Confinement, limits: Limits) -> None:
    """Give this mount namespace an empty folder, the only place to write, and its own /proc."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    size = f"size={limits.disk},nr_inodes={limits.files + 2},mode=0700"
    owner = f",uid={given.uid},gid={given.uid}" if given.uid is not None else ""
    kernel.mount("tmpfs", given.work, "tmpfs", flags, size + owner)
    for other in ("/tmp", "/dev/shm"):
        if not any(path.startswith(other + "/") for path in given.readable):
            kernel.mount(given.work, other, "", kernel.MS_BIND)
    try:
        sealed = flags | kernel.MS_NOEXEC | kernel.MS_RDONLY
        kernel.mount("proc", "/proc", "proc", sealed)
    except OSError:
        kernel.unmount("/proc")  # the jail's own must not be seen


def confine(given: Confinement) -> None:
    """Become the tested code's user, without capabilities or a way to get any."""
    kept = (kernel.CAP_DAC_READ_SEARCH,) if given.read_as_root else ()
    if given.uid is None:
        kernel.set_capabilities()
    else:
        kernel.become(given.uid, *kept)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    os.umask(0o077)
    os.chdir(given.work)


def lower_limits(given: Confinement, limits: Limits, shared: int) -> None:
    """Lower the process's resource limits.

    Args:
        shared: bytes of address space that the process has from being forked.
    """
    cpu = int(limits.cpu_s) + 2  # whole seconds; the zygote looks more closely
    kernel.limit(resource.RLIMIT_CPU, cpu)
    kernel.limit(resource.RLIMIT_AS, limits.memory + shared)
    kernel.limit(resource.RLIMIT_FSIZE, limits.file_size)
    kernel.limit(resource.RLIMIT_NOFILE, limits.open_files)
    kernel.limit(resource.RLIMIT_CORE, 0)
    kernel.limit(resource.RLIMIT_MEMLOCK, 1 << 16)
    kernel.limit(resource.RLIMIT_MSGQUEUE, 0)
    kernel.limit(resource.RLIMIT_SIGPENDING, 256)
    tasks = limits.processes if limits.processes > 1 else _THREADS
    others = given.counted if given.counted >= 0 else _tasks_of(os.getuid())
    kernel.limit(resource.RLIMIT_NPROC, tasks + others)


def _tasks_of(uid: int) -> int:
    """Return how many threads the user has on this machine."""
    total = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid == uid:
                    total += len(os.listdir(f"/proc/{name}/task"))
            except OSError:
                continue
    return total
