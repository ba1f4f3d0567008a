import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.checkpoints import (
    CheckpointError,
    CheckpointStore,
    FileLayer,
    find_damage,
    newest_good,
)

ROOT = Path(__file__).parents[3]


def save(store: CheckpointStore, step: int, size: int = 300) -> None:
    """Write and commit a checkpoint of two rank files whose content tells their step."""
    folder = store.begin(step)
    for rank in range(2):
        (folder / "trainer" / f"rank_{rank}.bin").write_bytes(f"{step}".encode() * size)
    (folder / "trainer" / "deep").mkdir()
    (folder / "trainer" / "deep" / "latest").write_text(str(step))
    store.write_driver(step, {"mixer": {"cursor": step}})
    store.commit(step)


def store_at(folder: Path, keep: int = 2, files: FileLayer | None = None) -> CheckpointStore:
    return CheckpointStore(folder, keep=keep, attempt=1, files=files)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_commit_and_read_back(tmp_path: Path):
    save(store_at(tmp_path), 5)
    found = newest_good(tmp_path)
    assert found is not None and found.step == 5
    assert found.read_driver() == {"step": 5, "mixer": {"cursor": 5}}
    assert (found.trainer / "rank_1.bin").read_bytes() == b"5" * 300
    assert names(tmp_path) == {"step_5", "latest"}
    assert (tmp_path / "latest").read_text() == "step_5\n"
    listed = json.loads((found.path / "MANIFEST.json").read_text())["body"]["files"]
    assert set(listed) == {
        "driver.json",
        "trainer/rank_0.bin",
        "trainer/rank_1.bin",
        "trainer/deep/latest",
    }


def test_nothing_there_is_none(tmp_path: Path):
    assert newest_good(tmp_path) is None
    assert newest_good(tmp_path / "missing") is None


def test_pruning_keeps_the_newest(tmp_path: Path):
    store = store_at(tmp_path, keep=2)
    for step in (1, 2, 10, 9):
        save(store, step)
    assert names(tmp_path) == {"step_10", "step_9", "latest"}


def test_pruning_counts_only_good_ones(tmp_path: Path):
    store = store_at(tmp_path, keep=2)
    for step in (1, 2):
        save(store, step)
    flip(tmp_path / "step_2" / "trainer" / "rank_0.bin", 7)
    save(store_at(tmp_path, keep=2), 3)
    assert {"step_1", "step_3"} <= names(tmp_path)
    save(store_at(tmp_path, keep=2), 4)
    assert names(tmp_path) == {"step_3", "step_4", "latest"}


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


FILES = ("driver.json", "trainer/rank_0.bin", "trainer/rank_1.bin", "trainer/deep/latest")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flip", "truncate", "remove", "extend"])
def test_damage_is_named_and_passed_over(
    tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
):
    store = store_at(tmp_path)
    for step in (1, 2):
        save(store, step)
    file = tmp_path / "step_2" / name
    if how == "flip":
        flip(file, len(file.read_bytes()) // 2)
    elif how == "truncate":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "extend":
        file.write_bytes(file.read_bytes() + b"x")
    else:
        file.unlink()
    with caplog.at_level(logging.WARNING):
        found = newest_good(tmp_path)
    assert found is not None and found.step == 1
    assert len(caplog.records) == 1
    assert "step_2" in caplog.text and name in caplog.text


def test_any_flipped_or_cut_byte_of_the_manifest_is_found(tmp_path: Path):
    save(store_at(tmp_path), 7)
    manifest = tmp_path / "step_7" / "MANIFEST.json"
    whole = manifest.read_bytes()
    for at in range(len(whole)):
        flip(manifest, at)
        if json_equal(manifest.read_bytes(), whole):
            pass  # a space that became another blank: nothing that is said has changed
        else:
            assert find_damage(tmp_path / "step_7") is not None, at
        manifest.write_bytes(whole[:at])
        assert find_damage(tmp_path / "step_7") is not None, at
        manifest.write_bytes(whole)
    assert find_damage(tmp_path / "step_7") is None


def json_equal(a: bytes, b: bytes) -> bool:
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


def test_a_manifest_cannot_point_outside(tmp_path: Path):
    save(store_at(tmp_path), 1)
    os.symlink("/etc/hostname", tmp_path / "step_1" / "link")
    (tmp_path / "step_1").rename(tmp_path / "moved")
    (tmp_path / "moved" / "link").unlink()
    store = store_at(tmp_path)
    folder = store.begin(2)
    os.symlink("/etc/hostname", folder / "trainer" / "link")
    store.write_driver(2, {})
    store.commit(2)
    assert "outside" in (find_damage(tmp_path / "step_2") or "")


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path: Path):
    save(store_at(tmp_path), 1)
    (tmp_path / "step_1").rename(tmp_path / "step_9")
    assert "is of step 1" in (find_damage(tmp_path / "step_9") or "")


