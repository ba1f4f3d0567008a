"""The run's directory: one owner at a time, its records, and what a resumed run takes from it.

Invariants:
- the lock is held from `open` to `close`, and by the kernel's word: it ends with the process;
- a step is in metrics.jsonl at most once: `truncate_after` runs before anything is appended;
- whole files appear by rename, lines by one write each; what a checkpoint rests on is on disk
  before it is committed.
"""

import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Self

from pydantic import Field, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from configs.errors import ConfigError, Problem
from configs.load import load_any, save_config
from configs.redact import RedactingFormatter, redact
from configs.sft import AnyRecipe
from configs.versions import installed_versions
from mixing.sources.decontaminate import Contamination
from orchestrator.records.files import append_line, fsync, read_lines, to_line, write_atomically
from orchestrator.records.hashes import Change, Hashed, changes, may_have_moved, silent_changes
from orchestrator.resume.rules import FieldChange, changed_fields, forbidden_changes

log = logging.getLogger("braid.run_dir")

_LOCK, _RUN, _CONFIG, _LOG = "run.lock", "run.json", "config.yaml", "log.txt"
_METRICS, _EVAL, _SPIKINESS = "metrics.jsonl", "eval.jsonl", "spikiness.jsonl"
_ALARMS = "alarms.jsonl"
_LEDGER, _ROLLOUTS, _CHECKPOINTS = "ledger.jsonl", "rollouts", "checkpoints"
_CONTAMINATION = "contamination.json"
MIX_EDITS = "mix_edits.jsonl"
BATCHES = "replay"
_STEP_FILE = re.compile(r"^step[_-](\d+)\b")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the run."""

    attempt: int
    """From 1."""
    started: str
    """UTC, ISO 8601."""
    host: str
    pid: int
    command: list[str]
    git_commit: str | None
    versions: dict[str, str]
    hashes: dict[str, Hashed] = Field(default_factory=dict)
    """Of data, code, model and recipe; see `orchestrator.records.hashes`."""
    accepted: list[Change] = Field(default_factory=list)
    """What differs from the attempt before, and was said to be meant (`--accept-changes`)."""
    sandbox: str = ""
    """Tier that tested code runs in, and how it is set up; empty where none is tested."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What run.json holds."""

    id: str
    """Unique; the same over all attempts."""
    name: str
    seed: int
    attempt: int
    """Number of the attempt that runs now, or ran last."""
    attempts: list[Attempt]


_RECORD = TypeAdapter(RunRecord)


