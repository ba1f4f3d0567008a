"""Checks across fields and files: all problems at once, before any actor starts.

`validate_run` returns what must be mended; `find_warnings` what is allowed and probably not meant.
"""

from collections import Counter
from collections.abc import Iterator

from configs.errors import Problem
from configs.evaluation import check_eval, warn_eval
from configs.model_code import check_code
from configs.model_files import find_model_folder, read_model_shape
from configs.model_types import check_model_type
from configs.schema import ActorsConfig, RunConfig
from configs.validate_companions import check_companion
from configs.validate_critic import check_critic, check_estimator, warn_critic, warn_decay
from configs.validate_data import HUB_NAME, check_data
from configs.validate_determinism import check_determinism
from configs.validate_difficulty import check_difficulty, warn_difficulty
from configs.validate_engines import check_path, check_ranks
from configs.validate_guards import check_guards, warn_guards
from configs.validate_judges import check_judges, warn_judges
from configs.validate_mix import check_mix, warn_mix
from configs.validate_monitors import check_monitors, warn_monitors
from configs.validate_objective import check_objective, warn_objective, warn_source_objective
from configs.validate_parts import check_parts
from configs.validate_refresh import check_refresh, warn_refresh
from configs.validate_teachers import check_teachers, warn_teachers
from configs.validate_trainer import check_nvme, check_sequence_parallel


def validate_run(cfg: RunConfig) -> list[Problem]:
    """Return every cross-field problem of the recipe; empty when there is none."""
    return [
        *_check_sources(cfg),
        *check_mix(cfg),
        *_check_lengths(cfg),
        *_check_batch(cfg),
        *_check_groups(cfg),
        *_check_trainer(cfg),
        *check_sequence_parallel(cfg),
        *check_nvme(cfg),
        *_check_sync(cfg),
        *check_objective(cfg),
        *check_critic(cfg),
        *check_eval(cfg),
        *_check_model(cfg),
        *check_judges(cfg),
        *check_guards(cfg),
        *check_determinism(cfg),
        *check_refresh(cfg),
        *check_teachers(cfg),
    ]


def find_warnings(cfg: RunConfig) -> list[Problem]:
    """Return what is allowed but probably not meant."""
    return [
        *_warn_sources(cfg),
        *warn_mix(cfg),
        *_warn_batch(cfg),
        *_warn_groups(cfg),
        *warn_objective(cfg),
        *warn_critic(cfg),
        *warn_decay(cfg.trainer.optimizer, "trainer"),
        *warn_refresh(cfg),
        *warn_eval(cfg),
        *warn_monitors(cfg),
        *warn_guards(cfg),
        *_warn_model(cfg),
        *warn_judges(cfg),
        *warn_teachers(cfg),
    ]


def judge_role(name: str) -> str:
    """Return the role of a judge's own engines, as in `judges.NAME[0]`."""
    return f"judges.{name}"


def reward_model_role(name: str) -> str:
    """Return the role of a reward model's actors."""
    return f"reward_models.{name}"


def teacher_role(name: str) -> str:
    """Return the role of a teacher's actors."""
    return f"teachers.{name}"


def is_judge(role: str) -> bool:
    """Whether a role is that of a judge's engines."""
    return role.startswith("judges.")


def role_kind(role: str) -> str:
    """Return what an infra file calls a role: judges, reward models and teachers are `judge`."""
    return "judge" if role.startswith(("judges.", "reward_models.", "teachers.")) else role


def sampling_groups(cfg: RunConfig) -> dict[str, ActorsConfig]:
    """Return the groups that sample and grade, by role."""
    groups = {"rollout": cfg.rollout.actors, "reward": cfg.reward.actors}
    for name, judge in cfg.judges.items():
        if judge.engines is not None:
            groups[judge_role(name)] = judge.engines.actors
    for name, model in cfg.reward_models.items():
        groups[reward_model_role(name)] = model.actors
    return groups


