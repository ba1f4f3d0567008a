"""How unevenly the sources fare: each one's held-out pass rate against its start and its best.

Everything here is a function of eval.jsonl's rows, which a resumed run finds as its checkpoint
left them; so nothing else needs to be kept. Rows of a source that were measured otherwise than
its latest one (other samples, temperature, ...) are left out: they do not compare.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from pydantic import JsonValue

from configs.evaluation import watched_sources
from configs.schema import RunConfig

Row = Mapping[str, JsonValue]
SETTINGS = ("items", "samples", "temperature", "max_tokens", "pass_threshold")
"""What must be the same for two rows to compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One row of eval.jsonl that has a pass rate."""

    step: int
    source: str
    rate: float
    stderr: float
    """NaN where the evaluation had one item."""
    low: float
    high: float
    items: int
    gap: float | None
    """Mean training reward minus mean held-out reward."""
    settings: tuple[JsonValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a source stands."""

    start: Measured
    best: Measured
    """The first of its highest."""
    now: Measured

    @property
    def source(self) -> str:
        """The source's name."""
        return self.now.source

    @property
    def since_start(self) -> float:
        """Change of the pass rate since the start."""
        return self.now.rate - self.start.rate

    @property
    def since_best(self) -> float:
        """Change of the pass rate since its best: never above 0."""
        return self.now.rate - self.best.rate

    @property
    def fall(self) -> float:
        """How far the pass rate is below its best."""
        return self.best.rate - self.now.rate

    @property
    def stderr(self) -> float:
        """Standard error of `fall`, the two evaluations taken as independent."""
        return math.hypot(self.now.stderr, self.best.stderr)

    def has_regressed(self, bound: float | None) -> bool:
        """Whether it fell below its best by more than `bound` and the standard error."""
        return bound is not None and self.fall - self.stderr > bound


def standings(rows: Sequence[Row]) -> tuple[Standing, ...]:
    """Return where each source with a pass rate stands, the worst regression first."""
    return _standings(_measured(rows))


def _standings(rows: Sequence[Measured]) -> tuple[Standing, ...]:
    by_source: dict[str, list[Measured]] = {}
    for row in _comparable(rows):
        by_source.setdefault(row.source, []).append(row)
    found = [
        Standing(start=own[0], best=max(own, key=lambda r: r.rate), now=own[-1])
        for own in by_source.values()
    ]
    return tuple(sorted(found, key=lambda s: (s.since_best, s.since_start)))


def spikiness(
    step: int, all_standings: Sequence[Standing], bound: float | None
) -> dict[str, float]:
    """Return the report of an evaluation as flat metrics.

    `eval/spikiness` is the worst fall of a source from its own best, `eval/spread` how far the
    sources' changes since the start lie apart.
    """
    if not all_standings:
        return {"step": step}
    changes = [s.since_start for s in all_standings]
    report: dict[str, float] = {
        "step": step,
        "eval/spikiness": max(s.fall for s in all_standings),
        "eval/spread": max(changes) - min(changes),
        "eval/mean": sum(s.now.rate for s in all_standings) / len(all_standings),
        "eval/regressed": sum(s.has_regressed(bound) for s in all_standings),
    }
    for s in all_standings:
        at = f"eval/{s.source}"
        report[f"{at}/since_start"] = s.since_start
        report[f"{at}/since_best"] = s.since_best
        report[f"{at}/best"] = s.best.rate
        report[f"{at}/best_step"] = s.best.step
        report[f"{at}/regressed"] = int(s.has_regressed(bound))
    return report


def reports(rows: Sequence[Row], bound: float | None) -> Iterator[dict[str, float]]:
    """Yield the report of every evaluation that `rows` hold, in order."""
    measured = _measured(rows)
    for step in sorted({_step(row) for row in rows}):
        past = [row for row in measured if row.step <= step]
        yield spikiness(step, _standings(past), bound)


def out_of_patience(cfg: RunConfig, rows: Sequence[Row]) -> str | None:
    """Say why the run should stop, when `eval.patience` is spent.

    One evaluation of the mean is complete when each watched source has been evaluated anew, so
    that a source with a faster cadence does not use the patience up for the others.
    """
    if cfg.eval.patience == 0:
        return None
    rounds = tuple(_rounds(_measured(rows), watched_sources(cfg)))
    if not rounds:
        return None
    best = max(range(len(rounds)), key=lambda i: rounds[i][1])  # the first of equals
    since = len(rounds) - 1 - best
    if since < cfg.eval.patience:
        return None
    whose = f"{cfg.eval.watch}'s" if cfg.eval.watch else "the mean"
    step, rate = rounds[best]
    return (
        f"stopping after step {rounds[-1][0]}: {whose} held-out pass rate has not risen above its "
        f"{rate:.1%} of step {step} in {since} evaluation{'s' if since > 1 else ''} "
        f"(eval.patience={cfg.eval.patience})"
    )


def _rounds(rows: Sequence[Measured], watched: Sequence[str]) -> Iterator[tuple[int, float]]:
    """Yield (step, mean pass rate) each time all watched sources have new figures."""
    fresh: dict[str, float] = {}
    mine = sorted((r for r in _comparable(rows) if r.source in watched), key=lambda r: r.step)
    for step, measured in groupby(mine, key=lambda r: r.step):
        fresh.update((r.source, r.rate) for r in measured)
        if len(fresh) == len(watched):
            yield step, sum(fresh.values()) / len(fresh)
            fresh = {}


def _comparable(rows: Sequence[Measured]) -> Sequence[Measured]:
    """Return the rows that were measured as their source's latest one was."""
    latest = {row.source: row.settings for row in rows}
    return [row for row in rows if row.settings == latest[row.source]]


def _measured(rows: Sequence[Row]) -> Sequence[Measured]:
    """Return the rows with a pass rate."""
    return [measured for row in rows if (measured := _parse(row)) is not None]


def _parse(row: Row) -> Measured | None:
    rate = _number(row.get("pass_rate"))
    if not math.isfinite(rate):
        return None
    gap = _number(row.get("gap"))
    return Measured(
        step=_step(row),
        source=str(row["source"]),
        rate=rate,
        stderr=_number(row.get("pass_rate_stderr")),
        low=_number(row.get("pass_rate_low")),
        high=_number(row.get("pass_rate_high")),
        items=int(str(row.get("items", 0))),
        gap=gap if math.isfinite(gap) else None,
        settings=tuple(row.get(name) for name in SETTINGS),
    )


def _step(row: Row) -> int:
    return int(_number(row["step"]))


def _number(value: JsonValue) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