def test_leftovers_are_cleaned_and_never_loaded(tmp_path: Path):
    store = store_at(tmp_path)
    save(store, 1)
    store.begin(2)
    (tmp_path / ".del_step_0.1").mkdir()
    found = newest_good(tmp_path)
    assert found is not None and found.step == 1
    store_at(tmp_path)
    assert names(tmp_path) == {"step_1", "latest"}


def test_abandon_and_begin_again(tmp_path: Path):
    store = store_at(tmp_path)
    (store.begin(3) / "trainer" / "half").write_text("x")
    assert list(store.begin(3).rglob("*")) == [tmp_path / ".tmp_step_3.1" / "trainer"]
    store.abandon(3)
    store.abandon(3)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("missing", ["driver", "trainer"])
def test_half_a_checkpoint_is_not_committed(tmp_path: Path, missing: str):
    store = store_at(tmp_path)
    folder = store.begin(1)
    if missing == "driver":
        (folder / "trainer" / "rank_0.bin").write_text("x")
    else:
        store.write_driver(1, {})
    with pytest.raises(CheckpointError, match=missing):
        store.commit(1)
    assert names(tmp_path) == set()


def test_a_damaged_checkpoint_of_the_same_step_is_replaced_and_a_good_one_kept(tmp_path: Path):
    save(store_at(tmp_path), 4)
    flip(tmp_path / "step_4" / "driver.json", 3)
    save(store_at(tmp_path), 4)
    assert find_damage(tmp_path / "step_4") is None
    inode = (tmp_path / "step_4").stat().st_ino
    save(store_at(tmp_path), 4)
    assert (tmp_path / "step_4").stat().st_ino == inode
    assert names(tmp_path) == {"step_4", "latest"}


class FullDisk(FileLayer):
    """A disk with a fixed number of free bytes."""

    def __init__(self, free: int):
        self.free = free

    def free_bytes(self, folder: Path) -> int:
        return self.free


def test_too_little_space_is_said_before_writing(tmp_path: Path):
    files = FullDisk(0)
    store = store_at(tmp_path, files=files)
    save(store, 1, size=10_000)  # the first has nothing to be judged by
    size = sum(f.stat().st_size for f in (tmp_path / "step_1").rglob("*") if f.is_file())
    files.free = size
    with pytest.raises(CheckpointError, match=r"step 2.*GB free"):
        store.begin(2)
    assert names(tmp_path) == {"step_1", "latest"}
    files.free = 2 * size
    save(store, 2)


class Recording(FileLayer):
    """Notes every operation, and dies (or fails) at a chosen one."""

    def __init__(self, stop_at: int = -1, error: OSError | None = None):
        self.log: list[tuple[str, str]] = []
        self._stop_at, self._error = stop_at, error

    def note(self, what: str, path: Path) -> None:
        if len(self.log) == self._stop_at:
            if self._error is not None:
                self._stop_at = -1
                raise self._error
            os.kill(os.getpid(), signal.SIGKILL)
        self.log.append((what, path.name))

    def write(self, path: Path, data: bytes) -> None:
        self.note("write", path)
        super().write(path, data)

    def fsync(self, path: Path) -> None:
        self.note("fsync", path)
        super().fsync(path)

    def rename(self, source: Path, target: Path) -> None:
        self.note("rename", target)
        super().rename(source, target)

    def replace(self, source: Path, target: Path) -> None:
        self.note("replace", target)
        super().replace(source, target)

    def remove(self, folder: Path) -> None:
        self.note("remove", folder)
        super().remove(folder)


def test_order_of_a_commit(tmp_path: Path):
    files = Recording()
    store = store_at(tmp_path, files=files)
    save(store, 1)
    assert files.log == [
        ("write", "driver.json"),
        ("fsync", "driver.json"),
        ("fsync", "latest"),
        ("fsync", "rank_0.bin"),
        ("fsync", "rank_1.bin"),
        ("write", "MANIFEST.json"),
        ("fsync", "MANIFEST.json"),
        ("fsync", "trainer"),
        ("fsync", "deep"),
        ("fsync", ".tmp_step_1.1"),
        ("rename", "step_1"),
        ("fsync", tmp_path.name),
        ("write", ".latest.tmp"),
        ("replace", "latest"),
    ]


