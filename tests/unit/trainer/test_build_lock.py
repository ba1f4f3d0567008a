"""A native op is built by one process at a time, and after one that was killed meanwhile."""

import ctypes
import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from trainer.build_lock import BuildLock, build_under_lock

HOLD = """
import sys, time
from trainer.build_lock import BuildLock
BuildLock(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_what_a_killed_build_left_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)
    monkeypatch.setenv("PATH", os.pathsep.join(["/usr/local/bin", "/usr/bin", "/bin"]))
    (tmp_path / "lock").touch()
    source = tmp_path / "seven.cpp"
    source.write_text('extern "C" int seven() { return 7; }')
    build_under_lock()
    cpp_extension.load(
        name="seven",
        sources=[str(source)],
        build_directory=str(tmp_path),
        is_python_module=False,
    )
    assert ctypes.CDLL(str(tmp_path / "seven.so")).seven() == 7
    assert shutil.which("ninja") == str(Path(sys.executable).with_name("ninja"))


def test_the_next_one_waits_for_the_holder_or_its_death(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    waiting = BuildLock(path)
    waiter = threading.Thread(target=waiting.try_acquire, daemon=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive()
    finally:
        holder.kill()
        holder.wait(30)
    waiter.join(30)
    assert not waiter.is_alive()
    waiting.release()
    again = BuildLock(path)
    assert again.try_acquire()
    again.release()


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(RuntimeError, match=r"braid.lock \(No locks available\); set TORCH_EXT"):
        BuildLock(str(tmp_path / "lock")).try_acquire()
