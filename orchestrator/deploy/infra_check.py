"""Whether a recipe fits an infra file: names, roles, room for every bundle, and what travels."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.data_files import find_files
from configs.errors import Problem
from configs.infra import GroupConfig, InfraConfig
from configs.model_files import find_model_folder
from configs.schema import ActorsConfig, RunConfig
from configs.validate import (
    active_groups,
    judge_role,
    reward_model_role,
    role_kind,
    teacher_role,
    validate_run,
)
from configs.validate_infra import MAX_CLUSTER_NAME, MAX_JOB_NAME
from orchestrator.deploy.pods import GROUP_LABEL, WRITABLE
from orchestrator.planning.plan import Bundle, plan_bundles
from orchestrator.records.hashes import files_in, plugs_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """What brings the recipe and its small files to the cluster."""

    max_bytes: int
    """Of data files that may travel."""
    text_only: bool
    """Whether it takes nothing but UTF-8 text."""


CONFIG_MAP = Carrier(max_bytes=900_000, text_only=True)
"""It holds 1 MiB."""
JOB_PACKAGE = Carrier(max_bytes=64 * 2**20, text_only=False)
"""The working directory of a Ray job, which the head keeps in its memory."""
DATA_FILES = ("jsonl", "parquet", "held_out_file")
"""Fields of a source's `data` that name files."""
RECIPE_FILE = "recipe.yaml"
"""Name of the recipe among the files that travel."""
_KEY = re.compile(r"[^-._a-zA-Z0-9]")


def check_recipe_on(
    cfg: RunConfig, infra: InfraConfig, carrier: Carrier = CONFIG_MAP
) -> list[Problem]:
    """Return every problem of running `cfg` on `infra`."""
    found = [
        *_check_name(cfg, infra),
        *_check_roles(cfg, infra),
        *_check_labels(cfg, infra),
        *_check_files(cfg, infra, carrier),
        *_check_nvme(cfg, infra),
        *_check_secrets(cfg, infra),
        *_check_isolation(cfg, infra),
    ]
    return found or list(_check_room(cfg, infra))


def check_recipe_there(cfg: RunConfig, infra: InfraConfig) -> list[Problem]:
    """Return every problem that the recipe has wherever it runs. What lies on the cluster's storage
    is not seen from here; the driver looks again."""
    return [p for p in validate_run(cfg) if f"{infra.storage.mount}/" not in p.what]


def warn_recipe_on(cfg: RunConfig, infra: InfraConfig) -> list[Problem]:
    """Return what is allowed and probably not meant."""
    started = {role_kind(role) for role in active_groups(cfg)}
    return [
        Problem(
            where=f"groups.{group.name}.roles",
            what=f"has {role}, which the recipe does not start",
        )
        for group in infra.groups
        for role in group.roles
        if role not in started
    ]


def place_roles(cfg: RunConfig, infra: InfraConfig) -> RunConfig:
    """Return the recipe with a label selector on every role: the group that the infra file gives it
    to, else any group that names no roles."""
    owner = {role: group.name for group in infra.groups for role in group.roles}
    free = [g.name for g in infra.groups if not g.roles]
    anywhere = free[0] if len(free) == 1 else f"in({','.join(free)})"
    placed: dict[str, ActorsConfig] = {}
    for role, actors in active_groups(cfg).items():
        selector = owner.get(role_kind(role), anywhere)
        labels = {**actors.labels, GROUP_LABEL: selector}
        placed[role] = actors.model_copy(update={"labels": labels})
    return _with_actors(cfg, placed)


def _with_actors(cfg: RunConfig, placed: Mapping[str, ActorsConfig]) -> RunConfig:
    """Return the recipe with other actors for the roles in `placed`."""
    sections: dict[str, object] = {}
    for role, actors in placed.items():
        if role_kind(role) != "judge":
            sections[role] = getattr(cfg, role).model_copy(update={"actors": actors})
    sections["judges"] = {
        name: judge
        if judge.engines is None
        else judge.model_copy(
            update={
                "engines": judge.engines.model_copy(update={"actors": placed[judge_role(name)]})
            }
        )
        for name, judge in cfg.judges.items()
    }
    sections["reward_models"] = {
        name: model.model_copy(update={"actors": placed[reward_model_role(name)]})
        for name, model in cfg.reward_models.items()
    }
    sections["teachers"] = {
        name: teacher.model_copy(update={"actors": placed[teacher_role(name)]})
        for name, teacher in cfg.teachers.items()
    }
    return cfg.model_copy(update=sections)


