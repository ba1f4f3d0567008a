"""Try a grader: every probe on some rows, some of them again and again."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rewards.bench.probes import Kind, Probe
from rewards.bench.rows import BenchRow, Seen
from rewards.score import GradeFailed, Score
from rewards.subject import Subject


class Scorer(Protocol):
    """A grader with all that it needs."""

    async def score(self, subject: Subject) -> Score:
        """Return the score of one answer; GradeFailed if it cannot be judged."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One answer, and what the grader made of it each time."""

    probe: Probe
    row: BenchRow
    text: str
    scores: tuple[float, ...]
    """Of the gradings that gave one."""
    failures: tuple[str, ...]
    """Kinds of the others."""
    seconds: tuple[float, ...]
    """Of all gradings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is tried."""

    hack_rows: int = 8
    """Rows that hacks are tried on; all other probes are tried on all rows."""
    repeats: int = 3
    """Gradings of each right and each other row's answer."""
    parallel: int = 2
    """Gradings at a time."""


async def try_grader(
    scorer: Scorer,
    seen: Seen,
    probes: Sequence[Probe],
    settings: Settings,
    told: Callable[[int, int], None] = lambda done, all_: None,
) -> list[Trial]:
    """Return all trials, in the order of probes and rows.

    Args:
        told: hears how many of all trials are done.
    """
    spread = _spread(len(seen.rows), settings.hack_rows)
    asked = [
        (probe, row, text)
        for probe in probes
        for place, row in enumerate(seen.rows)
        if probe.kind is not Kind.HACK or place in spread
        for text in probe.texts(row, seen)
    ]
    room, done = asyncio.Semaphore(settings.parallel), 0

    async def one(probe: Probe, row: BenchRow, text: str) -> Trial:
        nonlocal done
        again = probe.kind in (Kind.RIGHT, Kind.LUCKY)
        scores: list[float] = []
        failures: list[str] = []
        seconds: list[float] = []
        async with room:
            for _ in range(settings.repeats if again else 1):
                began = time.perf_counter()
                try:
                    scores.append((await scorer.score(row.subject(text))).value)
                except GradeFailed as failed:
                    failures.append(failed.kind)
                seconds.append(time.perf_counter() - began)
        done += 1
        told(done, len(asked))
        return Trial(
            probe=probe,
            row=row,
            text=text,
            scores=tuple(scores),
            failures=tuple(failures),
            seconds=tuple(seconds),
        )

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(*asking)) for asking in asked]
    return [task.result() for task in tasks]


def _spread(rows: int, wanted: int) -> set[int]:
    """Return places spread evenly over the rows."""
    count = min(rows, wanted)
    return {place * rows // count for place in range(count)}
