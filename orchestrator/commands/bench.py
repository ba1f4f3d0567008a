"""`braid grade GRADER --data ROWS` and `braid grade RECIPE --source NAME`: try a grader, or a
source's whole reward, before any GPU is booked.

Exit codes: 0 sound, 1 exploitable or right answers are not paid, 2 bad input.
"""

import importlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from configs.errors import ConfigError, Problem, first_few
from configs.evaluation import eval_settings
from configs.graders.answers import JsonFieldsGrader
from configs.graders.union import GraderConfig
from configs.load import load_recipe
from configs.schema import RewardGroupConfig, RunConfig, SourceConfig
from mixing.sources.opening import open_source
from mixing.tables.jsonl import JsonlTable
from mixing.tables.row_filter import RowFilter
from orchestrator.commands.bench_table import render_report
from orchestrator.commands.grade import read_grader
from orchestrator.commands.output import print_json
from orchestrator.interrupt import run_interruptible
from orchestrator.judge_file import models_from, models_of
from rewards.bench.hacks import PROBES
from rewards.bench.probes import Probe
from rewards.bench.report import BenchReport, Bounds, report
from rewards.bench.rows import Seen, bench_rows, task_of
from rewards.bench.trials import Scorer, Settings, Trial, try_grader
from rewards.graders import validate_rewards
from rewards.pool import GraderPool
from rewards.score import GradeFailed, Score
from rewards.standalone import Grading
from rewards.subject import Subject
from rollouts.types import Task

SOUND, UNSOUND = 0, 1
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """How to try a grader."""

    items: int = 32
    """Rows tried, drawn evenly by `seed`."""
    template: str | None = None
    """Of a right answer; without it, `reference` of the row, else its answer."""
    right: float | None = None
    """Score that a right answer must reach; None for 1, or the source's pass threshold."""
    paid: float = 0.5
    """Share of a right answer's mean score from which a wrong answer counts as paid."""
    repeats: int = 3
    workers: int = 2
    seed: int = 1
    modules: tuple[str, ...] = ()
    """Modules with probes of the user's own."""
    timeout_s: float | None = None
    """Of one grading; None for the recipe's, or ten seconds where there is none."""
    judges: Path | None = None
    """File of judges that a grader may ask; a recipe declares its own."""


def bench_grader(text: str, data: Path, options: BenchOptions) -> BenchReport:
    """Try a grader on rows of a JSONL file.

    Args:
        text: the grader's file, or the grader itself as `{...}`.

    Raises:
        ConfigError: grader, rows or probes cannot be used.
    """
    grader, probes = read_grader(text), find_probes(options.modules)
    tasks = _read(data)
    places = _drawn(len(tasks), options)
    drawn = [tasks[place] for place in places]
    seen = _seen(drawn, places, options, _passing(grader), _compared(grader))
    timeout_s = _TIMEOUT_S if options.timeout_s is None else options.timeout_s
    reward = RewardGroupConfig(workers=options.workers, timeout_s=timeout_s, retries=0)
    trials = run_interruptible(_with_grading(grader, reward, seen, probes, options))
    return _report(grader.name or grader.type, seen, trials, options, right=1.0)


def bench_source(path: Path, sets: Sequence[str], name: str, options: BenchOptions) -> BenchReport:
    """Try the whole reward of a recipe's source on its own training rows.

    Raises:
        ConfigError: recipe, source, data or probes cannot be used.
    """
    cfg = load_recipe(path, sets)
    source = _source(cfg, name)
    problems = validate_rewards([source])
    if not source.rewards:
        what = "has no rewards, so there is nothing to try"
        problems.append(Problem(where=f"sources.{name}", what=what, fix="Choose another source."))
    if problems:
        raise ConfigError(problems)
    probes = find_probes(options.modules)
    data = open_source(source)
    places = _drawn(data.size, options)
    passing = [label for part in source.rewards for label in _passing(part.definition)]
    compared = next(filter(None, (_compared(part.definition) for part in source.rewards)), None)
    drawn = [data.task(place) for place in places]
    seen = _seen(drawn, places, options, passing, compared)
    limits: dict[str, float] = {"workers": options.workers, "retries": 0}
    if options.timeout_s is not None:
        limits["timeout_s"] = options.timeout_s
    cfg = cfg.model_copy(update={"reward": cfg.reward.model_copy(update=limits)})
    trials = run_interruptible(_with_pool(cfg, source, seen, probes, options))
    threshold = eval_settings(cfg, source).pass_threshold
    return _report(f"{cfg.name}/{name}", seen, trials, options, right=threshold)


def show(found: BenchReport, *, as_json: bool) -> int:
    """Print a report; return the exit code."""
    if as_json:
        print_json(found.to_json())
    else:
        Console().print(render_report(found))
    return SOUND if found.go else UNSOUND


