"""From a recipe and an infra file to everything that Kubernetes is given.

Imports no torch, vllm or ray; what is checked before anything is written is in
`orchestrator.deploy.infra_check`.
"""

import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import JsonValue

from configs.data_files import find_files
from configs.errors import ConfigError, Problem
from configs.infra import InfraConfig, QueueConfig
from configs.judges import JudgeConfig
from configs.schema import RunConfig, SourceConfig
from configs.validate_infra import validate_infra
from configs.yaml_text import write_document
from orchestrator.deploy.infra_check import (
    DATA_FILES,
    RECIPE_FILE,
    check_recipe_on,
    check_recipe_there,
    place_roles,
    run_directory,
    run_name,
    travelling_files,
)
from orchestrator.deploy.pods import (
    RECIPE_DIR,
    Json,
    autoscaler,
    head_group,
    is_elastic,
    object_labels,
    submitter,
    worker_group,
)

_KUEUE = "kueue.x-k8s.io/"
_DASHBOARD_PORT, _METRICS_PORT = 8265, 8080
_DNS = {
    "to": [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        }
    ],
    "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What Kubernetes is given, in the order in which it should be created."""

    run: str
    """Name of the RayJob or RayCluster."""
    documents: tuple[Json, ...]

    def to_yaml(self) -> str:
        """Return one YAML stream."""
        return "---\n".join(_document(d) for d in self.documents)


def render(cfg: RunConfig, infra: InfraConfig) -> Bundle:
    """Return the bundle of a recipe on an infrastructure.

    Raises:
        ConfigError: every problem of the infra file, and of the recipe on it.
    """
    problems = [
        *validate_infra(infra),
        *check_recipe_there(cfg, infra),
        *check_recipe_on(cfg, infra),
    ]
    if problems:
        raise ConfigError(problems)
    run = run_name(cfg)
    documents = [
        *_accounts(infra),
        *_claims(infra, run),
        *_policies(infra, run),
        *([_pod_monitor(infra, run)] if infra.monitor else []),
    ]
    if infra.kind == "job":
        config_map = _recipe(cfg, infra, run)
        documents += [config_map, _job(cfg, infra, run, _name_of(config_map))]
    else:
        documents.append(_cluster(infra, run))
    return Bundle(run=run, documents=tuple(documents))


def write_bundle(bundle: Bundle, folder: Path) -> list[Path]:
    """Write one file a document and a kustomization that names them; return the files.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        return _write(bundle, folder)
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        problem = Problem(where=f"--out {folder}", what=what, fix="Give another folder.")
        raise ConfigError(problem) from error


def _write(bundle: Bundle, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for document in bundle.documents:
        path = folder / f"{str(document['kind']).lower()}-{_stable_name(document)}.yaml"
        path.write_text(_document(document), encoding="utf-8")
        paths.append(path)
    kustomization: Json = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [path.name for path in paths],
    }
    paths.append(folder / "kustomization.yaml")
    paths[-1].write_text(_document(kustomization), encoding="utf-8")
    return paths


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that a recipe inside a manifest can be read."""


def _as_block(dumper: _Dumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _as_block)


def _document(document: Json) -> str:
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _stable_name(document: Json) -> str:
    """Name of a file: the object's, without the hash that changes with its content."""
    name = _name_of(document)
    return name.rsplit("-", 1)[0] if document["kind"] == "ConfigMap" else name


def _name_of(document: Json) -> str:
    metadata = document["metadata"]
    assert isinstance(metadata, dict)
    return str(metadata["name"])


def _object(
    api: str, kind: str, infra: InfraConfig, name: str, run: str, labels: Json | None = None
) -> Json:
    metadata: Json = {
        "name": name,
        "namespace": infra.namespace,
        "labels": {**object_labels(run), **(labels or {})},
    }
    return {"apiVersion": api, "kind": kind, "metadata": metadata}


def _accounts(infra: InfraConfig) -> Iterator[Json]:
    """A ServiceAccount without a token, for all runs: no pod of ours talks to Kubernetes."""
    if infra.service_account is None:
        metadata: Json = {"name": "braid", "namespace": infra.namespace}
        metadata["labels"] = {"app.kubernetes.io/name": "braid"}
        account: Json = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
        yield {**account, "automountServiceAccountToken": False}


def _claims(infra: InfraConfig, run: str) -> Iterator[Json]:
    storage = infra.storage
    if storage.size is None:
        return
    spec: Json = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class is not None:
        spec["storageClassName"] = storage.storage_class
    yield {**_object("v1", "PersistentVolumeClaim", infra, storage.claim, run), "spec": spec}


