"""A run directory, whole or not, as one JSON object for the page; and what it lacks, in words.

Nothing here trusts the files: a run may be going on, have been killed in the middle of a line, be
of another version of Braid, or have been made by hand. What cannot be read is left out and said.
"""

import math
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import yaml

from configs.errors import ConfigError, Problem
from configs.load import load_any
from configs.schema import RunConfig
from configs.sft import AnyRecipe
from mixing.ledger.events import Rejected, from_row
from mixing.ledger.ledger import rows as ledger_rows
from orchestrator.commands.ledger import read_report
from orchestrator.records.run_dir import MIX_EDITS, RunRecord, read_record
from orchestrator.records.spikiness import SETTINGS, Standing, spikiness, standings
from orchestrator.report.attempts import spans
from orchestrator.report.columns import Columns
from orchestrator.report.cost import cost
from orchestrator.report.lines import Tail
from orchestrator.report.logs import read_log
from orchestrator.report.samples import SampleReader, spread
from rewards.monitors.replay import ROLLED_BACK_TO

T = TypeVar("T")
_EVAL_ROWS, _ALARM_ROWS, _FAILED_GROUPS = 1500, 400, 50
_EVAL_KEYS = (
    *("step", "source", "n", "invalid", "pass_rate", "pass_rate_stderr"),
    *("pass_rate_low", "pass_rate_high", "reward_mean", "reward_stderr", "train_reward", "gap"),
    *("completion_tokens_mean", "truncated", *SETTINGS),
)
_LESSON_KEYS = ("loss", "accuracy", "margin", "count")
"""What is measured of held-out rows by `braid sft` and `braid reward-model`."""
_FILES = {
    "run.json": "when and where it ran, and the hashes of data, code and model",
    "config.yaml": "the recipe, and what hangs on it: shares due, cost",
    "metrics.jsonl": "every curve",
    "eval.jsonl": "held-out pass rates and spikiness",
    "ledger.jsonl": "what became of each group",
    "log.txt": "warnings, faults and repairs",
}
_LESSON_FILES = {name: _FILES[name] for name in ("run.json", "metrics.jsonl", "log.txt")}
"""What a run that learns from rows has too; it evaluates only where some rows are held out."""
_SOURCE = re.compile(r"^source/(.+?)/(?:all|trained|share|total|groups|samples|loss_tokens)\b")