def argument_files(cfg: RunConfig, infra: InfraConfig) -> dict[str, Path]:
    """Return the files that arguments of plugs name and the shared storage has not, by field."""
    return {
        at: path
        for where, _, plug in plugs_of(cfg)
        for at, path in files_in(plug.args, f"{where}.args")
        if not is_shared(path, infra)
    }


def run_name(cfg: RunConfig) -> str:
    """Return the recipe's name as Kubernetes, and Ray's jobs, take names."""
    return re.sub(r"[^a-z0-9]+", "-", cfg.name.lower()).strip("-")


def run_directory(cfg: RunConfig, infra: InfraConfig) -> str:
    """Return the run directory, on the shared storage."""
    return f"{infra.storage.mount}/runs/{cfg.name}"


def travelling_files(cfg: RunConfig, infra: InfraConfig) -> dict[str, Path]:
    """Return the files that the recipe names and the shared storage has not, by the name under
    which they travel with it."""
    found: dict[str, Path] = {}
    for _, path in _data_files(cfg):
        if not is_shared(path, infra):
            name = _KEY.sub("_", path.name)
            while name == RECIPE_FILE or found.get(name, path) != path:
                name = f"_{name}"
            found[name] = path
    return found


def _data_files(cfg: RunConfig) -> Iterator[tuple[str, Path]]:
    for source in cfg.sources:
        data = source.data
        for field in DATA_FILES:
            given = getattr(data, field)
            patterns = (given,) if isinstance(given, str) else tuple(given or ())
            for path in find_files(patterns):
                yield f"sources.{source.name}.data.{field}", path
    for name, judge in cfg.judges.items():
        if judge.calibration is not None:
            for path in find_files((judge.calibration.anchors,)):
                yield f"judges.{name}.calibration.anchors", path


def is_shared(path: Path | str, infra: InfraConfig) -> bool:
    return Path(path).is_relative_to(infra.storage.mount)


def _check_name(cfg: RunConfig, infra: InfraConfig) -> Iterator[Problem]:
    name = run_name(cfg)
    limit = MAX_JOB_NAME if infra.kind == "job" else MAX_CLUSTER_NAME
    if len(name) > limit:
        yield Problem(
            where="name",
            what=f"has {len(name)} characters as a Kubernetes name; KubeRay takes {limit}",
            fix="Shorten the recipe's name: --set name=...",
        )
    if not name or not name[0].isalpha():
        yield Problem(
            where="name",
            what=f"{cfg.name!r} gives {name!r}; a Kubernetes name starts with a letter",
            fix="Rename the run: --set name=...",
        )


def _check_roles(cfg: RunConfig, infra: InfraConfig) -> Iterator[Problem]:
    owner = {role: group.name for group in infra.groups for role in group.roles}
    everywhere = [g.name for g in infra.groups if not g.roles]
    started = active_groups(cfg)
    for role, actors in started.items():
        kind = role_kind(role)
        if kind not in owner and not everywhere:
            yield Problem(
                where=f"groups.*.roles: {kind}",
                what="no group takes it, and every group names its roles",
                fix=f"Add {kind} to a group's roles, or leave one group's empty.",
            )
        host = actors.colocate_with
        if host in started and owner.get(kind, "") != owner.get(host, ""):
            yield Problem(
                where=f"{role}.actors.colocate_with",
                what=f"is {host}, but infra puts {role} on `{owner.get(kind, 'any')}` and "
                f"{host} on `{owner.get(host, 'any')}`",
                fix="Give both roles to one group.",
            )