def _recipe(cfg: RunConfig, infra: InfraConfig, run: str) -> Json:
    """The recipe and the small files that it names; a change makes another object."""
    files = travelling_files(cfg, infra)
    data: Json = {RECIPE_FILE: write_document(relocate(cfg, infra, files, RECIPE_DIR))}
    for name, path in files.items():
        data[name] = path.read_text(encoding="utf-8")
    digest = hashlib.sha256(repr(sorted(data.items())).encode()).hexdigest()[:10]
    made = _object("v1", "ConfigMap", infra, f"{run}-recipe-{digest}", run)
    return {**made, "immutable": True, "data": data}


def relocate(
    cfg: RunConfig, infra: InfraConfig, files: Mapping[str, Path], folder: str
) -> dict[str, JsonValue]:
    """Return the recipe as the cluster reads it: it joins the cluster, knows its groups, and finds
    its small files in `folder`."""
    placed = place_roles(cfg, infra).model_copy(update={"ray_address": "auto"})
    moved = {path: f"{folder}/{name}" for name, path in files.items()}
    sources: list[SourceConfig] = []
    for source in placed.sources:
        given = {field: getattr(source.data, field) for field in DATA_FILES}
        there = {k: _moved(patterns, moved) for k, patterns in given.items() if patterns}
        data = source.data.model_copy(update=there)
        sources.append(source.model_copy(update={"data": data}))
    judges = {name: _with_anchors(judge, moved) for name, judge in placed.judges.items()}
    placed = placed.model_copy(update={"sources": tuple(sources), "judges": judges})
    if infra.monitor:
        exported = placed.logging.model_copy(update={"prometheus": True})
        placed = placed.model_copy(update={"logging": exported})
    return placed.model_dump(mode="json", exclude_unset=True)


def _moved(patterns: Sequence[str], moved: Mapping[Path, str]) -> tuple[str, ...]:
    """Return paths and globs with those that stand for travelling files written out."""
    there: list[str] = []
    for pattern in patterns:
        files = find_files((pattern,))
        travels = any(path in moved for path in files)
        there += [moved.get(p, str(p)) for p in files] if travels else [pattern]
    return tuple(there)


def _with_anchors(judge: JudgeConfig, moved: Mapping[Path, str]) -> JudgeConfig:
    wanted = judge.calibration
    if wanted is None:
        return judge
    (anchors,) = _moved((wanted.anchors,), moved)
    return judge.model_copy(update={"calibration": wanted.model_copy(update={"anchors": anchors})})


def _policies(infra: InfraConfig, run: str) -> Iterator[Json]:
    """Only the run's own pods reach its pods, for torch's and NCCL's sockets ask for no token; the
    head's dashboard, which does, is open to all. Isolated groups reach the run's own pods, DNS and
    what they are allowed, and nothing else."""
    own: Json = {"podSelector": {"matchLabels": {"app.kubernetes.io/instance": run}}}
    from_own: list[JsonValue] = [{"from": [own]}]
    if infra.monitor:
        from_own.append({"ports": [{"protocol": "TCP", "port": _METRICS_PORT}]})
    yield _policy(infra, run, None, {"policyTypes": ["Ingress"], "ingress": from_own})
    dashboard: list[JsonValue] = [{"ports": [{"protocol": "TCP", "port": _DASHBOARD_PORT}]}]
    yield _policy(infra, run, "head", {"policyTypes": ["Ingress"], "ingress": dashboard})
    for group in infra.groups:
        if group.isolated:
            egress: list[JsonValue] = [{"to": [own]}, dict(_DNS)]
            if group.allow_egress:
                egress.append({"to": [{"ipBlock": {"cidr": c}} for c in group.allow_egress]})
            types: list[JsonValue] = ["Ingress", "Egress"]
            rules: Json = {"policyTypes": types, "ingress": [{"from": [own]}], "egress": egress}
            yield _policy(infra, run, group.name, rules)


def _policy(infra: InfraConfig, run: str, group: str | None, rules: Json) -> Json:
    """Return a NetworkPolicy of all pods of a run, or of one group's."""
    labels: Json = {"app.kubernetes.io/instance": run}
    name = run
    if group is not None:
        labels["braid.dev/group"] = group
        name = f"{run}-{group}"
    made = _object("networking.k8s.io/v1", "NetworkPolicy", infra, name, run)
    return {**made, "spec": {"podSelector": {"matchLabels": labels}, **rules}}


