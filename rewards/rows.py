"""Whether the rows of the sources have what their graders ask of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue

from configs.errors import Problem
from configs.graders.union import GraderConfig
from configs.schema import SourceConfig
from rewards.registry import ROW_CHECKS, children, load_row_check
from rewards.subject import item_of
from rewards.templates import missing_in_row
from rollouts.types import Task


def check_rows(
    sources: Sequence[SourceConfig], tasks: Mapping[str, Iterable[Task]]
) -> list[Problem]:
    """Return what graders whose fields are sound cannot find in the rows; each fault once.

    Args:
        tasks: rows of the sources that were opened, by source; not looked at where no grader
            asks anything of them.
    """
    problems: list[Problem] = []
    for source in sources:
        parts = [
            (f"sources.{source.name}.rewards.{r.name}.grader", r.grader)
            for r in source.rewards
            if r.grader is not None and _asks(r.grader)
        ]
        if source.gold is not None and _asks(source.gold.grader):
            parts.append((f"sources.{source.name}.gold.grader", source.gold.grader))
        if parts and source.name in tasks:
            problems.extend(_check(parts, tasks[source.name]))
    return problems


def check_item(cfg: GraderConfig, item: Mapping[str, JsonValue], where: str) -> Iterator[Problem]:
    """Yield what a grader, and those that it is made of, cannot find in one row."""
    missing = missing_in_row(cfg, item, where)
    yield from missing
    check = load_row_check(cfg.type)
    if check is not None and not missing:
        yield from check(cfg, item, where)
    for name, child in children(cfg):
        at = name if name in type(cfg).model_fields else f"graders.{name}"
        yield from check_item(child, item, f"{where}.{at}")


def _asks(cfg: GraderConfig) -> bool:
    own = bool(cfg.templates) or cfg.type in ROW_CHECKS
    return own or any(_asks(child) for _, child in children(cfg))


def _check(parts: Sequence[tuple[str, GraderConfig]], tasks: Iterable[Task]) -> list[Problem]:
    first: dict[tuple[str, str], tuple[Problem, str]] = {}
    counts: dict[tuple[str, str], int] = {}
    rows = 0
    for task in tasks:
        rows += 1
        item = item_of(task)
        for where, grader in parts:
            for problem in check_item(grader, item, where):
                key = (problem.where, problem.what)
                first.setdefault(key, (problem, task.task_id))
                counts[key] = counts.get(key, 0) + 1
    return [
        replace(problem, what=f"{problem.what} (row {row}; {counts[key]} of {rows} rows seen)")
        for key, (problem, row) in first.items()
    ]
