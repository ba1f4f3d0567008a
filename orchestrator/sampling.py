"""A recipe's starting policy, sampled and graded without training: engines and graders alone.

Signals, errors and the end free every actor, as in `orchestrator.run`.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import ray
from rich.console import Console
from rich.progress import Progress

from configs.schema import RunConfig, SourceConfig
from mixing.sources.source import Source
from orchestrator.at_once import at_once
from orchestrator.clock import PhaseClock
from orchestrator.cluster import SamplingCluster, start_ray
from orchestrator.loop import StopRequest
from orchestrator.producer import sample_and_grade
from orchestrator.run import listen_for_signals
from rollouts.types import GroupRequest, GroupSummary, Sampling

T = TypeVar("T")


async def on_sampling_cluster(
    cfg: RunConfig,
    stop: StopRequest,
    log: Console,
    work: Callable[[SamplingCluster], Awaitable[T]],
) -> T:
    """Do some work on the recipe's engines and graders, and free them."""
    try:
        with listen_for_signals(stop, lambda: log.print(f"{stop.name}: freeing the actors")) as on:
            log.print(f"{cfg.name}: starting engines and graders")
            await stop.or_else(start_ray(cfg))
            on()  # Ray has put a handler of its own in place of ours, which aborts
            cluster = await stop.or_else(SamplingCluster.start(cfg))
            try:
                return await stop.or_else(work(cluster))
            finally:
                await cluster.close()
    finally:
        ray.shutdown()


def item_requests(
    cfg: RunConfig,
    source: SourceConfig,
    data: Source,
    *,
    items: int,
    samples: int,
    purpose: str,
) -> list[GroupRequest]:
    """Ask for items drawn evenly from the whole source; the same seed and purpose draw the same.

    Args:
        items: all of a source that has fewer.
    """
    draw = random.Random(f"{cfg.seed}/{purpose}/{source.name}")
    chosen = draw.sample(range(data.size), min(items, data.size))
    tasks = [data.task(item) for item in sorted(chosen)]
    sampling = Sampling(
        temperature=source.sampling.temperature, max_tokens=source.sampling.max_tokens
    )
    return [
        GroupRequest(
            group_id=f"{task.task_id}#{purpose}",
            task=task,
            group_size=samples,
            sampling=sampling,
            step=-1,
        )
        for task in tasks
    ]


async def sample_all(
    cfg: RunConfig,
    cluster: SamplingCluster,
    requests: Sequence[GroupRequest],
    log: Console,
    take: Callable[[GroupSummary], Awaitable[T]],
) -> list[T]:
    """Sample and grade all groups; return what `take` makes of each, in order."""
    clock = PhaseClock()
    log.print(f"sampling {len(requests)} items, {sum(r.group_size for r in requests)} samples")
    with Progress(console=log, transient=True, disable=not log.is_terminal) as progress:
        bar = progress.add_task("sampled and graded", total=len(requests))

        async def one(request: GroupRequest) -> T:
            summary = await sample_and_grade(cluster.rollout, cluster.reward, clock, request)
            taken = await take(summary)
            progress.advance(bar)
            return taken

        return await at_once(cfg, requests, one)
