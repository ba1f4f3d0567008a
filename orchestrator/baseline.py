"""The starting policy, sampled on training items: what each source would teach, before training.

Starts the engines and the graders of the recipe, no trainer and no reference, and writes nothing.
Signals, errors and the end free every actor, as in `orchestrator.run`.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ray
from rich.console import Console
from rich.progress import Progress

from configs.errors import ConfigError, Problem
from configs.schema import RunConfig, SourceConfig
from mixing.sources import Source
from orchestrator.baseline_stats import ItemSamples, SourceBaseline, describe
from orchestrator.baseline_view import render_baseline
from orchestrator.clock import PhaseClock
from orchestrator.cluster import SamplingCluster, start_ray
from orchestrator.loop import Stopped, StopRequest
from orchestrator.producer import sample_and_grade
from orchestrator.run import check, listen_for_signals
from rollouts.types import GroupRequest, GroupSummary, RolloutStatus, Sampling

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
        sys.stdout.write(json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n")
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
    try:
        with listen_for_signals(stop, lambda: log.print(f"{stop.name}: freeing the actors")) as on:
            log.print(f"{cfg.name}: starting engines and graders")
            await stop.or_else(start_ray(cfg))
            on()  # Ray has put a handler of its own in place of ours, which aborts
            cluster = await stop.or_else(SamplingCluster.start(cfg))
            try:
                requests = {
                    s.name: _requests(cfg, s, sources[s.name], items, samples) for s in cfg.sources
                }
                began = time.monotonic()
                groups = await stop.or_else(_sample(cfg, cluster, requests, log))
                seconds = time.monotonic() - began
            finally:
                await cluster.close()
    finally:
        ray.shutdown()
    figures = tuple(
        describe(cfg, s, groups[s.name], _answers(sources[s.name])) for s in cfg.sources
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


def _requests(
    cfg: RunConfig, source: SourceConfig, data: Source, items: int, samples: int
) -> list[GroupRequest]:
    """Ask for items drawn evenly from the whole source; the same seed draws the same ones."""
    draw = random.Random(f"{cfg.seed}/baseline/{source.name}")
    chosen = draw.sample(range(data.size), min(items, data.size))
    tasks = [data.task(item) for item in sorted(chosen)]
    sampling = Sampling(
        temperature=source.sampling.temperature, max_tokens=source.sampling.max_tokens
    )
    return [
        GroupRequest(
            group_id=f"{task.task_id}#baseline",
            task=task,
            group_size=samples,
            sampling=sampling,
            step=-1,
        )
        for task in tasks
    ]


async def _sample(
    cfg: RunConfig,
    cluster: SamplingCluster,
    requests: dict[str, list[GroupRequest]],
    log: Console,
) -> dict[str, list[ItemSamples]]:
    """Sample and grade all groups, twice as many at once as the engines have slots for."""
    every = [r for own in requests.values() for r in own]
    clock = PhaseClock()
    slots = cfg.rollout.actors.count * cfg.rollout.max_num_seqs
    room = asyncio.Semaphore(max(1, 2 * slots // every[0].group_size))
    log.print(f"sampling {len(every)} items, {sum(r.group_size for r in every)} samples")
    with Progress(console=log, transient=True, disable=not log.is_terminal) as progress:
        bar = progress.add_task("sampled and graded", total=len(every))

        async def one(request: GroupRequest) -> ItemSamples:
            async with room:
                summary = await sample_and_grade(cluster.rollout, cluster.reward, clock, request)
            progress.advance(bar)
            return _item(summary)

        graded = iter(await asyncio.gather(*(one(r) for r in every)))
    return {name: [next(graded) for _ in own] for name, own in requests.items()}


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
