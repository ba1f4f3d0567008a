"""Landlock by ctypes: what a process may open, bind, connect to and signal, from now on.

The kernel says which version it speaks, and only what that version knows is asked of it.
"""

import ctypes
import os
import stat
import struct

from . import kernel
from .syscalls import table

_CREATE_VERSION, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_ABI_1 = (1 << 13) - 1
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_MAKE_DEVICES = 1 << 6 | 1 << 9 | 1 << 11  # character device, socket, block device
_TCP = 3
_SCOPES = 3

SIGNALS_SINCE = 6
"""Version from which a process in the ruleset cannot signal one outside it."""


def abi() -> int:
    """Return the version of Landlock that the kernel speaks; 0 for none."""
    try:
        number = table()["landlock_create_ruleset"]
        return kernel.syscall("landlock", number, None, ctypes.c_size_t(0), _CREATE_VERSION)
    except OSError:
        return 0


def _handled(version: int) -> int:
    since = {2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV}
    return _ABI_1 | sum(flag for needed, flag in since.items() if version >= needed)


def ruleset(readable: list[str], writable: list[str], devices: list[str]) -> int:
    """Return a descriptor of the rules: everything that is not named is out of reach.

    Args:
        readable: folders and files to read and execute; those that do not exist are passed over.
        writable: folders to do anything in but make devices and sockets.
        devices: files to read and write.

    Raises:
        OSError: the kernel has no Landlock.
    """
    version = abi()
    handled = _handled(version)
    attributes = struct.pack("=Q", handled)
    if version >= 4:
        attributes += struct.pack("=Q", _TCP)
    if version >= SIGNALS_SINCE:
        attributes += struct.pack("=Q", _SCOPES)
    number = table()["landlock_create_ruleset"]
    size = ctypes.c_size_t(len(attributes))
    rules = kernel.syscall("landlock_create_ruleset", number, attributes, size, 0)
    for path in readable:
        _allow(rules, path, _READ & handled)
    for path in writable:
        _allow(rules, path, handled & ~_MAKE_DEVICES)
    for path in devices:
        _allow(rules, path, (_READ_FILE | _WRITE_FILE) & handled)
    return rules


def _allow(rules: int, path: str, access: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _OF_FILES
        rule = struct.pack("=Qi", access, descriptor)
        number = table()["landlock_add_rule"]
        kernel.syscall("landlock_add_rule", number, rules, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def restrict(rules: int) -> None:
    """Put the calling process and its children under the rules, for good."""
    kernel.syscall("landlock_restrict_self", table()["landlock_restrict_self"], rules, 0)
