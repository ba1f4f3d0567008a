import json
import logging
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from orchestrator.records.checkpoints import (
    CheckpointError,
    CheckpointStore,
    FileLayer,
    find_damage,
    newest_good,
)


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
        manifest.write_bytes(whole)
    for at in range(0, len(whole), 37):
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


def in_child(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a forked process, which may be killed at any point."""
    child = get_context("fork").Process(target=target, args=arguments)
    child.start()
    return child


def save_four(folder: Path, stop_at: int) -> None:
    store = store_at(folder, files=Recording(stop_at=stop_at))
    for step in (1, 2, 3, 4):
        save(store, step)


def test_kill_at_every_boundary(tmp_path: Path):
    first, last = operations_of_the_last_of_four(tmp_path / "count")
    assert last - first > 14  # the commit's own, and a pruning
    for stop in range(first, last):
        folder = tmp_path / str(stop)
        child = in_child(save_four, folder, stop)
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        found = newest_good(folder)
        assert found is not None and found.step in (3, 4), stop
        good = [p for p in folder.glob("step_*") if find_damage(p) is None]
        assert len(good) >= 2, stop
        resumed = store_at(folder)
        save(resumed, found.step + 1)
        newest = newest_good(folder)
        assert newest is not None and newest.step == found.step + 1
        assert names(folder) == {f"step_{found.step}", f"step_{found.step + 1}", "latest"}


def save_for_ever(folder: Path, begun: Connection) -> None:
    store = store_at(folder)
    found = store.newest_good()
    step = found.step if found else 0
    begun.send(True)
    while True:
        step += 1
        save(store, step, size=20_000)


def test_kill_at_random_moments(tmp_path: Path):
    rng, reached = random.Random(7), 0
    for _ in range(25):
        begun, child_end = get_context("fork").Pipe(duplex=False)
        child = in_child(save_for_ever, tmp_path, child_end)
        assert begun.poll(30) and begun.recv()
        time.sleep(rng.uniform(0.0, 0.1))
        child.kill()
        child.join(30)
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


class Clinging(Recording):
    """A disk that is full, and a folder into which some rank writes while it is removed."""

    def remove(self, folder: Path) -> None:
        raise OSError(39, "Directory not empty", str(folder))


def test_what_cannot_be_removed_hides_no_failure(tmp_path: Path):
    save(store_at(tmp_path), 1)
    store = store_at(tmp_path, files=Clinging(stop_at=1, error=OSError(28, "No space left")))
    with pytest.raises(CheckpointError, match=r"step 2: .*No space left"):
        save(store, 2)
    store.abandon(2)
    assert (tmp_path / ".tmp_step_2.1").is_dir()
    save(store_at(tmp_path), 2)
    assert names(tmp_path) == {"step_1", "step_2", "latest"}


def write_too_much(folder: Path, answer: Connection) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = store_at(folder)
    (store.begin(2) / "trainer" / "rank_0.bin").write_bytes(b"x")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        store.write_driver(2, {"mixer": "y" * 1000})
        answer.send("written")
    except CheckpointError as error:
        answer.send(str(error))


def test_a_file_that_cannot_grow(tmp_path: Path):
    """The kernel itself refuses the write, as on a full disk, whoever runs the test."""
    save(store_at(tmp_path), 1)
    answer, child_end = get_context("fork").Pipe(duplex=False)
    child = in_child(write_too_much, tmp_path, child_end)
    assert answer.poll(30)
    assert "checkpoint of step 2" in answer.recv()
    child.join(30)
    assert names(tmp_path) == {"step_1", "latest"}
    found = newest_good(tmp_path)
    assert found is not None and found.step == 1
