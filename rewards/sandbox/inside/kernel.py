"""The kernel calls that Python lacks, by ctypes; each raises OSError where it fails."""

import ctypes
import os
import resource
import signal
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
_HELD = ctypes.PyDLL(None, use_errno=True)  # calls that must not let go of the GIL: clone
_API = ctypes.pythonapi

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 1, 4, 8
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 38, 47
CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 1, 2, 4, 8, 4096
MNT_DETACH = 2
CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_AMBIENT_RAISE, _CAP_AMBIENT_CLEAR_ALL = 2, 4


def check(result: int, call: str) -> int:
    """Return the result of a C call; OSError with errno's meaning where it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def syscall(name: str, number: int, *args: object) -> int:
    """Make a raw system call."""
    return check(LIBC.syscall(ctypes.c_long(number), *args), name)


def prctl(option: int, *values: int) -> None:
    """Call prctl with up to four values."""
    given = [ctypes.c_ulong(v) for v in (*values, 0, 0, 0, 0)[:4]]
    check(LIBC.prctl(option, *given), f"prctl({option})")


def is_subreaper() -> bool:
    """Return whether this process is the parent of descendants that lost theirs."""
    flag = ctypes.c_int()
    check(LIBC.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0), "prctl(37)")
    return bool(flag.value)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system."""
    c_flags = ctypes.c_ulong(flags)
    result = LIBC.mount(
        source.encode(), target.encode(), kind.encode(), c_flags, options.encode() or None
    )
    check(result, f"mount {kind or source} on {target}")


def unmount(target: str) -> None:
    """Detach what is mounted at `target`."""
    check(LIBC.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def fork_into(namespaces: int, clone_number: int) -> int:
    """Fork as os.fork does, the child in new namespaces."""
    _API.PyOS_BeforeFork()
    pid = _HELD.syscall(
        ctypes.c_long(clone_number), ctypes.c_ulong(namespaces | signal.SIGCHLD), 0, 0, 0, 0
    )
    if pid == 0:
        _API.PyOS_AfterFork_Child()
        return 0
    _API.PyOS_AfterFork_Parent()
    return check(pid, "clone")


def set_capabilities(*kept: int) -> None:
    """Keep these capabilities, also over exec, and lose all others."""
    mask = sum(1 << number for number in kept)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("=6I", mask, mask, mask, 0, 0, 0)
    prctl(PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL)
    check(LIBC.capset(header, data), "capset")
    for number in kept:
        prctl(PR_CAP_AMBIENT, _CAP_AMBIENT_RAISE, number)


def become(uid: int, *kept: int) -> None:
    """Turn into another user for good, with these capabilities alone."""
    if kept:
        prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    set_capabilities(*kept)


def limit(kind: int, value: int) -> None:
    """Lower a resource limit to `value`, or leave it where it is lower already."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))
