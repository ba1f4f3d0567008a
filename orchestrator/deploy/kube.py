"""Runs as RayJobs, through kubectl: applied, shown, followed and stopped."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import ConfigError, Problem
from configs.infra import InfraConfig
from orchestrator.deploy.render import Bundle

_DASHBOARD = "http://127.0.0.1:8265"
_CALL_S, _DELETE_S, _POLL_S = 60, 600, 2.0
_ENDED = ("Complete", "Failed", "ValidationFailed")


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJob:
    """A run on Kubernetes."""

    name: str
    namespace: str
    status: str
    """Of the deployment: Initializing, Running, Retrying, Complete, Failed, ..."""
    job_status: str
    """Of Ray's job in it; empty before there is one."""
    job_id: str
    cluster: str
    recipe: str
    """Name of the ConfigMap with its recipe, which ends with a hash."""
    message: str
    started: str

    @property
    def ended(self) -> bool:
        """Whether it neither runs nor will."""
        return self.status in _ENDED


def find_ray_jobs(namespace: str | None, name: str | None = None) -> list[RayJob]:
    """Return the runs of a namespace, or the one of a name."""
    answer = json.loads(
        _kubectl("get", "rayjobs", *_in(namespace), "-l", "app.kubernetes.io/name=braid", "-ojson")
    )
    jobs = [_ray_job(item) for item in answer["items"]]
    return [j for j in jobs if name in (None, j.name)]


def _ray_job(item: dict[str, Any]) -> RayJob:
    status = item.get("status") or {}
    metadata = item["metadata"]
    return RayJob(
        name=metadata["name"],
        namespace=metadata.get("namespace", "default"),
        status=status.get("jobDeploymentStatus") or "New",
        job_status=status.get("jobStatus") or "",
        job_id=status.get("jobId") or "",
        cluster=status.get("rayClusterName") or "",
        recipe=(item["spec"].get("metadata") or {}).get("recipe", ""),
        message=" ".join((status.get("message") or "").split()),
        started=status.get("startTime") or "",
    )


def find_ray_job(namespace: str | None, name: str) -> RayJob:
    """Return the run of a name.

    Raises:
        ConfigError: there is none.
    """
    found = find_ray_jobs(namespace, name)
    if not found:
        where = f"namespace {namespace}" if namespace else "the current namespace"
        raise ConfigError(
            Problem(
                where=name,
                what=f"no such run in {where}",
                fix="`braid status --k8s` shows them; --namespace names another one.",
            )
        )
    return found[0]


def apply(bundle: Bundle, infra: InfraConfig) -> bool:
    """Create what was rendered, unless the very same runs; return whether it was created.

    A run of that name that has ended makes room: its run directory and checkpoints stay.

    Raises:
        ConfigError: the token's Secret is missing, another recipe of that name runs, or kubectl
            refuses.
    """
    if infra.kind != "job":
        raise ConfigError(
            Problem(
                where="kind",
                what="is cluster: a cluster that stays has no job in it",
                fix="Apply it with `braid render ... | kubectl apply -f -`, and submit to its "
                "dashboard by --address.",
            )
        )
    _check_secret(infra)
    (job,) = (d for d in bundle.documents if d["kind"] == "RayJob")
    recipe: Any = job["spec"]
    wanted = recipe["metadata"]["recipe"]
    for before in find_ray_jobs(infra.namespace, bundle.run):
        if not before.ended and before.recipe == wanted:
            return False
        if not before.ended:
            raise ConfigError(
                Problem(
                    where=f"name: {bundle.run}",
                    what=f"is {before.status} with another recipe ({before.recipe})",
                    fix=f"Stop it first (`braid stop {bundle.run} --k8s --namespace "
                    f"{infra.namespace}`), or give this run another name.",
                )
            )
        _delete(before)
    _kubectl("apply", "-f", "-", given=bundle.to_yaml())
    return True