def operations_of_the_last_of_four(folder: Path) -> tuple[int, int]:
    """Count operations before and after the fourth save (which prunes), to stop at each one."""
    files = Recording()
    store = store_at(folder, files=files)
    for step in (1, 2, 3):
        save(store, step)
    before = len(files.log)
    save(store, 4)
    return before, len(files.log)


def in_child(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a process that saves checkpoints with this very file's helpers."""
    code = (
        "import importlib.util, sys, pathlib\n"
        f"spec = importlib.util.spec_from_file_location('t', {__file__!r})\n"
        "t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t)\n" + script
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


CHILD_KILLED_AT = """
folder, stop = pathlib.Path(sys.argv[1]), int(sys.argv[2])
store = t.store_at(folder, files=t.Recording(stop_at=stop))
for step in (1, 2, 3, 4):
    t.save(store, step)
"""


def test_kill_at_every_boundary(tmp_path: Path):
    first, last = operations_of_the_last_of_four(tmp_path / "count")
    assert last - first > 14  # the commit's own, and a pruning
    for stop in range(first, last):
        folder = tmp_path / str(stop)
        child = in_child(CHILD_KILLED_AT, str(folder), str(stop))
        _, said = child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL, said
        found = newest_good(folder)
        assert found is not None and found.step in (3, 4), stop
        good = [p for p in folder.glob("step_*") if find_damage(p) is None]
        assert len(good) >= 2, stop
        resumed = store_at(folder)
        save(resumed, found.step + 1)
        newest = newest_good(folder)
        assert newest is not None and newest.step == found.step + 1
        assert names(folder) == {f"step_{found.step}", f"step_{found.step + 1}", "latest"}


CHILD_FOR_EVER = """
store = t.store_at(pathlib.Path(sys.argv[1]))
print("begun", flush=True)
found = store.newest_good()
step = found.step if found else 0
while True:
    step += 1
    t.save(store, step, size=20000)
"""


def test_kill_at_random_moments(tmp_path: Path):
    rng, reached = random.Random(7), 0
    for _ in range(12):
        child = in_child(CHILD_FOR_EVER, str(tmp_path))
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        time.sleep(rng.uniform(0.0, 0.15))
        child.kill()
        child.communicate(timeout=30)
        found = newest_good(tmp_path)
        step = found.step if found else 0
        assert step >= reached
        if found is not None:
            assert found.read_driver()["mixer"] == {"cursor": step}
        reached = step
    assert reached > 0


@pytest.mark.parametrize("at", range(14))
def test_a_failing_write_leaves_the_earlier_checkpoints(tmp_path: Path, at: int):
    save(store_at(tmp_path), 1)
    files = Recording(stop_at=at, error=OSError(28, "No space left on device"))
    store = store_at(tmp_path, files=files)
    committed = True
    try:
        save(store, 2)
    except CheckpointError as error:
        committed = "step 2" not in str(error)
    found = newest_good(tmp_path)
    assert found is not None
    if committed:
        assert found.step == 2
    assert not list(tmp_path.glob(".tmp_step_*"))
    assert find_damage(tmp_path / "step_1") is None
    save(store, 3)
    newest = newest_good(tmp_path)
    assert newest is not None and newest.step == 3


CHILD_WITHOUT_SPACE = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = t.store_at(pathlib.Path(sys.argv[1]))
folder = store.begin(2)
(folder / "trainer" / "rank_0.bin").write_bytes(b"x")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    store.write_driver(2, {"mixer": "y" * 1000})
except t.CheckpointError as error:
    print(error)
"""


def test_a_file_that_cannot_grow(tmp_path: Path):
    """The kernel itself refuses the write, as on a full disk, whoever runs the test."""
    assert resource.RLIMIT_FSIZE is not None
    save(store_at(tmp_path), 1)
    child = in_child(CHILD_WITHOUT_SPACE, str(tmp_path))
    said, errors = child.communicate(timeout=60)
    assert "checkpoint of step 2" in said, errors
    assert names(tmp_path) == {"step_1", "latest"}
    found = newest_good(tmp_path)
    assert found is not None and found.step == 1