def find_probes(modules: Sequence[str]) -> tuple[Probe, ...]:
    """Return all probes, those that the user's modules register among them."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            what = f"importing it failed: {type(error).__name__}: {error}"
            raise ConfigError(Problem(where=f"--probes {name}", what=what)) from error
    return tuple(PROBES.values())


class _SourceScorer:
    """A source's whole reward as one grader."""

    def __init__(self, pool: GraderPool):
        self._pool = pool

    async def score(self, subject: Subject) -> Score:
        """Return the reward; GradeFailed where the rollout is invalid."""
        graded = await self._pool.grade(subject.rollout, subject.task)
        if graded.reward is None:
            error = graded.error
            raise GradeFailed(
                error.kind if error else "unknown", error.message if error else "no reward"
            )
        return Score(value=graded.reward, parts=graded.reward_parts)


async def _with_grading(
    grader: GraderConfig,
    reward: RewardGroupConfig,
    seen: Seen,
    probes: Sequence[Probe],
    options: BenchOptions,
) -> list[Trial]:
    async with (
        models_from(options.judges, grader, "grader") as models,
        Grading(
            grader, reward, judges=models.judges, reward_models=models.reward_models
        ) as grading,
    ):
        return await _try(grading, seen, probes, options)


async def _with_pool(
    cfg: RunConfig,
    source: SourceConfig,
    seen: Seen,
    probes: Sequence[Probe],
    options: BenchOptions,
) -> list[Trial]:
    graders = [part.definition for part in source.rewards]
    graders += [] if source.gold is None else [source.gold.grader]
    async with models_of(graders, cfg.judges, cfg.reward_models) as models:
        pool = GraderPool(
            cfg.reward, [source], judges=models.judges, reward_models=models.reward_models
        )
        try:
            await pool.start()
            return await _try(_SourceScorer(pool), seen, probes, options)
        finally:
            await pool.close()


async def _try(
    scorer: Scorer, seen: Seen, probes: Sequence[Probe], options: BenchOptions
) -> list[Trial]:
    log = Console(stderr=True)
    settings = Settings(repeats=options.repeats, parallel=options.workers)
    with Progress(console=log, transient=True, disable=not log.is_terminal) as progress:
        bar = progress.add_task("graded", total=None)
        return await try_grader(
            scorer,
            seen,
            probes,
            settings,
            lambda done, every: progress.update(bar, completed=done, total=every),
        )


def _report(
    name: str, seen: Seen, trials: Sequence[Trial], options: BenchOptions, *, right: float
) -> BenchReport:
    bounds = Bounds(right=right if options.right is None else options.right, paid=options.paid)
    return report(name, seen, trials, bounds)


def _seen(
    tasks: Sequence[Task],
    places: Sequence[int],
    options: BenchOptions,
    passing: Sequence[str],
    graded_by: str | None,
) -> Seen:
    return Seen.of(bench_rows(tasks, options.template, places, graded_by), passing)


def _compared(grader: GraderConfig) -> str | None:
    """Return the template of what a grader compares whole answers with, if it does."""
    return grader.reference if isinstance(grader, JsonFieldsGrader) else None


def _read(path: Path) -> list[Task]:
    """Return the rows of a JSONL file as tasks; ConfigError tells each malformed line."""
    if not path.is_file():
        raise ConfigError(Problem(where=str(path), what="there is no such file"))
    table = JsonlTable((path,), RowFilter({}, "--data"))
    tasks: list[Task] = []
    problems: list[Problem] = []
    for place, row in table.scan():
        if isinstance(row, ValueError):
            problems.append(Problem(where=table.where(place), what=str(row)))
        else:
            tasks.append(task_of(row, len(tasks)))
    if not tasks and not problems:
        problems.append(Problem(where=str(path), what="has no rows"))
    if problems:
        raise ConfigError(first_few(problems, str(path)))
    return tasks


def _drawn(size: int, options: BenchOptions) -> list[int]:
    draw = random.Random(f"{options.seed}/bench")
    return sorted(draw.sample(range(size), min(options.items, size)))


def _source(cfg: RunConfig, name: str) -> SourceConfig:
    names = [s.name for s in cfg.sources]
    if name not in names:
        raise ConfigError(
            Problem(
                where=f"--source {name}",
                what="the recipe has no such source",
                fix=f"Name one of {', '.join(names)}.",
            )
        )
    return cfg.source(name)


def _passing(grader: GraderConfig) -> list[str]:
    """Return the labels that a grader is told to pay for, wherever in it they are."""
    found: list[str] = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            labels = value.get("passing_labels")
            found.extend(str(label) for label in labels or () if isinstance(labels, list))
            for below in value.values():
                walk(below)
        elif isinstance(value, list):
            for below in value:
                walk(below)

    walk(grader.model_dump(mode="json"))
    return found