def _check_secret(infra: InfraConfig) -> None:
    try:
        _kubectl("get", "secret", infra.auth_secret, *_in(infra.namespace), "-oname")
    except ConfigError as error:
        raise ConfigError(
            Problem(
                where="auth_secret",
                what=f"the cluster's token is not there: {error.problems[0].what}",
                fix=f"kubectl create secret generic {infra.auth_secret} -n {infra.namespace} "
                '--from-literal=auth_token="$(openssl rand -hex 32)"',
            )
        ) from None


def wait_for_job(namespace: str, name: str, limit_s: float) -> RayJob:
    """Return a run once Ray's job in it has started, or it has ended.

    Raises:
        ConfigError: its pods find no room in `limit_s` seconds.
    """
    deadline = time.monotonic() + limit_s
    while True:
        job = find_ray_job(namespace, name)
        if job.ended or (job.job_id and job.job_status not in ("", "PENDING")):
            return job
        if time.monotonic() > deadline:
            what = f"is still {job.status} after {limit_s:.0f} s. {job.message}"
            raise ConfigError(Problem(where=name, what=what, fix="See `kubectl describe rayjob`."))
        time.sleep(_POLL_S)


def show_logs(job: RayJob, *, follow: bool) -> int:
    """Write the driver's log to this terminal; return kubectl's exit code."""
    more = ("--follow",) if follow else ()
    return subprocess.run(_on_head(job, "logs", job.job_id, *more), check=False).returncode


def stop(job: RayJob) -> None:
    """Stop a run's job, which commits a checkpoint, and then free its pods."""
    if not job.ended and job.job_id and job.cluster:
        try:
            subprocess.run(_on_head(job, "stop", job.job_id), check=True, timeout=24 * 3600)
        except subprocess.CalledProcessError as error:
            raise ConfigError(
                Problem(
                    where=job.name,
                    what=f"`ray job stop` on its head exited with {error.returncode}; its pods are "
                    "left alone",
                    fix=f"Look at `braid logs {job.name} --k8s`; `kubectl delete rayjob "
                    f"{job.name}` ends it without waiting.",
                )
            ) from None
    _delete(job)


def _delete(job: RayJob) -> None:
    wait = ("--wait=true", f"--timeout={_DELETE_S}s")
    _kubectl("delete", "rayjob", job.name, "-n", job.namespace, *wait, limit_s=_DELETE_S + _CALL_S)


def _on_head(job: RayJob, verb: str, *arguments: str) -> list[str]:
    """Return the command that asks Ray's job server on the head, which has the token."""
    if not job.cluster or not job.job_id:
        raise ConfigError(
            Problem(
                where=job.name,
                what=f"is {job.status}, and its job has not started",
                fix="Wait, or look at its pods: `kubectl get pods -l "
                f"app.kubernetes.io/instance={job.name} -n {job.namespace}`.",
            )
        )
    selector = f"ray.io/cluster={job.cluster},ray.io/node-type=head"
    pods = _kubectl("get", "pods", "-n", job.namespace, "-l", selector, "-oname").split()
    if not pods:
        raise ConfigError(
            Problem(where=job.name, what=f"the head of its cluster {job.cluster} is gone")
        )
    inside = ["ray", "job", verb, "--address", _DASHBOARD, *arguments]
    return ["kubectl", "exec", "-n", job.namespace, pods[0], "-c", "ray-head", "--", *inside]


def _in(namespace: str | None) -> Sequence[str]:
    return () if namespace is None else ("-n", namespace)


def _kubectl(*arguments: str, given: str | None = None, limit_s: float = _CALL_S) -> str:
    """Run kubectl and return what it says; what it complains of is a problem of the input."""
    command = ["kubectl", *arguments]
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except FileNotFoundError:
        fix = "Install kubectl, or submit to a dashboard by --address."
        raise ConfigError(Problem(where="--k8s", what="there is no kubectl", fix=fix)) from None
    except subprocess.TimeoutExpired:
        what = f"no answer in {limit_s:.0f} s"
        raise ConfigError(Problem(where=" ".join(command), what=what)) from None
    if done.returncode:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise ConfigError(Problem(where=" ".join(command[:4]), what=said))
    if given is not None:
        sys.stdout.write(done.stdout)
    return done.stdout
