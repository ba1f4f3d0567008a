"""What a recipe would run, before anything is started: groups, bundles, arithmetic, memory.

Imports no torch, vllm, ray or transformers; `orchestrator.cluster` reserves these very bundles.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from configs.errors import Problem
from configs.model_files import ModelShape, find_model_folder, read_model_shape
from configs.schema import ActorsConfig, RunConfig
from configs.validate import (
    active_groups,
    find_warnings,
    group_path,
    judge_role,
    validate_run,
)
from configs.versions import check_versions
from environments.registry import validate_environments
from mixing.sources.opening import probe_sources, source_warnings
from orchestrator.planning.data import DataPlan, look_at_data
from orchestrator.planning.loss_check import check_loss
from orchestrator.planning.memory import MemoryEstimate, estimate_memory
from orchestrator.planning.mix import PlannedStep, SourcePlan, StagePlan, plan_mix
from orchestrator.planning.source import (
    DifficultyPlan,
    EvalPlan,
    plan_difficulty,
    plan_evaluation,
)
from rewards.graders import validate_rewards
from rewards.objective import validate_objectives
from rollouts.advantages import validate_advantages
from rollouts.staleness import max_groups_in_flight


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleMember:
    """One actor's place in a bundle."""

    role: str
    index: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Resources reserved together on one node; colocated actors share one."""

    index: int
    members: tuple[BundleMember, ...]
    """The first one's role names the placement group."""
    cpus: float
    gpus: float
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """A group of actors."""

    role: str
    actors: int
    cpus: float
    """Of each actor."""
    gpus: float
    """Of each actor."""
    ranks: int
    """Model ranks in the whole group: TP x PP of each engine, one of each trainer."""
    shares_with: str | None
    """Group in whose bundles it sits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Arithmetic of a step."""

    groups_per_step: int
    samples_per_step: int
    """In the largest step; shares are rounded anew each step."""
    completion_tokens_at_most: int
    tokens_at_most: int
    """Were every sample model.max_model_len long."""
    optimizer_steps: int
    """Per training step."""
    micro_batches_at_most: int
    """Per rank and training step, were every sample model.max_model_len long."""
    groups_in_flight: int
    """At most, with sampling as far ahead as each source may, and every group trained on."""
    sequences_in_flight: int
    engine_slots: int
    """Sequences that all engines decode at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """All bundles together."""

    actors: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What would run."""

    name: str
    num_steps: int
    groups: tuple[GroupPlan, ...]
    bundles: tuple[Bundle, ...]
    totals: Totals
    model: ModelShape | None
    """None where the model's files are not on this machine."""
    sources: tuple[SourcePlan, ...]
    data: tuple[DataPlan, ...]
    stages: tuple[StagePlan, ...]
    """One that lasts the whole run, where the recipe has none."""
    difficulty: tuple[DifficultyPlan, ...]
    """Of the sources that have a window or a filter."""
    evaluation: tuple[EvalPlan, ...]
    batch: BatchPlan
    memory: tuple[MemoryEstimate, ...]
    fullest_gpu_gib: float | None
    """Sum over the actors that share one GPU, of the fullest one; None if unknown or no GPU."""
    problems: tuple[Problem, ...]
    """What stops the run from starting."""
    warnings: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data."""
        return asdict(self)


def make_plan(cfg: RunConfig, *, gpu_gib: float | None = None) -> RunPlan:
    """Work out what `cfg` would run, and everything wrong with it.

    Args:
        gpu_gib: memory of one GPU, if known: bounds the KV cache, and what must fit.
    """
    bundles = plan_bundles(cfg)
    folder = find_model_folder(cfg.model.path)
    shape = read_model_shape(folder) if folder else None
    memory = estimate_memory(cfg, shape, gpu_gib=gpu_gib)
    fullest = _fullest_gpu(bundles, memory)
    groups = _plan_groups(cfg)
    unsound, items = probe_sources(cfg)
    problems = [*_check_all(cfg, unsound), *_check_fit(cfg, memory, fullest, gpu_gib)]
    look = look_at_data(cfg, items, sound=not problems)
    mix = plan_mix(cfg, items)
    return RunPlan(
        name=cfg.name,
        num_steps=cfg.num_steps,
        groups=groups,
        bundles=bundles,
        totals=Totals(
            actors=sum(g.actors for g in groups),
            cpus=_round(sum(b.cpus for b in bundles)),
            gpus=_round(sum(b.gpus for b in bundles)),
        ),
        model=shape,
        sources=mix.sources,
        data=look.data,
        stages=mix.stages,
        difficulty=plan_difficulty(cfg, items),
        evaluation=plan_evaluation(cfg, {d.name: d.held_out for d in look.data}),
        batch=_plan_batch(cfg, mix.steps, mix.sources),
        memory=memory,
        fullest_gpu_gib=fullest,
        problems=(*problems, *mix.problems, *look.problems),
        warnings=(
            *find_warnings(cfg),
            *mix.warnings,
            *source_warnings(cfg.sources),
            *look.warnings,
            *check_versions(),
        ),
    )


def plan_bundles(cfg: RunConfig, roles: Container[str] | None = None) -> tuple[Bundle, ...]:
    """Return the bundles to reserve: one an actor, shared by the actors colocated with it.

    Args:
        roles: groups to start; None for all of the run. One whose host is left out has bundles of
            its own, for itself and for those colocated with it.
    """
    groups = {r: a for r, a in active_groups(cfg).items() if roles is None or r in roles}
    root_of = {role: _root(role, groups) for role in groups}
    bundles: list[Bundle] = []
    for root in (r for r in groups if root_of[r] == r):
        inside = [root, *(r for r in groups if root_of[r] == root and r != root)]
        for i in range(max(groups[r].count for r in inside)):
            here = [r for r in inside if i < groups[r].count]
            members = tuple(
                BundleMember(role=r, index=i, cpus=groups[r].cpus, gpus=groups[r].gpus)
                for r in here
            )
            bundles.append(
                Bundle(
                    index=len(bundles),
                    members=members,
                    cpus=_round(sum(m.cpus for m in members)),
                    gpus=_round(sum(m.gpus for m in members)),
                    labels={k: v for r in here for k, v in groups[r].labels.items()},
                )
            )
    return tuple(bundles)


def _root(role: str, groups: Mapping[str, ActorsConfig]) -> str:
    """Follow `colocate_with` as far as the groups are started; a circle leads nowhere."""
    seen = [role]
    while (target := groups[seen[-1]].colocate_with) in groups:
        assert target is not None
        if target in seen:
            return role
        seen.append(target)
    return seen[-1]


def _round(resource: float) -> float:
    """Round to Ray's granularity, so that 0.1 + 0.2 asks for 0.3."""
    return round(resource, 4)


