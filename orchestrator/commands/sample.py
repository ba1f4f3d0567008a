"""Rows out of a policy's own answers: rejection sampling (arXiv:2308.01825) and best of n, to
imitate, and pairs of the best and the worst, to prefer.

Items are kept by their pass rate, answers by their reward; truncated ones never, since what they
would teach is not to stop. Rows stand in the order of the source's items and are written as a
whole, so a run that is cut off leaves no file.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import JsonValue
from rich.console import Console

from configs.errors import ConfigError, Problem
from configs.evaluation import eval_settings
from configs.redact import redact_known
from configs.schema import RunConfig, SourceConfig
from mixing.sources.source import Source
from orchestrator.cluster import SamplingCluster
from orchestrator.loop import Stopped, StopRequest
from orchestrator.records.files import write_atomically
from orchestrator.run import check
from orchestrator.sampling import item_requests, on_sampling_cluster, sample_all
from rollouts.types import GroupRequest, GroupSummary, RolloutStatus

NOTHING_KEPT = 1
"""Exit code where no answer was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """What `braid sample` was asked for."""

    source: str | None
    n: int
    items: int | None
    keep: Literal["passed", "best", "pairs"]
    per_item: int
    min_pass: float
    max_pass: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What became of one item."""

    source: str
    fate: Literal["kept", "too hard", "too easy", "nothing to keep", "invalid"]
    rows: tuple[dict[str, JsonValue], ...] = ()


def execute(cfg: RunConfig, out: Path, options: SampleOptions) -> int:
    """Sample, select, write `out` and say what was kept; return the exit code.

    Raises:
        ConfigError: bad input; nothing was started, or everything is freed again.
        RunError: an actor failed; everything is freed again.
    """
    cfg = _chosen(cfg, out, options)
    sources, _ = check(cfg)
    log, stop = Console(stderr=True), StopRequest()
    try:
        kept = asyncio.run(_sample(cfg, sources, options, stop, log))
    except (Stopped, asyncio.CancelledError):
        log.print(f"stopped by {stop.name}; nothing was written")
        return 128 + stop.signal_number
    rows = [row for item in kept for row in item.rows]
    for line in report(cfg, kept):
        log.print(line, markup=False, highlight=False, soft_wrap=True)
    if not rows:
        log.print("no answer was kept, so nothing was written; widen --min-pass and --max-pass")
        return NOTHING_KEPT
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(out, redact_known("".join(lines)))
    log.print(f"wrote {len(rows)} rows to {out}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _chosen(cfg: RunConfig, out: Path, options: SampleOptions) -> RunConfig:
    """Return the recipe with the sources to sample alone; ConfigError where that cannot be."""
    problems: list[Problem] = []
    names = [s.name for s in cfg.sources]
    if options.source is not None and options.source not in names:
        what = f"there is no source `{options.source}`"
        problems.append(
            Problem(where="--source", what=what, fix=f"Give one of {', '.join(names)}.")
        )
    if options.min_pass > options.max_pass:
        what = f"is {options.min_pass:g}, above --max-pass {options.max_pass:g}"
        problems.append(Problem(where="--min-pass", what=what, fix="Swap them."))
    if out.exists():
        problems.append(Problem(where="--out", what=f"{out} exists", fix="Give a new file."))
    elif not out.parent.is_dir():
        what = f"{out.parent} is no folder"
        problems.append(Problem(where="--out", what=what, fix="Make it, or give another."))
    chosen = tuple(s for s in cfg.sources if options.source in (None, s.name))
    for source in chosen:
        if not source.rewards:
            what = "has no rewards, so there is nothing to choose answers by"
            fix = "Give it rewards, or choose another by --source."
            problems.append(Problem(where=f"sources.{source.name}", what=what, fix=fix))
        if source.environment.use != "single_turn":
            what = "is not single_turn: what the world said is not kept as messages"
            fix = "Choose another source by --source."
            where = f"sources.{source.name}.environment"
            problems.append(Problem(where=where, what=what, fix=fix))
    if problems:
        raise ConfigError(problems)
    return cfg.model_copy(update={"sources": chosen, "stages": ()})


async def _sample(
    cfg: RunConfig,
    sources: Mapping[str, Source],
    options: SampleOptions,
    stop: StopRequest,
    log: Console,
) -> list[Kept]:
    requests = [
        request
        for s in cfg.sources
        for request in item_requests(
            cfg,
            s,
            sources[s.name],
            items=options.items or sources[s.name].size,
            samples=options.n,
            purpose="sample",
        )
    ]
    by_id = {r.group_id: r for r in requests}

    async def work(cluster: SamplingCluster) -> list[Kept]:
        async def take(summary: GroupSummary) -> Kept:
            source = cfg.source(summary.source)
            threshold = eval_settings(cfg, source).pass_threshold
            fate, indices = select(summary, options, threshold)
            if fate != "kept":
                return Kept(source=source.name, fate=fate)
            limit = {"passed": options.per_item, "best": 1, "pairs": 2}[options.keep]
            texts = await cluster.reward.answers(summary, indices, limit=limit)
            rate = pass_rate(summary, threshold)
            request = by_id[summary.group_id]
            if options.keep == "pairs":
                if len(texts) < 2:
                    return Kept(source=source.name, fate="nothing to keep")
                rows = (_pair(request, summary, texts, rate),)
            else:
                rows = tuple(_row(request, summary, index, text, rate) for index, text in texts)
            return Kept(source=source.name, fate="kept", rows=rows)

        return await sample_all(cfg, cluster, requests, log, take)

    return await on_sampling_cluster(cfg, stop, log, work)


def pass_rate(summary: GroupSummary, threshold: float) -> float:
    """Return the share of the valid rollouts that passed; there is at least one."""
    return sum(r >= threshold for r in summary.rewards) / len(summary.rewards)


def select(
    summary: GroupSummary, options: SampleOptions, threshold: float
) -> tuple[Literal["kept", "too hard", "too easy", "nothing to keep", "invalid"], list[int]]:
    """Return what becomes of an item and, where it is kept, its rollouts to keep, best first;
    equal rewards in the order of sampling."""
    if not summary.rewards:
        return "invalid", []
    rate = pass_rate(summary, threshold)
    if rate < options.min_pass:
        return "too hard", []
    if rate > options.max_pass:
        return "too easy", []
    whole = [
        (r.reward, i)
        for i, r in enumerate(summary.rollouts)
        if r.reward is not None and r.status is RolloutStatus.COMPLETED
    ]
    if options.keep == "passed":
        whole = [(reward, i) for reward, i in whole if reward >= threshold]
    best_first = sorted(whole, key=lambda pair: (-pair[0], pair[1]))
    if options.keep == "pairs":
        ends = best_first[:1] + best_first[-1:]
        told = len(best_first) > 1 and ends[0][0] > ends[1][0] and ends[0][0] >= threshold
        best_first = ends if told else []
    return ("kept", [i for _, i in best_first]) if best_first else ("nothing to keep", [])


def _row(
    request: GroupRequest, summary: GroupSummary, index: int, text: str, rate: float
) -> dict[str, JsonValue]:
    return {
        "messages": [*_prompt(request), {"role": "assistant", "content": text}],
        "source": summary.source,
        "item": summary.task_id,
        "reward": summary.rollouts[index].reward,
        "pass_rate": round(rate, 6),
    }


def _pair(
    request: GroupRequest,
    summary: GroupSummary,
    texts: Sequence[tuple[int, str]],
    rate: float,
) -> dict[str, JsonValue]:
    (best, chosen), (worst, rejected) = texts
    return {
        "prompt": _prompt(request),
        "chosen": chosen,
        "rejected": rejected,
        "source": summary.source,
        "item": summary.task_id,
        "rewards": [summary.rollouts[best].reward, summary.rollouts[worst].reward],
        "pass_rate": round(rate, 6),
    }


def _prompt(request: GroupRequest) -> list[JsonValue]:
    return [{"role": m.role, "content": m.content} for m in request.task.prompt]


def report(cfg: RunConfig, kept: Sequence[Kept]) -> list[str]:
    """Return a line a source: its items, and what became of them."""
    return [_line(source, [k for k in kept if k.source == source.name]) for source in cfg.sources]


def _line(source: SourceConfig, kept: Sequence[Kept]) -> str:
    fates = Counter(k.fate for k in kept)
    shown = ", ".join(f"{count} {fate}" for fate, count in fates.most_common())
    rows = sum(len(k.rows) for k in kept)
    return f"{source.name}: {len(kept)} items ({shown}), {rows} rows"