def _check_labels(cfg: RunConfig, infra: InfraConfig) -> Iterator[Problem]:
    for role, actors in active_groups(cfg).items():
        for key, value in actors.labels.items():
            offered = sorted({g.labels[key] for g in infra.groups if key in g.labels})
            if value not in offered:
                yield Problem(
                    where=f"{role}.actors.labels.{key}",
                    what=f"is {value!r}, and the groups offer "
                    + (", ".join(map(repr, offered)) if offered else "no such label"),
                    fix="Add the label to a group of the infra file, or remove it from the recipe.",
                )


def _check_files(cfg: RunConfig, infra: InfraConfig, carrier: Carrier) -> Iterator[Problem]:
    models = {
        f"judges.{name}.engines.model.path": judge.engines.model.path
        for name, judge in cfg.judges.items()
        if judge.engines is not None
    }
    models |= {f"reward_models.{n}.model.path": m.model.path for n, m in cfg.reward_models.items()}
    models |= {f"teachers.{n}.model.path": t.model.path for n, t in cfg.teachers.items()}
    policy = {
        "model.path": cfg.model.path,
        "reference.path": cfg.reference.path,
        "critic.path": cfg.critic.path,
    }
    for where, path in {**policy, **models}.items():
        folder = find_model_folder(path) if path else None
        local = folder is not None and path is not None and Path(path).is_absolute()
        if local and not is_shared(str(path), infra):
            yield _off_storage(where, Path(str(path)), infra)
    if carrier is CONFIG_MAP:  # which only the head sees
        for where, path in argument_files(cfg, infra).items():
            yield _off_storage(where, path, infra, "is read where graders and environments are")
    sizes: list[tuple[str, Path, int]] = []
    for where, path in _data_files(cfg):
        if not is_shared(path, infra):
            size = path.stat().st_size
            binary = carrier.text_only and path.suffix == ".parquet"
            if binary or size > carrier.max_bytes:
                yield _off_storage(where, path, infra)
            elif carrier.text_only and not _is_text(path):
                yield Problem(
                    where=where, what=f"{path} is not UTF-8 text", fix="Write it as UTF-8."
                )
            else:
                sizes.append((where, path, size))
    if sum(size for *_, size in sizes) > carrier.max_bytes:
        for where, path, _ in sizes:
            yield _off_storage(where, path, infra)
    for source in cfg.sources:
        hub = source.data.hub
        if hub is not None and Path(hub).is_absolute() and not is_shared(hub, infra):
            yield _off_storage(f"sources.{source.name}.data.hub", Path(hub), infra)


def _is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _off_storage(
    where: str, path: Path, infra: InfraConfig, why: str = "too large to travel with the recipe"
) -> Problem:
    return Problem(
        where=where,
        what=f"{path} is on this machine and {why}",
        fix=f"Copy it to the storage and give its path below {infra.storage.mount}.",
    )


def _check_secrets(cfg: RunConfig, infra: InfraConfig) -> Iterator[Problem]:
    if cfg.logging.wandb == "online" and "WANDB_API_KEY" not in infra.secrets:
        yield Problem(
            where="logging.wandb",
            what="is online, and the infra file gives no WANDB_API_KEY",
            fix="Add `secrets: {WANDB_API_KEY: {secret: NAME, key: KEY}}`, or set it to offline.",
        )
    for name, judge in cfg.judges.items():
        variable = judge.endpoint.api_key_env if judge.endpoint else None
        if variable is not None and variable not in infra.secrets:
            yield Problem(
                where=f"judges.{name}.endpoint.api_key_env",
                what=f"is {variable}, and the infra file gives no such variable",
                fix=f"Add `secrets: {{{variable}: {{secret: NAME, key: KEY}}}}`.",
            )


def _check_isolation(cfg: RunConfig, infra: InfraConfig) -> Iterator[Problem]:
    """Graders ask judges from where they run, and isolated pods have neither secrets nor, but for
    `allow_egress`, a way out."""
    graders = [g for g in infra.groups if "reward" in g.roles] or [
        g for g in infra.groups if not g.roles
    ]
    asked = {name: j.endpoint for name, j in cfg.judges.items() if j.endpoint is not None}
    for group in (g for g in graders if g.isolated):
        for name, endpoint in asked.items():
            where = f"judges.{name}.endpoint"
            if endpoint.api_key_env is not None:
                yield Problem(
                    where=f"{where}.api_key_env",
                    what=f"is {endpoint.api_key_env}, and graders run on `{group.name}`, which is "
                    "isolated and gets no secret",
                    fix=f"Set isolated to false for `{group.name}`, or put an endpoint without a "
                    "key between them and the judge.",
                )
            if not group.allow_egress:
                yield Problem(
                    where=f"{where}.base_url",
                    what=f"cannot be reached from `{group.name}`, where graders run: it is "
                    "isolated",
                    fix=f"Add the endpoint's CIDR block to `{group.name}`'s allow_egress, or set "
                    "isolated to false.",
                )


