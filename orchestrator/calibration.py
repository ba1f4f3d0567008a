"""Judges against people: the `braid judge calibrate` command, and the check before a run trains."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from configs.errors import ConfigError, Problem
from configs.graders.judged import JudgedGrader
from configs.graders.union import GraderConfig
from configs.judges import JudgeConfig, Judges
from configs.load import load_grader, load_judges
from configs.schema import RunConfig
from configs.validate_judges import check_asked
from orchestrator.commands.output import print_json
from orchestrator.interrupt import run_interruptible
from orchestrator.judge_file import local_engine
from orchestrator.records.files import append_line
from rewards.judges.calibration import (
    Calibration,
    Drift,
    JudgesAlone,
    calibrate,
    drift,
    read_anchors,
)
from rewards.judges.panel import close_judges, open_judges
from rewards.judges.request import Transport
from rewards.registry import check_grader
from rewards.score import GradeFailed

BELOW = 3
"""Exit code where a judge agrees with people less than `--min-kappa` asks."""
Engines = Callable[[str, JudgeConfig], Transport]


def command(
    grader_path: Path,
    anchors_path: Path,
    judges_path: Path | None,
    *,
    repeats: int,
    min_kappa: float | None,
    store: Path | None,
    as_json: bool,
) -> int:
    """Calibrate, keep what was found, and print it; return the exit code.

    Args:
        store: JSONL of calibrations; None takes the anchors' path with `.calibrations.jsonl`.

    Raises:
        ConfigError: the grader, its judge or the anchors are not as they should be.
        GradeFailed: the judge gave no verdict at all.
    """
    grader, judges = _read(grader_path, judges_path)
    kept = store or anchors_path.with_suffix(".calibrations.jsonl")
    began = time.monotonic()
    found = run_interruptible(_calibrate(grader, judges, anchors_path, local_engine, repeats))
    moved = drift_since(kept, found)
    _keep(kept, found, seconds=time.monotonic() - began)
    if as_json:
        shown = {**found.to_json(), "drift": None if moved is None else _plain(moved)}
        print_json(shown)
    else:
        Console().print(render(found, moved))
        Console().print(f"kept in {kept}", style="dim", markup=False, soft_wrap=True)
    return BELOW if min_kappa is not None and not reaches(found, min_kappa) else 0


async def check_calibrations(
    cfg: RunConfig, names: Iterable[str], engines: Engines, store: Path
) -> list[str]:
    """Calibrate the judges that the recipe wants calibrated, before anything is trained.

    Args:
        names: those to look at.
        store: the run's file of calibrations.

    Returns:
        A line for each, to be shown.

    Raises:
        ConfigError: one agrees with people less than it must, or gave no verdict.
    """
    lines: list[str] = []
    problems: list[Problem] = []
    for name in names:
        wanted = cfg.judges[name].calibration
        if wanted is None:
            continue
        source, _, part = wanted.part.partition("/")
        grader = next(r for r in cfg.source(source).rewards if r.name == part).definition
        judges = {name: cfg.judges[name]}
        where = f"judges.{name}.calibration"
        try:
            found = await _calibrate(grader, judges, Path(wanted.anchors), engines, 1)
        except GradeFailed as failed:
            problems.append(Problem(where=where, what=f"no anchor was judged: {failed}"))
            continue
        _keep(store, found)
        line = (
            f"judge {name} against people on {wanted.part}: weighted kappa "
            f"{_number(found.weighted_kappa)}, agreement {found.agreement:.0%} of "
            f"{found.anchors} anchors"
        )
        lines.append(line)
        if not reaches(found, wanted.min_kappa):
            what = f"{line}; min_kappa asks for {wanted.min_kappa:g}"
            fix = "Mend the grader's text or take a better judge (`braid judge calibrate`)."
            problems.append(Problem(where=f"{where}.min_kappa", what=what, fix=fix))
    if problems:
        raise ConfigError(problems)
    return lines


def reaches(found: Calibration, min_kappa: float) -> bool:
    """Whether a judge is good enough: it judged most anchors, and agrees with people."""
    judged = sum(map(sum, found.confusion))
    kappa = found.weighted_kappa
    return 2 * judged > found.anchors and kappa is not None and kappa >= min_kappa


def drift_since(store: Path, now: Calibration) -> Drift | None:
    """Compare with the newest kept calibration of another version on the same anchors."""
    try:
        lines = store.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            moved = drift(json.loads(line), now)
        except (ValueError, KeyError, TypeError) as error:
            what = f"has a line that is no calibration: {error}"
            raise ConfigError(Problem(where=str(store), what=what)) from error
        if moved is not None:
            return moved
    return None


def render(found: Calibration, moved: Drift | None) -> RenderableType:
    """Return a calibration as tables for people."""
    models = ", ".join(found.models)
    head = f"{found.judge} ({models}), version {found.version}: {found.anchors} anchors"
    rows: dict[str, str] = {
        "agreement": f"{found.agreement:.1%}",
        "Cohen's kappa": _number(found.kappa),
        "weighted kappa": _number(found.weighted_kappa),
        "Spearman": _number(found.spearman),
        "judge minus people": f"{found.bias:+.3f}",
        "the same, by answer's length (r)": _number(found.length_bias),
        "answer in front minus behind": _number(found.position_bias),
        "same level every time": "-" if found.repeatable is None else f"{found.repeatable:.1%}",
        "without a verdict": ", ".join(f"{n} {k}" for k, n in found.failed.items()) or "0",
    }
    if moved is not None:
        rows[f"since version {moved.before}"] = (
            f"weighted kappa was {_number(moved.kappa_before)}; {moved.changed:.1%} of the anchors "
            f"changed their level, scores moved by {moved.shift:+.3f}"
        )
    figures = Table(box=SIMPLE_HEAD, show_header=False, padding=(0, 1))
    figures.add_column()
    figures.add_column()
    for name, value in rows.items():
        figures.add_row(name, value)
    counts = Table(
        title="people (rows), judge (columns)",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    counts.add_column("")
    for level in found.levels:
        counts.add_column(f"{level:g}", justify="right")
    for level, row in zip(found.levels, found.confusion, strict=True):
        counts.add_row(f"{level:g}", *map(str, row))
    return Group(Text(head, style="bold"), figures, counts)


async def _calibrate(
    grader: GraderConfig, judges: Judges, anchors: Path, engines: Engines, repeats: int
) -> Calibration:
    rows = read_anchors(anchors)
    assert isinstance(grader, JudgedGrader)
    panel = open_judges({grader.model: judges[grader.model]}, engines)
    try:
        return await calibrate(grader, rows, JudgesAlone(panel), repeats=repeats)
    finally:
        await close_judges(panel)


def _read(grader_path: Path, judges_path: Path | None) -> tuple[GraderConfig, Judges]:
    """Read the grader and the judges; ConfigError unless the one is asked by the other."""
    grader = load_grader(grader_path)
    judges = {} if judges_path is None else load_judges(judges_path).judges
    where = str(grader_path)
    if not isinstance(grader, JudgedGrader):
        what = f"is a `{grader.type}`, which asks no judge"
        raise ConfigError(Problem(where=where, what=what))
    problems = [*check_grader(grader, where), *check_asked(grader, where, judges, {})]
    if problems:
        raise ConfigError(problems)
    return grader, judges


def _keep(store: Path, found: Calibration, **more: float) -> None:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    append_line(store, {"time": when, **found.to_json(), **more})


def _plain(moved: Drift) -> Mapping[str, Any]:
    return {f: getattr(moved, f) for f in ("before", "kappa_before", "changed", "shift")}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