class RunDir:
    """An open run directory. Use `with RunDir.open(...) as directory`."""

    def __init__(self, path: Path, record: RunRecord, lock: IO[str], handler: logging.Handler):
        self.path = path
        self.record = record
        self._lock = lock
        self._handler = handler

    @classmethod
    def open(
        cls,
        path: Path,
        cfg: AnyRecipe,
        resume: str,
        *,
        hashes: Mapping[str, Hashed] = MappingProxyType({}),
        accept_changes: bool = False,
        sandbox: str = "",
    ) -> "RunDir":
        """Create or continue the run directory at `path`, lock it, and start its log.

        Args:
            resume: `auto` continues what is there, `never` wants an empty or missing directory.
            hashes: of what this attempt runs on; compared with those of the one before.
            accept_changes: go on although they differ, and note in run.json what did.
            sandbox: tier that tested code runs in, for the record.

        Raises:
            ConfigError: the directory is in use, holds a run that is not to be resumed or is not
                a run's, the recipe changed in a way that would make it another run, or data, code
                or model changed and nobody said that this is meant.
        """
        path = path.resolve()
        _check_kind(path)
        lock = _acquire(path)
        try:
            before = read_record(path)
            fields = _check_resume(path, before, cfg, resume, hashes)
            accepted = _check_hashes(before, hashes, accept_changes)
            record = _next_record(before, cfg, hashes, accepted, sandbox)
            for folder in (_ROLLOUTS, _CHECKPOINTS):
                (path / folder).mkdir(exist_ok=True)
            save_config(cfg, path / _CONFIG)
            write_atomically(path / _RUN, _RECORD.dump_json(record, indent=2).decode() + "\n")
            handler = _start_log(path / _LOG)
        except BaseException:
            lock.close()
            raise
        log.info("run %s, attempt %d, in %s", record.id, record.attempt, path)
        for field in fields:
            log.warning("resuming with a changed recipe: %s", field)
        return cls(path, record, lock, handler)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and error is not None and trace is not None:
            log.error("the run ended with %s", kind.__name__, exc_info=(kind, error, trace))
        self.close()

    @property
    def run_id(self) -> str:
        """The run's id, the same over all its attempts."""
        return self.record.id

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1."""
        return self.record.attempt

    @property
    def accepted(self) -> tuple[Change, ...]:
        """What changed under the run since its last attempt, and was accepted."""
        return tuple(self.record.attempts[-1].accepted)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / _CHECKPOINTS

    @property
    def ledger(self) -> Path:
        """File of the ledger, which knows itself what a resumed run undoes."""
        return self.path / _LEDGER

    @property
    def mix_edits(self) -> Path:
        """File of the live edits, which `braid mix` appends to."""
        return self.path / MIX_EDITS

    @property
    def calibrations(self) -> Path:
        """File of the judges' calibrations, one before each attempt."""
        return self.path / "calibrations.jsonl"

    @property
    def rollouts(self) -> Path:
        """Folder of the sampled texts."""
        return self.path / _ROLLOUTS

    def rollouts_path(self, step: int) -> Path:
        """Return the file that takes the rollouts of `step`."""
        return self.rollouts / f"step_{step}.jsonl"

    def read_rollouts(self, step: int, *, most: int) -> tuple[dict[str, JsonValue], ...]:
        """Return the first rollouts written of `step`; none where another machine holds them."""
        return tuple(islice(read_lines(self.rollouts_path(step)), most))

    def append_metrics(self, metrics: Mapping[str, float | None]) -> None:
        """Append one step's flat metrics to metrics.jsonl."""
        append_line(self.path / _METRICS, metrics)

    def append_eval(self, figures: Mapping[str, JsonValue]) -> None:
        """Append one source's figures of one evaluation to eval.jsonl."""
        append_line(self.path / _EVAL, figures)

    def append_spikiness(self, report: Mapping[str, float]) -> None:
        """Append the report of one evaluation to spikiness.jsonl."""
        append_line(self.path / _SPIKINESS, report)

    def rewrite_spikiness(self, reports: Iterable[Mapping[str, float]]) -> None:
        """Make spikiness.jsonl anew from the reports of the evaluations so far."""
        write_atomically(self.path / _SPIKINESS, "".join(to_line(r) for r in reports))

    def append_alarm(self, alarm: Mapping[str, JsonValue]) -> None:
        """Append what a monitor raised or cleared to alarms.jsonl."""
        append_line(self.path / _ALARMS, alarm)

    def read_alarms(self) -> tuple[dict[str, JsonValue], ...]:
        """Return what alarms.jsonl holds, in order."""
        return tuple(read_lines(self.path / _ALARMS))

    def read_eval(self) -> tuple[dict[str, JsonValue], ...]:
        """Return what eval.jsonl holds, in order."""
        return tuple(read_lines(self.path / _EVAL))

    def read_metrics(self) -> Iterator[dict[str, JsonValue]]:
        """Yield what metrics.jsonl holds, in order."""
        yield from read_lines(self.path / _METRICS)

    def record_contamination(self, found: Contamination) -> None:
        """Write which training prompts are asked by evaluation too."""
        write_atomically(self.path / _CONTAMINATION, json.dumps(asdict(found), indent=2) + "\n")

    def truncate_after(self, step: int) -> None:
        """Forget every record and rollout file of the steps after `step`, which will come again."""
        for name in (_METRICS, _EVAL, _ALARMS):
            _truncate_lines(self.path / name, step)
        kept = (self.path / BATCHES).glob("step_*")
        for file in (*self.rollouts.iterdir(), *kept):
            match = _STEP_FILE.match(file.name)
            if match and int(match[1]) > step:
                file.unlink() if file.is_file() else shutil.rmtree(file)

    def sync(self) -> None:
        """Force all rows so far to disk: a checkpoint is committed after them, and a resumed run
        takes from them what its sums, its patience and its guards have come to."""
        there = [self.path / n for n in (_METRICS, _EVAL, _ALARMS) if (self.path / n).is_file()]
        for path in (*there, self.path):
            fsync(path)

    def close(self) -> None:
        """Stop the log and free the lock."""
        root = logging.getLogger()
        if self._handler in root.handlers:
            root.removeHandler(self._handler)
        self._handler.close()
        self._lock.close()


def read_all_metrics(path: Path) -> Iterator[Mapping[str, JsonValue]]:
    """Yield the metrics of each step of the run directory `path`, in order."""
    yield from read_lines(path / _METRICS)


