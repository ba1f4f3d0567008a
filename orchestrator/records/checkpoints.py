"""Checkpoints that are whole or not there.

    begin    .tmp_step_N.A/, free space checked; ranks write trainer/ and critic/, the driver
             driver.json
    commit   fsync each file -> MANIFEST.json, fsync -> fsync folders
             -> rename to step_N -> fsync parent -> latest (a hint) -> prune
    prune    rename to .del_step_N.* -> remove

Invariants:
- a folder called step_N was complete and on disk before it got that name;
- the truth is the newest folder whose manifest verifies; `latest` is for people;
- pruning never leaves fewer than `keep` good checkpoints, and counts none that it has not hashed.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from actors.errors import ActorFailure
from orchestrator.records.files import fsync, to_bytes

log = logging.getLogger("braid.checkpoints")

_MANIFEST = "MANIFEST.json"
_DRIVER = "driver.json"
_STEP = re.compile(r"^step_(\d+)$")
_SPACE_FACTOR = 1.2
_BLOCK = 1 << 20


class CheckpointError(Exception):
    """A checkpoint could not be written; the earlier ones are untouched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRef:
    """A checkpoint whose every file was verified."""

    step: int
    path: Path

    @property
    def trainer(self) -> Path:
        """Folder that the trainer ranks wrote."""
        return self.path / "trainer"

    @property
    def critic(self) -> Path | None:
        """Folder that the critic's ranks wrote, where there were some."""
        folder = self.path / "critic"
        return folder if folder.is_dir() else None

    def read_driver(self) -> dict[str, JsonValue]:
        """Return the driver's state."""
        return json.loads((self.path / _DRIVER).read_bytes())


class FileLayer:
    """The few file operations whose order makes a commit safe; tests interrupt them."""

    def write(self, path: Path, data: bytes) -> None:
        """Create a file with `data`."""
        path.write_bytes(data)

    def fsync(self, path: Path) -> None:
        """Force a file, or a folder's entries, to disk."""
        fsync(path)

    def rename(self, source: Path, target: Path) -> None:
        """Rename within one file system."""
        source.rename(target)

    def replace(self, source: Path, target: Path) -> None:
        """Rename over an existing file."""
        source.replace(target)

    def remove(self, folder: Path) -> None:
        """Remove a folder and all in it."""
        shutil.rmtree(folder)

    def free_bytes(self, folder: Path) -> int:
        """Return the bytes that this user may still write there."""
        return shutil.disk_usage(folder).free