def _check_nvme(cfg: RunConfig, infra: InfraConfig) -> Iterator[Problem]:
    nvme = cfg.trainer.nvme
    writable = (*WRITABLE, infra.storage.mount)
    if nvme is not None and not any(Path(nvme.path).is_relative_to(w) for w in writable):
        yield Problem(
            where="trainer.nvme.path",
            what=f"is {nvme.path}, and pods can write nothing but {', '.join(writable)}",
            fix="Give a folder below /tmp, which lies on the node's own disk.",
        )


@dataclass(slots=True, kw_only=True)
class _Node:
    """What one pod still has."""

    group: GroupConfig
    cpus: float
    gpus: float

    def takes(self, bundle: Bundle) -> bool:
        labels = {GROUP_LABEL: self.group.name, **self.group.labels}
        fits = all(_selects(v, labels.get(k)) for k, v in bundle.labels.items())
        free = bundle.cpus <= self.cpus + 1e-6 and bundle.gpus <= self.gpus + 1e-6
        return fits and free


def _selects(selector: str, value: str | None) -> bool:
    """Whether one of Ray's label selectors, a value or `in(a,b)`, takes a value."""
    if selector.startswith("in(") and selector.endswith(")"):
        return value in selector[3:-1].split(",")
    return value == selector


def _check_room(cfg: RunConfig, infra: InfraConfig) -> Iterator[Problem]:
    """Lay the bundles out over the pods, the largest first, each on the fullest pod that has room:
    what finds none would leave its placement group pending for ever."""
    nodes = [
        _Node(group=g, cpus=g.cpus, gpus=g.gpus)
        for g in infra.groups
        for _ in range(g.max_replicas or g.replicas)
    ]
    bundles = sorted(plan_bundles(place_roles(cfg, infra)), key=lambda b: (-b.gpus, -b.cpus))
    homeless: dict[str, list[Bundle]] = {}
    for bundle in bundles:
        able = [n for n in nodes if n.takes(bundle)]
        if not able:
            homeless.setdefault(bundle.members[0].role, []).append(bundle)
            continue
        best = min(able, key=lambda n: (n.gpus - bundle.gpus, n.cpus - bundle.cpus))
        best.gpus -= bundle.gpus
        best.cpus -= bundle.cpus
    for role, lost in homeless.items():
        yield _no_room(role, lost, infra, nodes)


def _no_room(
    role: str, lost: Sequence[Bundle], infra: InfraConfig, nodes: Sequence[_Node]
) -> Problem:
    one = lost[0]
    allowed = [g for g in infra.groups if _Node(group=g, cpus=math.inf, gpus=math.inf).takes(one)]
    left = ", ".join(f"`{g.name}` {_left(g, nodes)}" for g in allowed) or "no group may take it"
    roles = " + ".join(f"{m.role}" for m in one.members)
    return Problem(
        where=f"{role}.actors",
        what=f"{len(lost)} of its bundles ({roles}: {one.cpus:g} CPUs, {one.gpus:g} GPUs each) "
        f"find no pod with room; left are {left}",
        fix="Raise the group's replicas, cpus or gpus, or lower the recipe's demand.",
    )


def _left(group: GroupConfig, nodes: Sequence[_Node]) -> str:
    own = [n for n in nodes if n.group.name == group.name]
    most: Mapping[str, float] = {
        "CPUs": max(n.cpus for n in own),
        "GPUs": max(n.gpus for n in own),
    }
    return "at most " + " and ".join(f"{v:g} {k}" for k, v in most.items()) + " on one pod"
