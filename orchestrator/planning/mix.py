"""What the mix comes to, by stage and source, before anything is started.

The run's first steps are gone through with the mixer's own allocator: no data is read, and no
metric ends a stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor

from configs.errors import Problem
from configs.mix import UntilConfig
from configs.schema import RunConfig
from configs.validate_mix import check_mix, draws_allowed
from mixing.quota.allocator import Allocator, MixExhausted

_STEPS, _STEPS_THAT_CHANGE = 500, 2000
"""Steps gone through; more where stages or limits change them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePlan:
    """One source's part of the batch."""

    name: str
    share: float
    """Of the groups, over the steps gone through."""
    groups_per_step: float
    """On average over those steps."""
    groups_least: int
    """In any of those steps, by the mixer's own quota."""
    groups_most: int
    groups_in_run: int
    samples_per_step: float
    """On average."""
    epochs: float | None
    """Times that the run goes through its items; None where these were not counted."""
    max_staleness: int
    """Steps that its sampling may run ahead of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageShare:
    """One source in one stage, at the stage's end, nothing used up yet."""

    source: str
    share: float
    """Target, in `mix.unit`."""
    groups_per_step: float
    group_size: int
    steps_to_exhaustion: int | None
    """Steps at this rate that its limits allow; None for no limit, or one that depends on rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage."""

    index: int
    until: str
    """What ends it, in words."""
    sources: tuple[StageShare, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One step gone through."""

    counts: Mapping[str, int]
    samples: int
    completion_tokens: int
    """At most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixPlan:
    """What the mix comes to."""

    sources: tuple[SourcePlan, ...]
    stages: tuple[StagePlan, ...]
    steps: tuple[PlannedStep, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def plan_mix(cfg: RunConfig, items: Mapping[str, int | None]) -> MixPlan:
    """Go through the run's first steps; a mix with problems of its own has no figures.

    Args:
        items: distinct training items of each source's epoch, where they were counted.
    """
    if any(check_mix(cfg)):
        return MixPlan(sources=(), stages=(), steps=(), problems=(), warnings=())
    sizes = {s.name: items.get(s.name) for s in cfg.sources}
    problems: list[Problem] = []
    warnings: list[Problem] = []
    steps: list[PlannedStep] = []
    rest: Mapping[str, float] = {}
    allocator, taken = Allocator(cfg, sizes), dict.fromkeys(sizes, 0)
    changes = cfg.stages or any(draws_allowed(s) is not None for s in cfg.sources)
    try:
        for step in range(1, min(cfg.num_steps, _STEPS_THAT_CHANGE if changes else _STEPS) + 1):
            allocation = allocator.allocate(step, taken)
            rest = {name: float(groups) for name, groups in allocation.due.items()}
            counts = {name: allocation.counts.get(name, 0) for name in sizes}
            taken = {name: taken[name] + count for name, count in counts.items()}
            steps.append(_step(cfg, counts, allocator.group_sizes()))
    except MixExhausted as end:
        rest = {}
        (warnings if end.wanted and steps else problems).append(
            Problem(where="sources", what=str(end))
        )
    warnings += [
        Problem(where="sources", what=str(event))
        for event in allocator.events
        if event.kind in ("used_up", "again", "all_items", "repeats")
    ]
    return MixPlan(
        sources=_sources(cfg, steps, sizes, rest),
        stages=_stages(cfg, sizes),
        steps=tuple(steps),
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _step(cfg: RunConfig, counts: Mapping[str, int], group_sizes: Mapping[str, int]) -> PlannedStep:
    samples = {name: count * group_sizes[name] for name, count in counts.items()}
    return PlannedStep(
        counts=counts,
        samples=sum(samples.values()),
        completion_tokens=sum(samples[s.name] * s.sampling.max_tokens for s in cfg.sources),
    )


def _sources(
    cfg: RunConfig,
    steps: Sequence[PlannedStep],
    sizes: Mapping[str, int | None],
    rest: Mapping[str, float],
) -> tuple[SourcePlan, ...]:
    """Sum up the steps; those after them have what the last one was due."""
    plans: list[SourcePlan] = []
    for source in cfg.sources if steps else ():
        counts = [step.counts[source.name] for step in steps]
        left = rest.get(source.name, 0.0) * (cfg.num_steps - len(steps))
        in_run, size = sum(counts) + round(left), sizes[source.name]
        mean = sum(counts) / len(counts)
        plans.append(
            SourcePlan(
                name=source.name,
                share=round(mean / cfg.batch.groups_per_step, 6),
                groups_per_step=round(mean, 4),
                groups_least=min(counts),
                groups_most=max(counts),
                groups_in_run=in_run,
                samples_per_step=round(mean * source.group_size, 4),
                epochs=round(in_run / size, 3) if size else None,
                max_staleness=cfg.max_staleness(source),
            )
        )
    return tuple(plans)


def _stages(cfg: RunConfig, sizes: Mapping[str, int | None]) -> tuple[StagePlan, ...]:
    allocator = Allocator(cfg, sizes)
    plans: list[StagePlan] = []
    for index in range(max(1, len(cfg.stages))):
        try:
            declared = allocator.declared(index)
        except MixExhausted:  # limits leave less than one step: said already
            continue
        stage = cfg.stages[index] if cfg.stages else None
        shares: list[StageShare] = []
        for source in cfg.sources:
            groups = float(declared.due.get(source.name, 0))
            allowed = draws_allowed(source)
            shares.append(
                StageShare(
                    source=source.name,
                    share=round(declared.shares[source.name], 6),
                    groups_per_step=round(groups, 4),
                    group_size=(stage.group_size if stage else {}).get(
                        source.name, source.group_size
                    ),
                    steps_to_exhaustion=floor(allowed / groups) if allowed and groups else None,
                )
            )
        until = _until(stage.until if stage else None)
        plans.append(StagePlan(index=index, until=until, sources=tuple(shares)))
    return tuple(plans)


def _until(until: UntilConfig | None) -> str:
    if until is None:
        return "the end"
    if until.step is not None:
        return f"step {until.step}"
    bound = f">= {until.gte:g}" if until.gte is not None else f"<= {until.lte:g}"
    times = f", {until.patience} times in a row" if until.patience > 1 else ""
    return f"{until.metric} {bound}{times}"
