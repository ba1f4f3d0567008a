"""Pod templates of a rendered cluster: head and worker groups."""

from collections.abc import Mapping

from pydantic import JsonValue

from configs.infra import GroupConfig, InfraConfig, PodConfig
from configs.validate_infra import num_bytes

Json = dict[str, JsonValue]

GROUP_LABEL = "braid-group"
"""Ray node label by which a role finds its worker group."""
RECIPE_DIR = "/etc/braid"
_RDMA = {"rdma": "rdma/hca", "efa": "vpc.amazonaws.com/efa"}
_GRACE_S = 30


def object_labels(run: str, group: str | None = None) -> Json:
    """Return the Kubernetes labels of a run's objects, or of one group's pods."""
    labels: Json = {
        "app.kubernetes.io/name": "braid",
        "app.kubernetes.io/instance": run,
        "app.kubernetes.io/managed-by": "braid-render",
    }
    return labels if group is None else {**labels, "braid.dev/group": group}


def head_group(infra: InfraConfig, run: str, config_map: str | None) -> Json:
    """Return the head: control and driver, no actor."""
    start: Json = {"dashboard-host": "0.0.0.0", "num-cpus": "0"}
    if not _elastic(infra):
        start["no-monitor"] = "true"
    return {
        "rayStartParams": start,
        "template": _template(infra, infra.head, run, "head", kind="head", config_map=config_map),
    }


def worker_group(infra: InfraConfig, group: GroupConfig, run: str) -> Json:
    """Return one worker group."""
    return {
        "groupName": group.name,
        "replicas": group.replicas,
        "minReplicas": group.replicas,
        "maxReplicas": group.max_replicas or group.replicas,
        "labels": {GROUP_LABEL: group.name, **group.labels},
        "rayStartParams": {"object-store-memory": str(_object_store(group))},
        "template": _template(infra, group, run, group.name, kind="worker"),
    }


def shm_bytes(pod: PodConfig) -> int:
    """Return the size of a pod's `/dev/shm`: as given, or a third of its memory, in whole MiB."""
    if pod.shm is not None:
        return num_bytes(pod.shm)
    return num_bytes(pod.memory) // 3 // 2**20 * 2**20


def _object_store(pod: PodConfig) -> int:
    """Bytes of Ray's object store: what lies in /dev/shm, but for a tenth that others may use."""
    return shm_bytes(pod) * 9 // 10


def _elastic(infra: InfraConfig) -> bool:
    return any(g.max_replicas is not None for g in infra.groups)


def _template(
    infra: InfraConfig,
    pod: PodConfig,
    run: str,
    name: str,
    *,
    kind: str,
    config_map: str | None = None,
) -> Json:
    mounts = {"shared": infra.storage.mount, "shm": "/dev/shm", "ray-logs": "/tmp/ray"}
    volumes: list[JsonValue] = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": infra.storage.claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _mib(shm_bytes(pod))}},
        {"name": "ray-logs", "emptyDir": {}},
    ]
    if config_map is not None:
        mounts["recipe"] = RECIPE_DIR
        volumes.append({"name": "recipe", "configMap": {"name": config_map}})
    group = pod if isinstance(pod, GroupConfig) else None
    gpus = 0 if group is None else group.gpus
    spec: Json = {
        "serviceAccountName": infra.service_account or "braid",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": infra.retry.stop_s + _GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": infra.run_as_user,
            "runAsGroup": infra.run_as_user,
            "fsGroup": infra.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": f"ray-{kind}",
                "image": infra.image,
                "env": _env(infra, isolated=group is not None and group.isolated, gpus=gpus),
                "resources": _resources(infra, pod, gpus),
                "securityContext": _container_security(infra, gpus),
                "volumeMounts": [{"name": n, "mountPath": m} for n, m in mounts.items()],
            }
        ],
        "volumes": volumes,
    }
    if infra.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in infra.pull_secrets]
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        spec["tolerations"] = [t.model_dump(exclude_none=True) for t in pod.tolerations]
    if pod.priority_class is not None:
        spec["priorityClassName"] = pod.priority_class
    if infra.network.host_network and gpus:
        spec["hostNetwork"] = True
        spec["dnsPolicy"] = "ClusterFirstWithHostNet"
    return {"metadata": {"labels": object_labels(run, name)}, "spec": spec}


def _env(infra: InfraConfig, *, isolated: bool, gpus: int) -> list[JsonValue]:
    plain = {"HF_HOME": f"{infra.storage.mount}/huggingface", **infra.env}
    if infra.network.interface is not None and gpus:
        plain["NCCL_SOCKET_IFNAME"] = plain["GLOO_SOCKET_IFNAME"] = infra.network.interface
    if infra.network.profile == "efa" and gpus:
        plain["FI_PROVIDER"] = "efa"
    given: list[JsonValue] = [{"name": n, "value": v} for n, v in sorted(plain.items())]
    secrets: Mapping[str, object] = {} if isolated else infra.secrets
    for name in sorted(secrets):
        at = infra.secrets[name]
        reference: Json = {"secretKeyRef": {"name": at.secret, "key": at.key}}
        given.append({"name": name, "valueFrom": reference})
    return given


def _resources(infra: InfraConfig, pod: PodConfig, gpus: int) -> Json:
    """Requests are limits: no pod is evicted for what it was promised."""
    amounts: Json = {"cpu": str(pod.cpus), "memory": pod.memory}
    if isinstance(pod, GroupConfig) and gpus:
        amounts[pod.gpu_resource] = str(gpus)
        profile = infra.network.profile
        if profile != "tcp":
            resource = infra.network.resource or _RDMA[profile]
            amounts[resource] = str(infra.network.count)
    return {"requests": amounts, "limits": dict(amounts)}


def _container_security(infra: InfraConfig, gpus: int) -> Json:
    capabilities: Json = {"drop": ["ALL"]}
    if infra.network.profile != "tcp" and gpus:
        capabilities["add"] = ["IPC_LOCK"]
    return {"allowPrivilegeEscalation": False, "capabilities": capabilities}


def _mib(size: int) -> str:
    return f"{size // 2**20}Mi"