def active_groups(cfg: RunConfig) -> dict[str, ActorsConfig]:
    """Return the groups that the run starts, by role; the reference only where KL needs it, the
    critic only where an estimator does."""
    sampling = sampling_groups(cfg)
    groups = {"trainer": cfg.trainer.actors, "rollout": sampling.pop("rollout")}
    if cfg.needs_reference:
        groups["reference"] = cfg.reference.actors
    if cfg.needs_critic:
        groups["critic"] = cfg.critic.actors
    for name, teacher in cfg.teachers.items():
        groups[teacher_role(name)] = teacher.actors
    return {**groups, **sampling}


def group_path(role: str) -> str:
    """Return the field under which a role's `actors` are set."""
    return f"{role}.engines" if is_judge(role) else role


def colocation_root(cfg: RunConfig, role: str) -> str | None:
    """Follow `colocate_with` to the group whose bundles `role` sits in; None for a cycle or a
    group that the run does not start."""
    groups, seen = active_groups(cfg), [role]
    while (target := groups[seen[-1]].colocate_with) is not None:
        if target in seen or target not in groups:
            return None
        seen.append(target)
    return seen[-1]


def _check_sources(cfg: RunConfig) -> Iterator[Problem]:
    counts = Counter(s.name for s in cfg.sources)
    for name, count in counts.items():
        if count > 1:
            yield Problem(
                where="sources",
                what=f"{count} sources are called `{name}`",
                fix="Give each source a name of its own; metrics are kept by it.",
            )
    for source in cfg.sources:
        yield from check_data(source)
        yield from check_difficulty(cfg, source)
        yield from check_estimator(cfg, source)
        yield from check_parts(source)
        yield from check_monitors(source)
        leave_out = cfg.decontaminate.procedural and cfg.decontaminate.action == "drop"
        if leave_out and source.data.curriculum.start is not None:
            yield Problem(
                where=f"sources.{source.name}.data.curriculum",
                what="has levels, at each of which an item is another question, so that "
                "decontaminate.action=drop cannot leave it out",
                fix="Set it to refuse or warn, or decontaminate.procedural to false.",
            )
        at = f"sources.{source.name}.rewards"
        if not source.rewards and source.distill is None:
            fix = "Give at least one reward part, or a teacher by `distill`."
            yield Problem(where=at, what="is empty", fix=fix)
        for part, count in Counter(r.name for r in source.rewards).items():
            if count > 1:
                yield Problem(where=at, what=f"{count} parts are called `{part}`")
        by_weight = source.objective.combine != "formula"
        if by_weight and source.rewards and all(r.weight == 0 for r in source.rewards):
            yield Problem(where=at, what="all weights are 0, so every reward would be 0")


def _check_lengths(cfg: RunConfig) -> Iterator[Problem]:
    limit, budget = cfg.model.max_model_len, cfg.batch.max_tokens_per_microbatch
    for source in cfg.sources:
        if source.sampling.max_tokens >= limit:
            yield Problem(
                where=f"sources.{source.name}.sampling.max_tokens",
                what=f"is {source.sampling.max_tokens}, which leaves no room for a prompt within "
                f"model.max_model_len={limit}",
                fix="Lower it, or raise model.max_model_len.",
            )
    if budget < limit:
        yield Problem(
            where="batch.max_tokens_per_microbatch",
            what=f"is {budget}, but one sample may have model.max_model_len={limit} tokens",
            fix=f"Raise it to {limit} or more, or lower model.max_model_len.",
        )
    folder = find_model_folder(cfg.model.path)
    shape = read_model_shape(folder) if folder else None
    if shape and shape.max_positions and limit > shape.max_positions:
        yield Problem(
            where="model.max_model_len",
            what=f"is {limit}, but the model has {shape.max_positions} positions",
            fix=f"Lower it to {shape.max_positions} or less.",
        )


def _check_batch(cfg: RunConfig) -> Iterator[Problem]:
    batch = cfg.batch
    if batch.num_minibatches > batch.groups_per_step:
        yield Problem(
            where="batch.num_minibatches",
            what=f"is {batch.num_minibatches}, more than the {batch.groups_per_step} groups of a "
            "step",
            fix="Lower it, or raise batch.groups_per_step.",
        )
    beta1, beta2 = cfg.trainer.optimizer.betas
    if beta1 >= 1 or beta2 >= 1:
        yield Problem(
            where="trainer.optimizer.betas",
            what=f"are {beta1:g} and {beta2:g}; both must be less than 1",
        )