class RunReader:
    """Reads a run directory again and again, what was appended alone where that can be told."""

    def __init__(self, path: Path):
        """Take a run directory.

        Raises:
            ConfigError: it is none.
        """
        if not path.is_dir() or not any((path / n).is_file() for n in ("run.json", "config.yaml")):
            what = "is no run directory: it has neither run.json nor config.yaml"
            fix = "Give the folder that `braid run` wrote: --run-dir, or runs/NAME."
            raise ConfigError(Problem(where=str(path), what=what, fix=fix))
        self.path = path.resolve()
        self._tails = {
            n: Tail(self.path / n) for n in ("metrics.jsonl", "eval.jsonl", "alarms.jsonl")
        }
        self._columns = Columns()
        self._rows: dict[str, list[dict[str, Any]]] = {"eval.jsonl": [], "alarms.jsonl": []}
        self._samples = SampleReader(self.path / "rollouts")
        self._notes: list[str] = []

    def read(self) -> dict[str, Any]:
        """Return all that the page shows."""
        self._notes = []
        record, found_cfg = self._record(), self._config()
        cfg = found_cfg if isinstance(found_cfg, RunConfig) else None
        lessons = found_cfg is not None and cfg is None
        self._follow()
        plain = self._plain_config()
        log = self._guard("log.txt", lambda: read_log(self.path / "log.txt")) or {}
        evals = [r for r in self._rows["eval.jsonl"] if {"step", "source"} <= r.keys()]
        found = self._standings(evals, cfg)
        attempts = self._attempts(record)
        data: dict[str, Any] = {
            "path": str(self.path),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "name": record.name if record else str(plain.get("name", self.path.name)),
            "id": record.id if record else None,
            "seed": record.seed if record else plain.get("seed"),
            "num_steps": _int(plain.get("num_steps")),
            "step": self._columns.steps[-1] if self._columns.steps else 0,
            "sources": self._sources(plain, evals),
            "attempts": attempts,
            "config": plain,
            "config_text": self._text("config.yaml"),
            "metrics": self._columns.to_json(),
            "eval": self._thinned(evals),
            "lessons": lessons,
            "guards": self._guards(),
            "ledger": None if lessons else self._ledger(),
            "failed_groups": self._failed_groups(),
            "alarms": self._rows["alarms.jsonl"][-_ALARM_ROWS:],
            "mix_edits": Tail(self.path / MIX_EDITS).read()[1][-100:],
            "log": log,
            "samples": self._samples.read(),
            **found,
        }
        held = [a["seconds"] for a in attempts if a["seconds"] is not None]
        if cfg is not None:
            data["cost"] = self._guard(
                "cost", lambda: cost(cfg, self._columns, sum(held) if held else None)
            )
        data["status"] = self._status(data)
        self._say_what_is_missing(data, _LESSON_FILES if lessons else _FILES)
        data["notes"] = self._notes
        return data

    def _guard(self, what: str, read: Callable[[], T]) -> T | None:
        """Read something that may be damaged in ways that nobody foresaw."""
        try:
            return read()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            self._notes.append(f"{what} cannot be read: {type(error).__name__}: {error}"[:500])
            return None

    def _record(self) -> RunRecord | None:
        if not (self.path / "run.json").is_file():
            return None
        return self._guard("run.json", lambda: read_record(self.path))

    def _config(self) -> AnyRecipe | None:
        path = self.path / "config.yaml"
        return self._guard("config.yaml", lambda: load_any(path)) if path.is_file() else None

    def _plain_config(self) -> dict[str, Any]:
        try:
            plain = yaml.safe_load(self._text("config.yaml"))
        except yaml.YAMLError:
            plain = None
        return _plain(plain) if isinstance(plain, dict) else {}

    def _text(self, name: str) -> str:
        path = self.path / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def _follow(self) -> None:
        """Take in what was appended to the files that grow."""
        for name, tail in self._tails.items():
            anew, rows = tail.read()
            if name == "metrics.jsonl":
                if anew:
                    self._columns = Columns()
                for row in rows:
                    if not self._columns.add(row):
                        tail.damaged += 1
            else:
                self._rows[name] = ([] if anew else self._rows[name]) + rows
            if tail.damaged:
                self._notes.append(f"{name}: {tail.damaged} damaged lines are left out")
            if tail.torn and not is_locked(self.path):
                self._notes.append(f"{name} ends within a line, which is left out")

    def _standings(self, evals: list[dict[str, Any]], cfg: RunConfig | None) -> dict[str, Any]:
        bound = cfg.eval.max_regression if cfg is not None else None
        found = self._guard("eval.jsonl", lambda: standings(evals)) or ()
        last = max((s.now.step for s in found), default=0)
        return {
            "standings": [_standing(s, bound) for s in found],
            "spikiness": spikiness(last, found, bound) if found else None,
            "max_regression": bound,
        }

    def _thinned(self, evals: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the evaluations; of very many the first, the last, and those spread between."""
        kept = [{k: r[k] for k in (*_EVAL_KEYS, *_LESSON_KEYS) if k in r} for r in evals]
        if len(kept) > _EVAL_ROWS:
            steps = list(dict.fromkeys(r["step"] for r in kept))
            chosen = set(spread(steps, max(2, _EVAL_ROWS * len(steps) // len(kept))))
            kept = [r for r in kept if r["step"] in chosen]
            self._notes.append(f"of {len(steps)} evaluations {len(chosen)} are drawn")
        return kept

    def _attempts(self, record: RunRecord | None) -> list[dict[str, Any]]:
        """Return the starts of the run, and how long each went as the ledger and the log tell."""
        if record is None:
            return []
        known = self._guard("ledger.jsonl", lambda: spans(self.path)) or {}
        last = {**_plain(asdict(record.attempts[-1])), "number": 0} if record.attempts else {}
        found: list[dict[str, Any]] = []
        for attempt in record.attempts:
            plain = _plain(asdict(attempt))
            span = known.get(attempt.attempt)
            ended = None if span is None else span.ended
            found.append(
                {
                    **plain,
                    "hashes": plain["hashes"] if attempt is record.attempts[-1] else {},
                    "versions": plain["versions"] if plain["versions"] != last["versions"] else {},
                    "from_step": None if span is None else span.from_step,
                    "to_step": None if span is None else span.to_step,
                    "undone": 0 if span is None else span.undone_steps,
                    "seconds": _seconds(attempt.started, ended),
                }
            )
        if found:
            found[-1]["versions"] = last["versions"]
        return found

    def _sources(self, plain: Mapping[str, Any], evals: list[dict[str, Any]]) -> list[str]:
        """Return the sources' names: of the recipe, then what files name besides."""
        listed = plain.get("sources")
        names = [str(s.get("name")) for s in listed or [] if isinstance(s, dict)]
        names += [str(row["source"]) for row in evals]
        names += [found[1] for name in self._columns.names if (found := _SOURCE.match(name))]
        return list(dict.fromkeys(names))

    def _ledger(self) -> dict[str, Any] | None:
        if not (self.path / "ledger.jsonl").is_file() or not (self.path / "config.yaml").is_file():
            return None
        found = self._guard("ledger.jsonl", lambda: asdict(read_report(self.path)))
        if found is not None:
            for key in ("lost", "trained_twice", "faults"):
                found[key] = found[key][:20]
        return found

    def _failed_groups(self) -> list[dict[str, Any]]:
        """Return the latest groups that failed, and why."""
        path = self.path / "ledger.jsonl"
        if not path.is_file():
            return []
        found: list[dict[str, Any]] = []
        for row in ledger_rows(path):
            if b'"rejected"' not in row.text[:40]:
                continue
            try:
                event = from_row(row.text)
            except ValueError:
                continue
            if isinstance(event, Rejected) and event.reason in ("failed", "given_up"):
                found.append(
                    {
                        "time": _utc(event.time),
                        "group": event.group,
                        "reason": event.reason,
                        "why": event.why[:500],
                        "undone": row.undone,
                    }
                )
        return found[-_FAILED_GROUPS:]

    def _status(self, data: Mapping[str, Any]) -> dict[str, str]:
        """Say whether the run goes on, or how it ended."""
        step, total = data["step"], data["num_steps"]
        locked, end = is_locked(self.path), (data["log"] or {}).get("end")
        if locked:
            return {"state": "running", "text": "running"}
        if end is not None and end["text"].startswith("the run ended with"):
            why = end["trace"].strip().splitlines()
            return {"state": "failed", "text": why[-1][:300] if why else end["text"]}
        if end is not None:
            return {"state": "stopped", "text": end["text"]}
        if total and step >= total:
            return {"state": "complete", "text": "complete"}
        if locked is None or _ran_elsewhere(self.path):
            return {"state": "unknown", "text": "whether it goes on cannot be told on this machine"}
        if step == 0:
            return {"state": "ended", "text": "ended, or was killed, before its first step"}
        return {"state": "ended", "text": f"ended, or was killed, after step {step} of {total}"}

    def _guards(self) -> dict[str, Any]:
        """Return what the guards did: rollbacks, and steps with refused or smaller updates."""
        steps, back = self._columns.steps, self._columns.values(ROLLED_BACK_TO)
        refused = self._columns.values("train/skipped")
        return {
            "rollbacks": [
                {"step": step, "to": int(to)}
                for step, to in zip(steps, back, strict=True)
                if math.isfinite(to)
            ],
            "refused": int((refused > 0).sum()),
            "shrunk": int((self._columns.values("guards/shrunk_for") > 0).sum()),
        }

    def _say_what_is_missing(self, data: Mapping[str, Any], files: Mapping[str, str]) -> None:
        for name, what in files.items():
            if not (self.path / name).is_file():
                self._notes.append(f"there is no {name}, so this is missing: {what}")
        if (self.path / "metrics.jsonl").is_file() and not self._columns.steps:
            self._notes.append("no step has been trained yet: there are no curves")
        if data["lessons"]:
            self._notes.append("it learns from rows: nothing is sampled, graded or mixed")
        elif not data["samples"]["rows"]:
            self._notes.append(
                "rollouts/ has no samples: logging.rollout_groups is 0, or no step was trained"
            )
        elif not any(row.get("tokens") for row in data["samples"]["rows"]):
            self._notes.append("the recorded rollouts hold no tokens: an earlier Braid wrote them")
        if self._samples.damaged:
            self._notes.append(f"rollouts/: {self._samples.damaged} damaged lines are left out")


def is_locked(path: Path) -> bool | None:
    """Return whether a process holds the run directory; None where that cannot be told.

    The kernel's table is read, because to try the lock would take it for a moment.
    """
    try:
        inode = (path / "run.lock").stat().st_ino
        table = Path("/proc/locks").read_text()
    except FileNotFoundError:
        return False if Path("/proc/locks").exists() else None
    except OSError:
        return None
    return any(
        "FLOCK" in line and f":{inode} " in line and "->" not in line for line in table.splitlines()
    )


def _ran_elsewhere(path: Path) -> bool:
    """Return whether another machine than this one held the run last, whose locks are not seen."""
    lock = path / "run.lock"
    holder = lock.read_text(errors="replace") if lock.is_file() else ""
    return " on " in holder and holder.rpartition(" on ")[2].strip() != socket.gethostname()


def _standing(s: Standing, bound: float | None) -> dict[str, Any]:
    return {
        "source": s.source,
        "start": asdict(s.start),
        "best": asdict(s.best),
        "now": asdict(s.now),
        "since_start": s.since_start,
        "since_best": s.since_best,
        "stderr": s.stderr,
        "regressed": s.has_regressed(bound),
    }


def _plain(value: Any) -> Any:
    """Return YAML's values as JSON's: dates and the like become texts."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _seconds(started: str, ended: float | None) -> float | None:
    if ended is None:
        return None
    try:
        began = datetime.fromisoformat(started).timestamp()
    except ValueError:
        return None
    return max(0.0, min(ended, time.time()) - began)