class CheckpointStore:
    """Writer of one run's checkpoints; the run directory's lock makes it the only one."""

    def __init__(self, folder: Path, *, keep: int, attempt: int, files: FileLayer | None = None):
        self.folder = folder
        self._keep, self._attempt = keep, attempt
        self._files = files or FileLayer()
        self._verified: set[Path] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._clean()

    async def attempt(
        self, step: int, write: Callable[[Path], Awaitable[None]], *, last: bool
    ) -> bool:
        """Return whether `write` filled the temporary folder of `step` and committed it.

        Where it could not (a full disk) the earlier ones stay as they are: the failure is logged
        and training goes on, but for the `last` one, whose failure is raised.
        """
        try:
            await write(self.begin(step))
        except CheckpointError as error:
            if last:
                raise
            log.error("%s; training goes on, the next checkpoint tries again", error)
            return False
        except ActorFailure:
            self.abandon(step)
            raise
        return True

    def begin(self, step: int) -> Path:
        """Return the temporary folder of `step`, with an empty `trainer/` in it.

        Raises:
            CheckpointError: too little space, judged by the last checkpoint's size.
        """
        last = next((p for _, p in _step_folders(self.folder)), None)
        need = int(_SPACE_FACTOR * sum(f.stat().st_size for f in _files(last))) if last else 0
        free = self._files.free_bytes(self.folder)
        if free < need:
            raise CheckpointError(
                f"checkpoint of step {step}: {self.folder} has {free / 1e9:.2f} GB free, and 1.2 "
                f"times the last checkpoint is {need / 1e9:.2f} GB"
            )
        path = self._tmp(step)
        try:
            if path.exists():
                self._files.remove(path)
            (path / "trainer").mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(f"checkpoint of step {step}: {error}") from error
        return path

    def write_driver(self, step: int, state: dict[str, JsonValue]) -> None:
        """Write the driver's state into the temporary folder of `step`.

        Raises:
            CheckpointError: it could not be written; the temporary folder is gone.
        """
        data = to_bytes({"step": step, **state})
        try:
            self._files.write(self._tmp(step) / _DRIVER, data)
        except OSError as error:
            self.abandon(step)
            raise CheckpointError(f"checkpoint of step {step}: {error}") from error

    def commit(
        self, step: int, ranks: Sequence[str] = ("trainer",), keep: Collection[int] = ()
    ) -> CheckpointRef:
        """Make the temporary folder of `step` a checkpoint, then prune older ones.

        A good checkpoint of the same step is kept and the new one dropped; a damaged one is
        replaced.

        Args:
            ranks: folders that must have something in them.
            keep: steps whose checkpoints stay, however old.

        Raises:
            CheckpointError: a file could not be written out; the temporary folder is gone.
        """
        path, final = self._tmp(step), self.folder / f"step_{step}"
        if final.exists() and self._is_good(final):
            self.abandon(step)
            return CheckpointRef(step=step, path=final)
        written = {f.relative_to(path).parts[0] for f in _files(path)}
        if missing := {_DRIVER, *ranks} - written:
            self.abandon(step)
            raise CheckpointError(
                f"checkpoint of step {step}: nothing was written to {', '.join(sorted(missing))}"
            )
        try:
            self._seal(path, step)
            if final.exists():
                self._remove(final)
            self._files.rename(path, final)
            self._files.fsync(self.folder)
        except OSError as error:
            self.abandon(step)
            raise CheckpointError(f"checkpoint of step {step}: {error}") from error
        self._verified.add(final)
        try:
            self._write_latest(final)
            self._prune(keep)
        except OSError as error:
            log.warning("checkpoint of step %d is safe, but after it: %s", step, error)
        log.info("checkpoint of step %d committed: %s", step, final)
        return CheckpointRef(step=step, path=final)

    def abandon(self, step: int) -> None:
        """Drop the temporary folder of `step`, if there is one. What cannot be removed, as ranks
        may still write there, is left to the next attempt: why it is dropped is what matters."""
        path = self._tmp(step)
        try:
            if path.exists():
                self._files.remove(path)
        except OSError as error:
            log.warning("%s stays for now: %s", path, error)

    def newest_good(self) -> CheckpointRef | None:
        """Return the newest checkpoint that verifies; name each damaged one passed over."""
        found = newest_good(self.folder)
        if found is not None:
            self._verified.add(found.path)
        return found

    def _tmp(self, step: int) -> Path:
        return self.folder / f".tmp_step_{step}.{self._attempt}"

    def _seal(self, path: Path, step: int) -> None:
        """Force every file to disk, then the manifest, then the folders."""
        entries: dict[str, JsonValue] = {}
        for file in _files(path):
            self._files.fsync(file)
            entries[file.relative_to(path).as_posix()] = {
                "size": file.stat().st_size,
                "sha256": _sha256(file),
            }
        body: dict[str, JsonValue] = {
            "format": 1,
            "step": step,
            "attempt": self._attempt,
            "files": entries,
        }
        manifest = {"body": body, "sha256": _body_hash(body)}
        self._files.write(path / _MANIFEST, json.dumps(manifest, indent=1).encode())
        self._files.fsync(path / _MANIFEST)
        for folder in (*(p for p in sorted(path.rglob("*")) if p.is_dir()), path):
            self._files.fsync(folder)

    def _write_latest(self, final: Path) -> None:
        beside = self.folder / ".latest.tmp"
        self._files.write(beside, f"{final.name}\n".encode())
        self._files.replace(beside, self.folder / "latest")

    def steps(self) -> tuple[int, ...]:
        """Return the steps that have a checkpoint, newest first, unverified."""
        return list_steps(self.folder)

    def find_good(self, step: int) -> CheckpointRef | None:
        """Return the checkpoint of `step`; None where it is damaged, which is said, or missing."""
        path = self.folder / f"step_{step}"
        damage = find_damage(path)
        if damage is None:
            return CheckpointRef(step=step, path=path)
        log.warning("checkpoint %s is damaged and passed over: %s", path, damage)
        return None

    def _prune(self, keep: Collection[int]) -> None:
        good = 0
        for step, path in _step_folders(self.folder):
            if good >= self._keep:
                if step not in keep:
                    self._remove(path)
            elif self._is_good(path):
                good += 1

    def _is_good(self, path: Path) -> bool:
        """Hash a checkpoint once in this process's life."""
        if path not in self._verified:
            damage = find_damage(path)
            if damage is not None:
                log.warning("checkpoint %s is damaged: %s", path, damage)
                return False
            self._verified.add(path)
        return True

    def _remove(self, path: Path) -> None:
        """Take a checkpoint's name away before its files, so that half of one is never seen."""
        doomed = self.folder / f".del_{path.name}.{self._attempt}"
        if doomed.exists():
            self._files.remove(doomed)
        self._files.rename(path, doomed)
        self._verified.discard(path)
        self._files.remove(doomed)

    def _clean(self) -> None:
        """Remove what an earlier attempt left half done."""
        for path in [*self.folder.glob(".tmp_step_*"), *self.folder.glob(".del_step_*")]:
            log.info("removing %s, left by an interrupted attempt", path.name)
            self._files.remove(path)