def _check_groups(cfg: RunConfig) -> Iterator[Problem]:
    groups = active_groups(cfg)
    for role, actors in groups.items():
        at = f"{group_path(role)}.actors"
        if actors.gpus > 1 and not actors.gpus.is_integer():
            yield Problem(
                where=f"{at}.gpus",
                what=f"is {actors.gpus:g}; more than one GPU must be a whole number",
            )
        yield from _check_colocation(cfg, role, actors)
    yield from check_ranks(cfg.rollout, "rollout")
    for role in ("trainer", "reference", "critic"):
        if role in groups and groups[role].gpus > 1:
            yield Problem(
                where=f"{role}.actors.gpus",
                what=f"is {groups[role].gpus:g}, but one rank uses one GPU",
                fix=f"Set it to 1, and {role}.actors.count higher.",
            )
    for role in ("reference", "critic"):
        if role in groups and (groups[role].gpus > 0) != (groups["trainer"].gpus > 0):
            yield Problem(
                where=f"{role}.actors.gpus",
                what=f"one of {role} and trainer has a GPU and the other has none",
                fix="Give both a GPU or a fraction of one, or neither.",
            )
    yield from _check_fractions(cfg)


_IDLE = {
    "reference": ("no KL coefficient is above 0", "set algorithm.kl.coef above 0"),
    "critic": ("no source's advantage is `gae`", "set a source's advantage.use to gae"),
}
"""Why a group is not started, and what starts it."""


def _check_colocation(cfg: RunConfig, role: str, actors: ActorsConfig) -> Iterator[Problem]:
    target, groups = actors.colocate_with, active_groups(cfg)
    path = group_path(role)
    where = f"{path}.actors.colocate_with"
    if target is None:
        return
    if target == role:
        yield Problem(where=where, what=f"a group cannot share bundles with itself (`{role}`)")
    elif target not in groups:
        yield Problem(
            where=where,
            what=f"`{target}` is not started: {_IDLE[target][0]}",
            fix=f"Remove the line, or {_IDLE[target][1]}.",
        )
    elif colocation_root(cfg, role) is None:
        if role == min(_cycle(cfg, role), default=role):
            yield Problem(
                where=where,
                what="goes round in a circle: " + " -> ".join([*_cycle(cfg, role), role]),
                fix="Let one of these groups have bundles of its own.",
            )
    elif actors.count > groups[target].count:
        yield Problem(
            where=where,
            what=f"{actors.count} actors do not fit into the bundles of the "
            f"{groups[target].count} of `{target}`: actor i shares with actor i",
            fix=f"Set {path}.actors.count to {groups[target].count} or less.",
        )
    else:
        for key in sorted(set(actors.labels) & set(groups[target].labels)):
            if actors.labels[key] != groups[target].labels[key]:
                yield Problem(
                    where=f"{path}.actors.labels.{key}",
                    what=f"is `{actors.labels[key]}`, but `{target}`, on the same node, wants "
                    f"`{groups[target].labels[key]}`",
                )


def _cycle(cfg: RunConfig, role: str) -> list[str]:
    """Return the circle that `role` is on, from `role` on; empty where it only leads into one."""
    groups, seen = active_groups(cfg), [role]
    while (target := groups[seen[-1]].colocate_with) in groups and target not in seen:
        assert target is not None
        seen.append(target)
    return seen if target == role else []