def read_last_metrics(path: Path) -> Mapping[str, JsonValue] | None:
    """Return the metrics of the last step of the run directory `path`; None before the first."""
    last = None
    for record in read_lines(path / _METRICS):
        last = record
    return last


def _truncate_lines(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = [r for r in read_lines(path) if float(str(r.get("step", 0))) <= step]
    write_atomically(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))


def _check_kind(path: Path) -> None:
    """Refuse a directory that is something else than a run's."""
    if path.exists() and not path.is_dir():
        raise ConfigError(Problem(where=str(path), what="is a file; a run needs a directory"))
    if not path.is_dir():
        return
    files = {_LOCK, _RUN, _CONFIG, _LOG, _METRICS, _EVAL, _SPIKINESS, _ALARMS, _LEDGER}
    ours = files | {_ROLLOUTS, _CHECKPOINTS}
    names = {entry.name for entry in path.iterdir()}
    if names and not names & ours:
        raise ConfigError(
            Problem(
                where=str(path),
                what=f"is not empty and no run directory; it has {', '.join(sorted(names)[:4])}",
                fix="Give another --run-dir.",
            )
        )


def _acquire(path: Path) -> IO[str]:
    """Lock the directory for this process, or say who holds it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / _LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            Problem(
                where=str(path),
                what=f"cannot be written: {error.strerror}",
                fix="Give a --run-dir that can.",
            )
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        raise ConfigError(
            Problem(
                where=str(path),
                what=f"this run directory is in use by {holder}",
                fix="Wait for it to end, stop it, or give another --run-dir.",
            )
        ) from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock


def read_record(path: Path) -> RunRecord | None:
    """Return what run.json of a run directory holds; None where there is none.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return _RECORD.validate_json((path / _RUN).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ConfigError(
            Problem(
                where=str(path / _RUN),
                what=f"is damaged: {error.errors(include_url=False)[0]['msg']}",
                fix="Restore it, or give another --run-dir.",
            )
        ) from None


def _check_resume(
    path: Path,
    before: RunRecord | None,
    cfg: AnyRecipe,
    resume: str,
    hashes: Mapping[str, Hashed],
) -> tuple[FieldChange, ...]:
    """Return what changed in the recipe since the last attempt; refuse what may not."""
    if before is None:
        return ()
    if resume != "auto":
        raise ConfigError(
            Problem(
                where=str(path),
                what=f"already holds run {before.id} (attempt {before.attempt})",
                fix="Continue it with --resume auto, or give another --run-dir.",
            )
        )
    if not (path / _CONFIG).is_file():
        return ()
    old = load_any(path / _CONFIG)
    if type(old) is not type(cfg):
        what = "holds a run of another kind of recipe"
        raise ConfigError(Problem(where=str(path), what=what, fix="Give another --run-dir."))
    moved = may_have_moved(before.attempts[-1].hashes, hashes)
    changes = changed_fields(old, cfg, moved=moved)
    if problems := forbidden_changes(changes, path):
        raise ConfigError(problems)
    return changes


def _check_hashes(
    before: RunRecord | None, hashes: Mapping[str, Hashed], accept_changes: bool
) -> list[Change]:
    """Return what changed beside the recipe since the last attempt; refuse it unless accepted."""
    if before is None or not before.attempts[-1].hashes:
        return []
    last = before.attempts[-1]
    found = changes(last.hashes, hashes)
    if found and not accept_changes:
        raise ConfigError(silent_changes(found, last.attempt))
    return found


def _next_record(
    before: RunRecord | None,
    cfg: AnyRecipe,
    hashes: Mapping[str, Hashed],
    accepted: list[Change],
    sandbox: str,
) -> RunRecord:
    now = datetime.now(UTC)
    number = before.attempt + 1 if before else 1
    attempt = Attempt(
        attempt=number,
        started=now.isoformat(timespec="seconds"),
        host=socket.gethostname(),
        pid=os.getpid(),
        command=[redact(word) for word in sys.argv],
        git_commit=_git_commit(),
        versions={"python": sys.version.split()[0], **installed_versions()},
        hashes=dict(hashes),
        accepted=accepted,
        sandbox=sandbox,
    )
    return RunRecord(
        id=before.id if before else f"{cfg.name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        name=cfg.name,
        seed=cfg.seed,
        attempt=number,
        attempts=[*(before.attempts if before else []), attempt],
    )


def _git_commit() -> str | None:
    """Return the commit of the code that runs, or None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _start_log(path: Path) -> logging.Handler:
    """Send braid's log, and warnings of everything else, to log.txt."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("braid").setLevel(logging.INFO)
    return handler
