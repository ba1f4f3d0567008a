"""The folder of the tiers without mount namespaces: how full it is, and emptying it."""

import itertools
import os
import stat


def usage(path: str, most: int) -> tuple[int, int]:
    """Return bytes and entries below the folder; looks at a little more than `most` entries."""
    size = entries = 0
    waiting = [path]
    while waiting and entries <= most:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in itertools.islice(found, most + 1):
                    entries += 1
                    info = entry.stat(follow_symlinks=False)
                    size += info.st_blocks * 512
                    if stat.S_ISDIR(info.st_mode):
                        waiting.append(entry.path)
        except FileNotFoundError:
            continue
        except OSError:  # a path too long to name, or a folder shut against us
            return size, most + 1
    return size, entries


def clear(path: str) -> None:
    """Empty the folder, however deep, whatever its modes; nothing may run in it meanwhile.

    Folders are flattened: what lies in one is moved up before it is removed, so that neither the
    length of a path nor the depth of a stack is a limit. No link is followed.
    """
    if not os.listdir(path):
        return
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    names = itertools.count()
    try:
        os.fchmod(top, 0o700)
        while entries := os.listdir(top):
            for name in entries:
                _remove(top, name, names)
    finally:
        os.close(top)


def _remove(top: int, name: str, names: "itertools.count[int]") -> None:
    if not stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
        os.unlink(name, dir_fd=top)
        return
    os.chmod(name, 0o700, dir_fd=top)
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        for inner in os.listdir(folder):
            if not stat.S_ISDIR(os.lstat(inner, dir_fd=folder).st_mode):
                os.unlink(inner, dir_fd=folder)
                continue
            os.chmod(inner, 0o700, dir_fd=folder)
            _move_up(folder, inner, top, names)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def _move_up(folder: int, inner: str, top: int, names: "itertools.count[int]") -> None:
    taken = set(os.listdir(top))
    new = next(n for n in (f".{i}" for i in names) if n not in taken)
    os.rename(inner, new, src_dir_fd=folder, dst_dir_fd=top)
