"""A deny list of system calls as a BPF program, made and loaded without any library.

Calls that honest code falls back from fail with an error; calls that no honest program makes kill
the process, so that the attempt is seen. What the list leaves out (files, processes, memory) is
bounded by the tier's other walls.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from . import kernel
from .syscalls import AUDIT_ARCH, table

_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGS = 0, 4, 16
_X32 = 0x40000000
_NAMESPACES = 0x7E020080  # every CLONE_NEW* flag
_CLONE_THREAD = 0x00010000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_SET_MODE_FILTER = 1


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DEADLY = _names("""
    ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp bpf mount umount2 pivot_root
    move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick mount_setattr setns
    chroot open_by_handle_at kexec_load kexec_file_load init_module finit_module delete_module
    reboot swapon swapoff acct iopl ioperm add_key request_key keyctl settimeofday clock_settime
""")
"""Only an attack makes these: the process dies of SIGSYS."""

DENIED = _names("""
    socket unshare userfaultfd perf_event_open io_uring_setup io_uring_enter io_uring_register
    memfd_create memfd_secret shmget shmat shmctl semget semop semtimedop semctl msgget msgsnd
    msgrcv msgctl mq_open mq_unlink mknod mknodat fanotify_init
    name_to_handle_at setsid setpgid setpriority ioprio_set personality syslog quotactl
    quotactl_fd sethostname setdomainname adjtimex clock_adjtime vhangup nfsservctl
    lookup_dcookie modify_ldt uselib ustat sysfs _sysctl migrate_pages move_pages mbind
    set_mempolicy process_madvise process_mrelease
""")
"""Answered with EPERM. Memory that no limit of a process counts (memfd, System V) is here too."""

_FOREIGN_FILES = _names("""
    chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat setxattr lsetxattr fsetxattr
    setxattrat removexattr lremovexattr fremovexattr removexattrat utime utimes futimesat
    utimensat truncate
""")
"""What Landlock, or an older version of it, does not judge; denied where the user owns files
outside the jail."""

_OTHERS = _names("""
    prlimit64 sched_setaffinity sched_setscheduler sched_setparam sched_setattr
""")
"""Their first argument is a process; 0 is the caller, and the only one allowed."""


@dataclass(frozen=True)
class Rules:
    """What the filter forbids beyond the fixed list."""

    fork: bool = True
    """Allow new processes; False allows threads alone."""
    own_files: bool = False
    """The user owns files outside the jail: deny changes of their mode, owner and times."""
    signals_to: int = 0
    """Allow signals to this process alone; 0 leaves signals to the other walls."""


def program(rules: Rules, machine: str | None = None) -> bytes:
    """Return the filter as an array of `struct sock_filter`.

    Raises:
        UnknownMachine: there is no table of system calls for it.
    """
    machine = machine or platform.machine()
    numbers = table(machine)
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_JEQ, 1, 0, AUDIT_ARCH[machine]),
        (_RET, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        code += [(_JGE, 0, 1, _X32), (_RET, 0, 0, _KILL)]
    for name in DEADLY:
        code += _when(numbers, name, [(_RET, 0, 0, _KILL)])
    denied = DENIED + (_FOREIGN_FILES if rules.own_files else ())
    if not rules.fork:
        denied = (*denied, "fork", "vfork")
    for name in denied:
        code += _when(numbers, name, [(_RET, 0, 0, _ERRNO | errno.EPERM)])
    code += _when(numbers, "clone3", [(_RET, 0, 0, _ERRNO | errno.ENOSYS)])  # flags out of sight
    code += _arguments(numbers, rules)
    code.append((_RET, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *step) for step in code)


def _arguments(numbers: dict[str, int], rules: Rules) -> list[tuple[int, int, int, int]]:
    """Return the part of the filter that looks at arguments (their low halves)."""
    deny, allow = (_RET, 0, 0, _ERRNO | errno.EPERM), (_RET, 0, 0, _ALLOW)
    first, second = (_LOAD, 0, 0, _ARGS), (_LOAD, 0, 0, _ARGS + 8)
    clone = [first, (_JSET, 0, 1, _NAMESPACES), deny]
    if not rules.fork:
        clone += [(_JSET, 1, 0, _CLONE_THREAD), deny]
    code = _when(numbers, "clone", [*clone, allow])
    ioctl = [second, (_JEQ, 1, 0, _TIOCSTI), (_JEQ, 0, 1, _TIOCLINUX), deny, allow]
    code += _when(numbers, "ioctl", ioctl)
    for name in _OTHERS:
        code += _when(numbers, name, [first, (_JEQ, 1, 0, 0), deny, allow])
    if rules.signals_to:
        own = (_JEQ, 1, 0, rules.signals_to)
        code += _when(numbers, "kill", [first, (_JEQ, 2, 0, 0), own, deny, allow])
        code += _when(numbers, "tgkill", [first, own, deny, allow])
        for name in ("tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal"):
            code += _when(numbers, name, [deny])
    return code


def _when(
    numbers: dict[str, int], name: str, then: Sequence[tuple[int, int, int, int]]
) -> list[tuple[int, int, int, int]]:
    """Return `then`, which must end in a return, behind a test for the call; none if unknown."""
    if name not in numbers:
        return []
    return [(_JEQ, 0, len(then), numbers[name]), *then]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def load(filter_: bytes) -> None:
    """Put the calling process and its children under the filter, for good."""
    buffer = ctypes.create_string_buffer(filter_, len(filter_))
    given = _Program(len(filter_) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    kernel.syscall("seccomp", table()["seccomp"], _SET_MODE_FILTER, 0, ctypes.byref(given))
