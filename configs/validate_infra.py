"""Checks of an infra file across fields: among them the rules of KubeRay's controller that its
schema cannot hold."""

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

from configs.errors import Problem
from configs.infra import GroupConfig, InfraConfig, PodConfig
from configs.validate_secrets import is_secret
from configs.versions import pinned

MAX_JOB_NAME = 47
"""Longest name of a RayJob; a RayCluster may have 53 characters."""
MAX_CLUSTER_NAME = 53
_MAX_KUEUE_GROUPS = 7
_OURS = "braid.dev/"
_RESERVED_ENV = {
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_REDIS_ADDRESS",
    "REDIS_PASSWORD",
    "CUDA_VISIBLE_DEVICES",
    "HOME",
}
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL)", re.IGNORECASE)
_LABEL_KEY = re.compile(
    r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
)
_LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")
_SYSTEM = (
    *("/", "/dev", "/etc", "/proc", "/sys", "/tmp", "/usr", "/bin", "/lib", "/var", "/root"),
    *("/opt", "/opt/braid", "/home", "/home/braid", "/etc/braid", "/tmp/ray"),
)
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def num_bytes(quantity: str) -> int:
    """Return the bytes of a Kubernetes quantity with a binary unit."""
    return int(float(quantity[:-2]) * _UNITS[quantity[-2:]])


def validate_infra(infra: InfraConfig) -> list[Problem]:
    """Return every problem that shows without a recipe."""
    return [
        *_check_groups(infra),
        *(p for where, pod in _pods(infra) for p in _check_pod(where, pod)),
        *_check_storage(infra),
        *_check_env(infra),
        *_check_queue(infra),
        *_check_network(infra),
        *_check_versions(infra),
    ]


def warn_infra(infra: InfraConfig) -> list[Problem]:
    """Return what is allowed and probably not meant."""
    found: list[Problem] = []
    tag = infra.image.rsplit("/", 1)[-1]
    if "@" not in tag and (":" not in tag or tag.endswith(":latest")):
        found.append(
            Problem(
                where="image",
                what=f"{infra.image!r} names no fixed version: a retry may run other code",
                fix="Name a tag, or better a digest (@sha256:...).",
            )
        )
    if infra.network.profile != "tcp" and not any(g.gpus for g in infra.groups):
        found.append(
            Problem(where="network.profile", what=f"is {infra.network.profile}, without any GPU")
        )
    return found


def _pods(infra: InfraConfig) -> Iterator[tuple[str, PodConfig]]:
    yield "head", infra.head
    for group in infra.groups:
        yield f"groups.{group.name}", group


def _check_groups(infra: InfraConfig) -> Iterator[Problem]:
    for name, count in Counter(g.name for g in infra.groups).items():
        if count > 1:
            yield Problem(
                where="groups",
                what=f"{count} groups are called `{name}`",
                fix="Give each a name of its own.",
            )
        if name in ("head", "headgroup"):
            yield Problem(
                where=f"groups.{name}.name",
                what="is what KubeRay calls the head's own group",
                fix="Name it after the roles it holds.",
            )
    owners: dict[str, str] = {}
    for group in infra.groups:
        for role in group.roles:
            if role in owners:
                yield Problem(
                    where=f"groups.{group.name}.roles",
                    what=f"has {role}, as `{owners[role]}` does",
                    fix="Give each role to one group; one group may have several.",
                )
            owners.setdefault(role, group.name)
        yield from _check_group(group)


def _check_group(group: GroupConfig) -> Iterator[Problem]:
    at = f"groups.{group.name}"
    if group.max_replicas is not None and group.max_replicas < group.replicas:
        yield Problem(
            where=f"{at}.max_replicas",
            what=f"is {group.max_replicas}, below replicas={group.replicas}",
            fix="Raise it, or remove it for a group that does not grow.",
        )
    if len(set(group.roles)) < len(group.roles):
        yield Problem(where=f"{at}.roles", what="names a role twice", fix="Name it once.")
    for key, value in group.labels.items():
        if key.startswith(("ray.io/", _OURS)) or key == "braid-group":
            yield Problem(
                where=f"{at}.labels.{key}",
                what="is reserved: Ray or Braid sets it",
                fix="Take another key.",
            )
        elif not _LABEL_KEY.match(key) or not _LABEL_VALUE.match(value):
            yield _no_label(f"{at}.labels.{key}", value)
    if group.allow_egress and not group.isolated:
        yield Problem(
            where=f"{at}.allow_egress",
            what="does nothing: the group is not isolated and may reach everything",
            fix="Set isolated to true, or remove the line.",
        )
    for block in group.allow_egress:
        try:
            ipaddress.ip_network(block)
        except ValueError as error:
            yield Problem(
                where=f"{at}.allow_egress",
                what=f"{block!r} is no CIDR block: {error}",
                fix="Write it as 10.0.0.0/16; NetworkPolicies know no host names.",
            )