def _plan_groups(cfg: RunConfig) -> tuple[GroupPlan, ...]:
    engines = {"rollout": cfg.rollout}
    engines |= {judge_role(n): j.engines for n, j in cfg.judges.items() if j.engines is not None}
    per_actor = {r: e.tensor_parallel * e.pipeline_parallel for r, e in engines.items()}
    return tuple(
        GroupPlan(
            role=role,
            actors=actors.count,
            cpus=actors.cpus,
            gpus=actors.gpus,
            ranks=actors.count * per_actor.get(role, 1),
            shares_with=actors.colocate_with,
        )
        for role, actors in active_groups(cfg).items()
    )


def _plan_batch(
    cfg: RunConfig, steps: Sequence[PlannedStep], sources: Sequence[SourcePlan]
) -> BatchPlan:
    batch, longest = cfg.batch, cfg.model.max_model_len
    samples = max((step.samples for step in steps), default=0)
    completion = max((step.completion_tokens for step in steps), default=0)
    per_rank = math.ceil(math.ceil(samples / batch.num_minibatches) / cfg.trainer.data_parallel)
    fit = max(1, batch.max_tokens_per_microbatch // longest)
    least = min(cfg.max_staleness(s) for s in cfg.sources)
    further = {s.name: (s.max_staleness - least) * s.groups_most for s in sources}
    return BatchPlan(
        groups_per_step=batch.groups_per_step,
        samples_per_step=samples,
        completion_tokens_at_most=completion,
        tokens_at_most=samples * longest,
        optimizer_steps=batch.updates,
        micro_batches_at_most=batch.updates * math.ceil(per_rank / fit),
        groups_in_flight=max_groups_in_flight(batch.groups_per_step, least) + sum(further.values()),
        sequences_in_flight=samples * (1 + least)
        + sum(further[s.name] * s.group_size for s in cfg.sources if s.name in further),
        engine_slots=cfg.rollout.actors.count * cfg.rollout.max_num_seqs,
    )


def _check_all(cfg: RunConfig, unsound: Sequence[Problem]) -> list[Problem]:
    """Return every problem that shows without the seconds that importing reasoning-gym takes.

    Args:
        unsound: those of the sources' data.
    """
    found = validate_run(cfg)
    seen = {problem.where for problem in found}
    others = [
        *unsound,
        *validate_environments(cfg.sources),
        *validate_rewards(cfg.sources),
        *validate_objectives(cfg.sources),
        *validate_advantages(cfg.sources),
        *check_loss(cfg),
    ]
    return [*found, *(problem for problem in others if problem.where not in seen)]


def _fullest_gpu(bundles: tuple[Bundle, ...], memory: tuple[MemoryEstimate, ...]) -> float | None:
    need = {m.role: m.total_gib for m in memory if m.device == "gpu"}
    fullest: float | None = None
    for bundle in bundles:
        inside = [need[m.role] for m in bundle.members if m.role in need]
        known = [gib for gib in inside if gib is not None]
        if len(known) < len(inside):
            return None
        shared = any(0 < m.gpus < 1 for m in bundle.members)
        here = sum(known) if shared else max(known, default=None)
        if here is not None:
            fullest = max(here, fullest or 0.0)
    return None if fullest is None else round(fullest, 3)


def _check_fit(
    cfg: RunConfig,
    memory: tuple[MemoryEstimate, ...],
    fullest: float | None,
    gpu_gib: float | None,
) -> list[Problem]:
    problems: list[Problem] = []
    engines = {judge_role(n): j.engines for n, j in cfg.judges.items()}
    for m in memory:
        own = engines.get(m.role)
        model, at = (own.model, f"{m.role}.engines.model") if own else (cfg.model, "model")
        if m.kv and m.kv.tokens is not None and m.kv.tokens < model.max_model_len:
            knob = "kv_cache_gib" if m.device == "cpu" else "gpu_memory_utilization"
            problems.append(
                Problem(
                    where=f"{group_path(m.role)}.{knob}",
                    what=f"leaves room for {m.kv.tokens} tokens of KV cache, less than one "
                    f"sequence of {at}.max_model_len={model.max_model_len}",
                    fix=f"Raise {group_path(m.role)}.{knob}, or lower {at}.max_model_len.",
                )
            )
    if gpu_gib is not None and fullest is not None and fullest > gpu_gib:
        problems.append(
            Problem(
                where="memory",
                what=f"the actors on one GPU take about {fullest:.1f} GiB; it has {gpu_gib:g}",
                fix="Raise trainer.zero_stage or trainer.actors.count, turn on "
                "trainer.gradient_checkpointing, lower batch.max_tokens_per_microbatch or "
                "rollout.gpu_memory_utilization.",
            )
        )
    return problems