def _sharing(cfg: RunConfig) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each root group and the GPUs of those in its first bundle, itself included."""
    groups = active_groups(cfg)
    for root in groups:
        if groups[root].colocate_with is None:
            inside = {r: a.gpus for r, a in groups.items() if colocation_root(cfg, r) == root}
            yield root, inside


def _check_fractions(cfg: RunConfig) -> Iterator[Problem]:
    for root, inside in _sharing(cfg):
        parts = {r: g for r, g in inside.items() if 0 < g < 1}
        if not parts or len(inside) == 1:
            continue
        shown = " + ".join(f"{g:g} {r}" for r, g in parts.items())
        whole = [r for r, g in inside.items() if g >= 1]
        if sum(parts.values()) > 1 + 1e-9:
            yield Problem(
                where=f"{root}.actors.gpus",
                what=f"colocated actors ask for {shown} = {sum(parts.values()):g} of one GPU",
                fix="Lower the fractions until they sum to 1 or less.",
            )
        if whole:
            yield Problem(
                where=f"{root}.actors.gpus",
                what=f"{' and '.join(whole)} takes a whole GPU, so {shown} cannot share it",
                fix="Give each colocated group a fraction, or remove colocate_with.",
            )


def _check_trainer(cfg: RunConfig) -> Iterator[Problem]:
    trained = {"trainer": cfg.trainer, **({"critic": cfg.critic} if cfg.needs_critic else {})}
    for role, group in trained.items():
        if group.offload == "optimizer" and group.zero_stage == 0:
            yield Problem(
                where=f"{role}.offload",
                what=f"`optimizer` needs a partitioned optimizer, but {role}.zero_stage is 0",
                fix=f"Set {role}.zero_stage to 1, 2 or 3.",
            )
        if group.offload == "parameters" and group.zero_stage != 3:
            yield Problem(
                where=f"{role}.offload",
                what=f"`parameters` needs partitioned parameters, but {role}.zero_stage is "
                f"{group.zero_stage}",
                fix=f"Set {role}.zero_stage to 3.",
            )
    if cfg.needs_reference and cfg.reference.path is not None:
        yield from check_companion(cfg, cfg.reference.path, "reference.path")


def _check_sync(cfg: RunConfig) -> Iterator[Problem]:
    sync, rollout_gpus = cfg.weight_sync, cfg.rollout.actors.gpus
    if sync.backend == "nccl" and (rollout_gpus == 0 or cfg.trainer.actors.gpus == 0):
        yield Problem(
            where="weight_sync.backend",
            what="`nccl` needs GPUs in both trainer and rollout actors",
            fix="Set it to auto, or give both groups GPUs.",
        )
    colocated = colocation_root(cfg, "rollout") == colocation_root(cfg, "trainer")
    # Colocated actors that reserve whole GPUs have one each.
    one_gpu = colocated and 0 < rollout_gpus < 1 and 0 < cfg.trainer.actors.gpus < 1
    engines = cfg.rollout.actors.count
    if sync.backend == "nccl" and one_gpu and (sync.transport == "broadcast" or engines > 1):
        yield Problem(
            where="weight_sync.backend",
            what="`nccl` cannot join trainer and engine that share a GPU",
            fix="Set it to auto.",
        )
    if sync.transport == "shared" and rollout_gpus > 0 and not (one_gpu and engines == 1):
        yield Problem(
            where="weight_sync.transport",
            what="`shared` needs one engine, on the GPU of the trainer's rank 0",
            fix="Set rollout.actors.colocate_with to trainer, its count to 1 and the gpus of both "
            "to fractions, or the transport to auto.",
        )
    if sync.transport == "shared" and not colocated and cfg.ray_address is not None:
        yield Problem(
            where="weight_sync.transport",
            what="`shared` needs trainer and rollout actors on the same host, and on a cluster "
            "only colocated ones surely are",
            fix="Set rollout.actors.colocate_with to trainer, or the transport to auto.",
        )
    if sync.max_logprob_gap_max < sync.max_logprob_gap_median:
        yield Problem(
            where="weight_sync.max_logprob_gap_max",
            what=f"is {sync.max_logprob_gap_max:g}, less than the bound on the median, "
            f"{sync.max_logprob_gap_median:g}",
        )
    if cfg.health.silence_s <= cfg.health.heartbeat_s:
        yield Problem(
            where="health.silence_s",
            what=f"is {cfg.health.silence_s:g} s, not longer than the {cfg.health.heartbeat_s:g} s "
            "between two heartbeats, so every actor would be called dead",
        )


def _check_model(cfg: RunConfig) -> Iterator[Problem]:
    yield from check_path(cfg.model.path, "model.path")
    yield from check_model_type(cfg)
    yield from check_code(cfg.model, "model")


def _warn_sources(cfg: RunConfig) -> Iterator[Problem]:
    for source in cfg.sources:
        at = f"sources.{source.name}"
        yield from warn_difficulty(cfg, source)
        if source.group_size == 1 and not source.learns_alone:
            yield Problem(
                where=f"{at}.group_size",
                what="is 1: a group of one has advantage 0, so the source trains nothing",
                fix="Set it to 2 or more.",
            )
        elif source.group_size == 1 and source.credits_tokens and not source.needs_values:
            yield Problem(
                where=f"{at}.group_size",
                what="is 1: scores of steps are compared with those of the group's others, so "
                "their credit reaches no token",
                fix="Set it to 2 or more, or use `gae`.",
            )
        if source.loss_weight == 0:
            yield Problem(where=f"{at}.loss_weight", what="is 0: the source trains nothing")
        yield from warn_source_objective(cfg, source)
        if source.data.procedural and source.data.held_out > 10 * source.data.size:
            yield Problem(
                where=f"{at}.data.held_out",
                what=f"is {source.data.held_out}, over ten times the training items",
            )


def _warn_batch(cfg: RunConfig) -> Iterator[Problem]:
    every = cfg.checkpoint.every
    if every > cfg.num_steps:
        yield Problem(
            where="checkpoint.every",
            what=f"is {every}, beyond the run's {cfg.num_steps} steps: it never comes due",
        )
    if cfg.checkpoint.every == 0 and cfg.num_steps > 100:
        yield Problem(
            where="checkpoint.every",
            what=f"is 0: a crash loses all of the {cfg.num_steps} steps",
            fix="Set it, so that --resume auto has something to resume from.",
        )
    if cfg.replay.keep is not None and not cfg.replay.save:
        yield Problem(
            where="replay.keep",
            what="does nothing: replay.save is off",
            fix="Turn it on, or remove the line.",
        )
    if cfg.trainer.optimizer.warmup_steps >= cfg.policy_updates:
        yield Problem(
            where="trainer.optimizer.warmup_steps",
            what="lasts the whole run: the learning rate never reaches `lr`",
        )
    colocated = colocation_root(cfg, "rollout") == colocation_root(cfg, "trainer")
    if cfg.most_ahead > 0 and colocated and cfg.trainer.actors.gpus > 0:
        own = next((s.name for s in cfg.sources if s.max_staleness == cfg.most_ahead), None)
        yield Problem(
            where=f"sources.{own}.max_staleness" if own else "batch.max_staleness",
            what=f"is {cfg.most_ahead}, but engines and trainer share a GPU, so sampling "
            "ahead slows training down as much as it helps",
            fix="Set it to 0, or give the rollout group GPUs of its own.",
        )


def _warn_groups(cfg: RunConfig) -> Iterator[Problem]:
    share = cfg.rollout.gpu_memory_utilization
    for _, inside in _sharing(cfg):
        own = inside.get("rollout", 0.0)
        if 0 < own < 1 and len([g for g in inside.values() if g > 0]) > 1 and share > own + 1e-9:
            yield Problem(
                where="rollout.gpu_memory_utilization",
                what=f"is {share:g}, but the engine reserves {own:g} of a GPU that it shares",
                fix=f"Lower it to {own:g}, so that the others have their memory.",
            )
    if not cfg.needs_reference and cfg.reference != type(cfg.reference)():
        yield Problem(
            where="reference",
            what="is set, but no KL coefficient is above 0, so no reference is started",
            fix="Set algorithm.kl.coef or a source's kl_coef above 0, or remove the section.",
        )
    trainer_gpu = cfg.trainer.actors.gpus > 0
    if trainer_gpu != (cfg.rollout.actors.gpus > 0):
        yield Problem(
            where="rollout.actors.gpus",
            what="one of trainer and rollout has GPUs and the other has none",
            fix="Give both GPUs, unless that is meant.",
        )


def _warn_model(cfg: RunConfig) -> Iterator[Problem]:
    if find_model_folder(cfg.model.path) is None and HUB_NAME.match(cfg.model.path):
        yield Problem(
            where="model.path",
            what=f"`{cfg.model.path}` is neither a local folder nor in the hub cache; it is taken "
            "for a hub name and downloaded when the run starts",
        )