def _check_pod(where: str, pod: PodConfig) -> Iterator[Problem]:
    memory = num_bytes(pod.memory)
    if memory < 2**30:
        what = f"is {pod.memory}; Ray alone needs 1Gi"
        yield Problem(where=f"{where}.memory", what=what, fix="Raise it.")
    if pod.shm is not None and num_bytes(pod.shm) >= memory:
        yield Problem(
            where=f"{where}.shm",
            what=f"is {pod.shm} and counts against memory, which is {pod.memory}",
            fix="Raise memory, or lower shm.",
        )
    for key, value in pod.node_selector.items():
        if not _LABEL_KEY.match(key) or not _LABEL_VALUE.match(value):
            yield _no_label(f"{where}.node_selector.{key}", value)
    for toleration in pod.tolerations:
        if (toleration.operator == "Equal") != (toleration.value is not None):
            yield Problem(
                where=f"{where}.tolerations.{toleration.key}",
                what="`Equal` needs a value, and `Exists` has none",
                fix="Give `operator: Equal` with a value, or `Exists` without.",
            )


def _no_label(where: str, value: str) -> Problem:
    """Return what is wrong with a label's key or value."""
    return Problem(
        where=where,
        what=f"{value!r} is no valid label",
        fix="Keys and values have at most 63 letters, digits, `-`, `_` and `.`, and start and end "
        "with a letter or digit; a key may have a DNS name and `/` before it.",
    )


def _check_storage(infra: InfraConfig) -> Iterator[Problem]:
    storage = infra.storage
    mount = PurePosixPath(storage.mount)
    if not mount.is_absolute() or ".." in mount.parts:
        what = f"{storage.mount!r} is no absolute path"
        yield Problem(where="storage.mount", what=what, fix="Write it as /shared.")
    elif str(mount) != storage.mount:
        what = f"{storage.mount!r} is not how the path is written in manifests"
        yield Problem(where="storage.mount", what=what, fix=f"Write it as {mount}.")
    elif str(mount) in _SYSTEM or mount.is_relative_to("/dev"):
        yield Problem(
            where="storage.mount",
            what=f"{storage.mount} would hide a folder of the image",
            fix="Take one of its own, e.g. /shared.",
        )
    if storage.storage_class is not None and storage.size is None:
        yield Problem(
            where="storage.storage_class",
            what="does nothing: no claim is created without a size",
            fix="Give storage.size, or remove the line.",
        )


def _check_env(infra: InfraConfig) -> Iterator[Problem]:
    for name in sorted({*infra.env, *infra.secrets} & _RESERVED_ENV):
        kind = "env" if name in infra.env else "secrets"
        yield Problem(
            where=f"{kind}.{name}",
            what="is set by KubeRay, Ray or Braid itself",
            fix="Remove the line.",
        )
    for name in sorted(set(infra.env) & set(infra.secrets)):
        yield Problem(where=f"env.{name}", what="is among secrets too", fix="Remove one.")
    for name, value in infra.env.items():
        if name not in _RESERVED_ENV and (_SECRET.search(name) or is_secret(value)):
            yield Problem(
                where=f"env.{name}",
                what="looks like a secret, and would stand in the manifest in plain text",
                fix=f"Write `secrets: {{{name}: {{secret: NAME, key: KEY}}}}`.",
            )


def _check_queue(infra: InfraConfig) -> Iterator[Problem]:
    if infra.queue is None:
        return
    elastic = [g.name for g in infra.groups if g.max_replicas is not None]
    scheduler = infra.queue.scheduler
    if scheduler == "kueue":
        if len(infra.groups) > _MAX_KUEUE_GROUPS:
            yield Problem(
                where="groups",
                what=f"{len(infra.groups)} groups; Kueue admits at most {_MAX_KUEUE_GROUPS}",
                fix="Put roles with pods alike into one group, or take another queue.",
            )
        for name in elastic:
            yield Problem(
                where=f"groups.{name}.max_replicas",
                what="makes the group elastic, and Kueue admits no autoscaling cluster",
                fix="Remove it, or take another queue.",
            )
    if infra.queue.priority_class is not None and scheduler in ("yunikorn", "kai"):
        yield Problem(
            where="queue.priority_class",
            what=f"has no label of its own with {scheduler}",
            fix="Give the head and groups a priority_class instead.",
        )


def _check_network(infra: InfraConfig) -> Iterator[Problem]:
    network = infra.network
    given = network.model_fields_set
    if network.profile == "tcp":
        for field in ("resource", "count"):
            if field in given:
                yield Problem(
                    where=f"network.{field}",
                    what="belongs to the profiles rdma and efa",
                    fix="Set network.profile, or remove the line.",
                )
    for group in infra.groups:
        if network.host_network and group.isolated and group.gpus:
            yield Problem(
                where=f"groups.{group.name}.isolated",
                what="cannot hold with network.host_network: NetworkPolicies do not apply to it",
                fix="Set one of them to false.",
            )


def _check_versions(infra: InfraConfig) -> Iterator[Problem]:
    wanted = pinned("ray")
    if wanted is not None and infra.ray_version != wanted:
        yield Problem(
            where="ray_version",
            what=f"is {infra.ray_version}, and this Braid runs on Ray {wanted}",
            fix=f"Build the image with it, and set ray_version to {wanted}.",
        )
