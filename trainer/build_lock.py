"""How DeepSpeed's native ops are built, at their first use in a process.

The ninja beside our Python builds them, whoever starts the process: another version takes each op
for changed, and builds it again.

torch takes a file's existence for the lock. A process that is killed while it builds leaves the
file, and all that come after wait for ever without a word: so do runs after a `kill -9` or two
Ctrl-C in the minute of a first start. Here the kernel frees the lock with its holder.
"""

import fcntl
import os
import sys
from pathlib import Path

from torch.utils import cpp_extension


class BuildLock:
    """Stands in for torch's FileBaton.

    Args:
        lock_file_path: torch's own; it may be left from a build that was killed, and is not read.
    """

    def __init__(self, lock_file_path: str) -> None:
        self._path = os.path.join(os.path.dirname(lock_file_path), "braid.lock")
        self._file: int | None = None

    def try_acquire(self) -> bool:
        """Wait for the lock. Always True: who gets it runs the build, which finds what was built
        or goes on where a killed one stopped.

        Raises:
            RuntimeError: the folder's file system has no locks.
        """
        self._file = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
        except OSError as error:
            os.close(self._file)
            raise RuntimeError(
                f"cannot lock {self._path} ({error.strerror}); set TORCH_EXTENSIONS_DIR to a "
                "folder on a disk of this node"
            ) from error
        return True

    def release(self) -> None:
        """Let the next one build."""
        assert self._file is not None, "try_acquire() was not called"
        os.close(self._file)


def build_under_lock() -> None:
    """Have torch build extensions under `BuildLock` and by our ninja, in this process."""
    ours = str(Path(sys.executable).parent)
    if os.environ.get("PATH", os.defpath).partition(os.pathsep)[0] != ours:
        os.environ["PATH"] = f"{ours}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    cpp_extension.FileBaton = BuildLock  # type: ignore[assignment]
