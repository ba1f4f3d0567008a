"""The starting policy, sampled on training items: what each source would teach, before training.

Starts the engines and the graders of the recipe, no trainer and no reference, and writes nothing.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from configs.errors import ConfigError, Problem
from configs.schema import RunConfig
from mixing.sources.source import Source
from orchestrator.cluster import SamplingCluster
from orchestrator.commands.baseline_stats import ItemSamples, SourceBaseline, describe
from orchestrator.commands.baseline_view import render_baseline
from orchestrator.commands.output import print_json
from orchestrator.loop import Stopped, StopRequest
from orchestrator.run import check
from orchestrator.sampling import item_requests, on_sampling_cluster, sample_all
from rollouts.types import GroupSummary, RolloutStatus

NO_GO = 3
"""Exit code where some source is no-go."""
_ANSWERS_SEEN = 500
"""Training items of a source whose reference answers are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """What `braid baseline` found."""

    name: str
    model: str
    go: bool
    """Whether every source is."""
    items: int
    """Asked for, of each source."""
    samples: int
    """Of each item."""
    seconds: float
    """Of sampling and grading, actors' start left out."""
    sources: tuple[SourceBaseline, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return asdict(self)


def execute(cfg: RunConfig, *, items: int, samples: int, as_json: bool) -> int:
    """Sample, and print what was found; return the exit code.

    Args:
        items: training items of each source; all of a source that has fewer.
        samples: of each item.

    Raises:
        ConfigError: bad input; nothing was started, or everything is freed again.
        RunError: an actor failed; everything is freed again.
    """
    sources, contamination = check(cfg)
    graded = tuple(s for s in cfg.sources if s.rewards)
    if not graded:
        what = "have no rewards, so there is nothing to measure them by"
        raise ConfigError(Problem(where="sources", what=what, fix="Give one of them rewards."))
    cfg = cfg.model_copy(update={"sources": graded})
    log, stop = Console(stderr=True), StopRequest()
    for problem in contamination.problems(cfg.decontaminate):
        log.print(f"warning: {problem}", style="yellow", markup=False, soft_wrap=True)
    try:
        found = asyncio.run(_measure(cfg, sources, items, samples, stop, log))
    except (Stopped, asyncio.CancelledError):
        log.print(f"stopped by {stop.name}")
        return 128 + stop.signal_number
    if as_json:
        print_json(found.to_json())
    else:
        out = Console()
        out.print(render_baseline(found.sources, bars="█" if out.is_terminal else "#"))
    return 0 if found.go else NO_GO


async def _measure(
    cfg: RunConfig,
    sources: Mapping[str, Source],
    items: int,
    samples: int,
    stop: StopRequest,
    log: Console,
) -> Baseline:
    requests = [
        item_requests(cfg, s, sources[s.name], items=items, samples=samples, purpose="baseline")
        for s in cfg.sources
    ]

    async def work(cluster: SamplingCluster) -> tuple[list[ItemSamples], float]:
        async def take(summary: GroupSummary) -> ItemSamples:
            return _item(summary)

        began = time.monotonic()
        found = await sample_all(cfg, cluster, [r for own in requests for r in own], log, take)
        return found, time.monotonic() - began

    found, seconds = await on_sampling_cluster(cfg, stop, log, work)
    graded = iter(found)
    groups = [[next(graded) for _ in own] for own in requests]
    figures = tuple(
        describe(cfg, s, own, _answers(sources[s.name]))
        for s, own in zip(cfg.sources, groups, strict=True)
    )
    return Baseline(
        name=cfg.name,
        model=cfg.model.path,
        go=all(f.go for f in figures),
        items=items,
        samples=samples,
        seconds=round(seconds, 3),
        sources=figures,
    )


def _item(summary: GroupSummary) -> ItemSamples:
    rollouts = summary.rollouts
    errors = [f"{r.error.boundary}: {r.error.message}" for r in rollouts if r.error is not None]
    return ItemSamples(
        task_id=summary.task_id,
        rewards=summary.rewards,
        truncated=sum(r.status is RolloutStatus.TRUNCATED for r in rollouts),
        invalid=sum(r.status is RolloutStatus.INVALID for r in rollouts),
        tokens=tuple(r.num_completion_tokens for r in rollouts),
        error=errors[0] if errors else None,
    )


def _answers(data: Source) -> list[str | None]:
    """Return the reference answers of items spread over the source."""
    seen = min(data.size, _ANSWERS_SEEN)
    return [data.task(k * data.size // seen).answer for k in range(seen)]
