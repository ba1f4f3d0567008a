"""Where a recipe runs on Kubernetes: nodes, storage, queue, secrets. The recipe says what runs.

Defaults live on these fields and nowhere else; checks across fields are in
`configs.validate_infra`.
"""

from typing import Annotated, Literal

from pydantic import Field

from configs.base import Config, EnvName, NonNegativeInt, PositiveInt, matching

DnsName = Annotated[
    str,
    matching(
        r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$",
        "a Kubernetes name has at most 63 small letters, digits and `-`, starts with a letter and "
        "does not end in `-`",
    ),
]
Quantity = Annotated[
    str,
    matching(
        r"^[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti)$",
        "a quantity is a number and one of Ki, Mi, Gi and Ti, e.g. 64Gi",
    ),
]
Role = Literal["rollout", "reward", "reference", "trainer", "critic", "judge"]
Labels = dict[str, str]


class TolerationConfig(Config):
    """A taint that pods of a group may be scheduled on."""

    key: str
    """Key of the taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """`Equal` compares `value`."""
    value: str | None = None
    """Value of the taint, for `Equal`."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; empty tolerates all of its effects."""


class PodConfig(Config):
    """A kind of pod, which is a node to Ray."""

    cpus: PositiveInt
    """CPU cores of the pod: its request and its limit."""
    memory: Quantity
    """Memory of the pod: its request and its limit, `/dev/shm` included."""
    shm: Quantity | None = None
    """Size of `/dev/shm`, where Ray's object store lies; empty takes a third of the memory."""
    node_selector: Labels = {}
    """Kubernetes labels that its node must carry."""
    tolerations: tuple[TolerationConfig, ...] = ()
    """Taints of nodes that it accepts."""
    priority_class: DnsName | None = None
    """PriorityClass of its pods."""


class GroupConfig(PodConfig):
    """A group of equal worker pods."""

    name: DnsName
    """Name of the worker group."""
    roles: tuple[Role, ...] = ()
    """Actors that are placed here and nowhere else; empty takes any that no group names."""
    replicas: PositiveInt = 1
    """Pods."""
    max_replicas: PositiveInt | None = None
    """Pods at most, which makes the group elastic; empty keeps `replicas`."""
    gpus: NonNegativeInt = 0
    """GPUs of each pod."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name under which the cluster counts its GPUs."""
    labels: Labels = {}
    """Ray node labels, for recipes that select nodes by `*.actors.labels`."""
    isolated: bool = False
    """Forbid its pods all network but the run's own pods and DNS: for graders that run code."""
    allow_egress: tuple[str, ...] = ()
    """CIDR blocks that an isolated group may reach besides, e.g. those of a judge's endpoint."""


class StorageConfig(Config):
    """Storage that all pods share: run directory, checkpoints, models and data."""

    claim: DnsName
    """PersistentVolumeClaim."""
    mount: str = "/shared"
    """Where it is mounted in every pod."""
    size: Quantity | None = None
    """Size of a claim to create; empty uses one that exists."""
    storage_class: str | None = None
    """StorageClass of a claim to create; empty takes the cluster's default."""


class SecretConfig(Config):
    """An environment variable that comes from a Kubernetes Secret."""

    secret: DnsName
    """Name of the Secret."""
    key: Annotated[
        str,
        matching(r"^[-._a-zA-Z0-9]+$", "a Secret's key has letters, digits, `-`, `_` and `.`"),
    ]
    """Its key."""


class QueueConfig(Config):
    """Who admits the run and starts its pods together."""

    scheduler: Literal["kueue", "volcano", "yunikorn", "kai"]
    """Queueing system that the cluster runs."""
    name: DnsName
    """Queue: Kueue's LocalQueue, Volcano's, YuniKorn's or KAI's."""
    priority_class: DnsName | None = None
    """Priority of the workload, in the words of the scheduler."""


class NetworkConfig(Config):
    """How GPUs of different nodes talk."""

    profile: Literal["tcp", "rdma", "efa"] = "tcp"
    """`rdma`: a device plugin's resource and locked memory; `efa`: the same on AWS."""
    resource: str | None = None
    """Resource that each GPU pod asks for; empty takes the profile's usual one."""
    count: PositiveInt = 1
    """How many of it each GPU pod asks for."""
    interface: str | None = None
    """Network interface of NCCL's and gloo's sockets; empty lets them find it."""
    host_network: bool = False
    """Let GPU pods use their node's network."""


class RetryConfig(Config):
    """What happens when the run fails, and to the pods when it ends."""

    attempts: NonNegativeInt = 2
    """Times the job is started again on a fresh cluster; it resumes from the newest checkpoint."""
    pending_s: PositiveInt = 3600
    """Seconds that pods may wait for room before the job is called failed."""
    active_s: PositiveInt | None = None
    """Seconds after which the job is stopped; empty never does."""
    stop_s: PositiveInt = 300
    """Seconds that a stopped run gets to commit a checkpoint."""
    keep_after_success_s: NonNegativeInt = 60
    """Seconds that pods stay after success."""
    keep_after_failure_s: NonNegativeInt = 3600
    """Seconds that the head stays after failure, for its logs; workers go at once."""


class InfraConfig(Config):
    """A cluster for one run."""

    name: DnsName
    """Name of this kind of cluster."""
    namespace: DnsName = "default"
    """Kubernetes namespace."""
    kind: Literal["job", "cluster"] = "job"
    """`job`: a cluster of the run's own, gone with it; `cluster`: one that stays for many jobs."""
    image: Annotated[str, Field(min_length=1)]
    """Image of all pods, with Braid and the recipe's own Python modules in it."""
    pull_secrets: tuple[DnsName, ...] = ()
    """Secrets with which the image is pulled."""
    ray_version: str
    """Ray's version in the image."""
    head: PodConfig
    """The head: Ray's control and the driver. No actor is placed on it."""
    groups: Annotated[tuple[GroupConfig, ...], Field(min_length=1)]
    """Worker groups."""
    storage: StorageConfig
    """Shared storage."""
    env: dict[EnvName, str] = {}
    """Environment variables of all pods; never a secret."""
    secrets: dict[EnvName, SecretConfig] = {}
    """Environment variables of the head, and of groups that are not isolated."""
    auth_secret: DnsName
    """Secret whose key `auth_token` everybody who talks to this Ray cluster must know."""
    service_account: DnsName | None = None
    """ServiceAccount of the pods; empty creates one without any right."""
    queue: QueueConfig | None = None
    """Admission; empty lets pods be scheduled one by one."""
    network: NetworkConfig = NetworkConfig()
    """Network between GPU nodes."""
    retry: RetryConfig = RetryConfig()
    """Failure and clean-up."""
    monitor: bool = False
    """Write a PodMonitor for the Prometheus operator."""
    run_as_user: PositiveInt = 1000
    """User id of all processes."""