def newest_good(folder: Path) -> CheckpointRef | None:
    """Return the newest checkpoint in `folder` that verifies, or None; name the damaged ones."""
    for step, path in _step_folders(folder):
        damage = find_damage(path)
        if damage is None:
            return CheckpointRef(step=step, path=path)
        log.warning("checkpoint %s is damaged and passed over: %s", path, damage)
    return None


def find_damage(path: Path) -> str | None:
    """Return which file of a checkpoint is wrong and how, or None if all is well."""
    try:
        manifest = json.loads((path / _MANIFEST).read_bytes())
        body = manifest["body"]
        if manifest["sha256"] != _body_hash(body):
            return f"{_MANIFEST}: its own sha256 does not match"
        if path.name != f"step_{body['step']}":
            return f"{_MANIFEST}: is of step {body['step']}"
        files: dict[str, dict[str, str | int]] = body["files"]
    except FileNotFoundError:
        return f"{_MANIFEST}: missing"
    except (ValueError, KeyError, TypeError) as error:
        return f"{_MANIFEST}: unreadable ({type(error).__name__})"
    for name, entry in files.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            return f"{name}: lies outside the checkpoint"
        try:
            size = file.stat().st_size
            if size != entry["size"]:
                return f"{name}: {size} bytes, should be {entry['size']}"
            found = _sha256(file)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != entry["sha256"]:
            return f"{name}: sha256 {found[:12]}..., should be {str(entry['sha256'])[:12]}..."
    return None


def list_steps(folder: Path) -> tuple[int, ...]:
    """Return the steps that have a checkpoint folder, newest first, unverified."""
    return tuple(step for step, _ in _step_folders(folder))


def _step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Return committed folders, newest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _STEP.match(p.name)) and p.is_dir()]
    return sorted(found, reverse=True)


def _files(path: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint, its manifest left out, in order of name."""
    return (p for p in sorted(path.rglob("*")) if p.is_file() and p != path / _MANIFEST)


def _body_hash(body: JsonValue) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as f:
        while block := f.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