def _pod_monitor(infra: InfraConfig, run: str) -> Json:
    """Scrape every pod that may be reached from outside the run, at the port (8080) that KubeRay
    opens under this name in each Ray container that names no ports."""
    selector: Json = {"matchLabels": {"app.kubernetes.io/instance": run}}
    isolated: list[JsonValue] = [group.name for group in infra.groups if group.isolated]
    if isolated:
        unreachable: Json = {"key": "braid.dev/group", "operator": "NotIn", "values": isolated}
        selector["matchExpressions"] = [unreachable]
    return {
        **_object("monitoring.coreos.com/v1", "PodMonitor", infra, run, run),
        "spec": {"selector": selector, "podMetricsEndpoints": [{"port": "metrics"}]},
    }


def _queue_labels(queue: QueueConfig | None, run: str) -> Json:
    if queue is None:
        return {}
    labels: dict[str, Json] = {
        "kueue": {f"{_KUEUE}queue-name": queue.name},
        "volcano": {"volcano.sh/queue-name": queue.name},
        "yunikorn": {
            "ray.io/gang-scheduling-enabled": "true",
            "yunikorn.apache.org/app-id": run,
            "yunikorn.apache.org/queue": queue.name,
        },
        "kai": {"kai.scheduler/queue": queue.name},
    }
    priority: dict[str, str] = {
        "kueue": f"{_KUEUE}priority-class",
        "volcano": "ray.io/priority-class-name",
    }
    if queue.priority_class is not None:
        return {**labels[queue.scheduler], priority[queue.scheduler]: queue.priority_class}
    return labels[queue.scheduler]


def _cluster_spec(infra: InfraConfig, run: str, config_map: str | None) -> Json:
    spec: Json = {
        "rayVersion": infra.ray_version,
        "authOptions": {"mode": "token", "secretName": infra.auth_secret},
        "headGroupSpec": head_group(infra, run, config_map),
        "workerGroupSpecs": [worker_group(infra, group, run) for group in infra.groups],
    }
    if is_elastic(infra):
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = autoscaler(infra)
    return spec


def _cluster(infra: InfraConfig, run: str) -> Json:
    """A cluster that stays: jobs bring their recipes with them."""
    made = _object("ray.io/v1", "RayCluster", infra, run, run, _queue_labels(infra.queue, run))
    return {**made, "spec": _cluster_spec(infra, run, None)}


def _job(cfg: RunConfig, infra: InfraConfig, run: str, config_map: str) -> Json:
    made = _object("ray.io/v1", "RayJob", infra, run, run, _queue_labels(infra.queue, run))
    retry = infra.retry
    run_dir = shlex.quote(run_directory(cfg, infra))
    runtime_env = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(retry.stop_s)}}
    spec: Json = {
        "entrypoint": f"braid run {RECIPE_DIR}/recipe.yaml --run-dir {run_dir} --resume auto",
        "runtimeEnvYAML": yaml.safe_dump(runtime_env),
        "metadata": {"run": cfg.name, "recipe": config_map},
        "submissionMode": "HTTPMode",
        "backoffLimit": retry.attempts,
        "preRunningDeadlineSeconds": retry.pending_s,
        **_cleanup(infra),
        "rayClusterSpec": _cluster_spec(infra, run, config_map),
    }
    if infra.queue is None:
        submission: Json = {"submissionMode": "K8sJobMode"}
        spec |= {**submission, "submitterPodTemplate": submitter(infra, run)}
    if retry.active_s is not None:
        spec["activeDeadlineSeconds"] = retry.active_s
    return {**made, "spec": spec}


def _cleanup(infra: InfraConfig) -> Json:
    """Deletion rules, or for Kueue, which knows none, the older fields: never both."""
    retry = infra.retry
    if infra.queue is not None and infra.queue.scheduler == "kueue":
        return {
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": retry.keep_after_success_s,
        }
    rules: Sequence[tuple[str, str, int]] = (
        ("DeleteCluster", "SUCCEEDED", retry.keep_after_success_s),
        ("DeleteWorkers", "FAILED", 0),
        ("DeleteCluster", "FAILED", retry.keep_after_failure_s),
    )
    return {
        "deletionStrategy": {
            "deletionRules": [
                {"policy": policy, "condition": {"jobStatus": status, "ttlSeconds": seconds}}
                for policy, status, seconds in rules
            ]
        }
    }
