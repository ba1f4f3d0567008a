"""Pod templates of a rendered cluster: head and worker groups."""

from collections.abc import Mapping

from pydantic import JsonValue

from configs.infra import GroupConfig, InfraConfig, PodConfig
from configs.validate_infra import num_bytes

Json = dict[str, JsonValue]

GROUP_LABEL = "braid-group"
"""Ray node label by which a role finds its worker group."""
RECIPE_DIR = "/etc/braid"
HOME = "/home/braid"
"""Home of all processes; caches of compilers and engines lie below it."""
WRITABLE = ("/tmp", HOME, "/dev/shm")
"""What a pod may write besides the storage; all else is the image, read-only."""
_SCRATCH = {"tmp": "/tmp", "home": HOME}
"""Volumes of a pod's own that end with it, and where they are mounted."""
_API_TOKEN = {"name": "kubernetes", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
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
    if not is_elastic(infra):
        start["no-monitor"] = "true"
    template = _template(infra, infra.head, run, "head", kind="head", config_map=config_map)
    return {"rayStartParams": start, "template": template}


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


def submitter(infra: InfraConfig, run: str) -> Json:
    """Return the pod that hands the job to the head and shows its log; KubeRay gives it command and
    token."""
    small: Json = {"cpu": "1", "memory": "1Gi"}
    container: Json = {
        "name": "ray-job-submitter",
        "image": infra.image,
        "env": [{"name": "HOME", "value": HOME}],
        "resources": {"requests": small, "limits": dict(small)},
        "securityContext": _container_security(infra, gpus=0),
        "volumeMounts": _mounts(_SCRATCH),
    }
    spec: Json = {
        "restartPolicy": "Never",
        **_pod_security(infra),
        "containers": [container],
        "volumes": _scratch(),
        **_scheduling(infra, infra.head),
    }
    return {"metadata": {"labels": object_labels(run)}, "spec": spec}


def autoscaler(infra: InfraConfig) -> Json:
    """Return the options of the autoscaler, the one container that may talk to Kubernetes; KubeRay
    puts it beside the head and gives the ServiceAccount the rights that it needs."""
    mounts: list[JsonValue] = [*_mounts(_SCRATCH), {**_API_TOKEN, "readOnly": True}]
    security = _container_security(infra, gpus=0)
    return {"version": "v2", "securityContext": security, "volumeMounts": mounts}


def _object_store(pod: PodConfig) -> int:
    """Bytes of Ray's object store: what lies in /dev/shm, but for a tenth that others may use."""
    return shm_bytes(pod) * 9 // 10


def is_elastic(infra: InfraConfig) -> bool:
    """Whether some group may grow, which takes an autoscaler."""
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
    mounts = {"shared": infra.storage.mount, "shm": "/dev/shm", **_SCRATCH, "ray-logs": "/tmp/ray"}
    volumes: list[JsonValue] = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": infra.storage.claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _mib(shm_bytes(pod))}},
        *_scratch(),
        {"name": "ray-logs", "emptyDir": {}},
    ]
    if config_map is not None:
        mounts["recipe"] = RECIPE_DIR
        volumes.append({"name": "recipe", "configMap": {"name": config_map}})
    if kind == "head" and is_elastic(infra):
        volumes.append(_api_token())
    group = pod if isinstance(pod, GroupConfig) else None
    gpus = 0 if group is None else group.gpus
    container: Json = {
        "name": f"ray-{kind}",
        "image": infra.image,
        "env": _env(infra, isolated=group is not None and group.isolated, gpus=gpus),
        "resources": _resources(infra, pod, gpus),
        "securityContext": _container_security(infra, gpus),
        "volumeMounts": _mounts(mounts),
    }
    spec: Json = {
        **_pod_security(infra),
        "terminationGracePeriodSeconds": infra.retry.stop_s + _GRACE_S,
        "containers": [container],
        "volumes": volumes,
        **_scheduling(infra, pod),
    }
    if infra.network.host_network and gpus:
        spec["hostNetwork"] = True
        spec["dnsPolicy"] = "ClusterFirstWithHostNet"
    return {"metadata": {"labels": object_labels(run, name)}, "spec": spec}


def _scratch() -> list[JsonValue]:
    return [{"name": name, "emptyDir": {}} for name in _SCRATCH]


def _mounts(paths: Mapping[str, str]) -> list[JsonValue]:
    return [{"name": name, "mountPath": path} for name, path in paths.items()]


def _api_token() -> Json:
    """What Kubernetes mounts by itself into every container of a pod whose ServiceAccount's token
    is not held back; as a volume, the autoscaler alone mounts it."""
    namespace: Json = {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
    authority: Json = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    sources: list[JsonValue] = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": authority},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return {"name": _API_TOKEN["name"], "projected": {"sources": sources}}


def _pod_security(infra: InfraConfig) -> Json:
    return {
        "serviceAccountName": infra.service_account or "braid",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": infra.run_as_user,
            "runAsGroup": infra.run_as_user,
            "fsGroup": infra.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _scheduling(infra: InfraConfig, pod: PodConfig) -> Json:
    """How the image is pulled, and which nodes take the pod."""
    found: Json = {}
    if infra.pull_secrets:
        found["imagePullSecrets"] = [{"name": secret} for secret in infra.pull_secrets]
    if pod.node_selector:
        found["nodeSelector"] = dict(pod.node_selector)
    if pod.tolerations:
        found["tolerations"] = [t.model_dump(exclude_none=True) for t in pod.tolerations]
    if pod.priority_class is not None:
        found["priorityClassName"] = pod.priority_class
    return found


def _env(infra: InfraConfig, *, isolated: bool, gpus: int) -> list[JsonValue]:
    plain = {"HOME": HOME, "HF_HOME": f"{infra.storage.mount}/huggingface", **infra.env}
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
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": capabilities,
    }


def _mib(size: int) -> str:
    return f"{size // 2**20}Mi"
