"""Runs as Ray jobs: submitted once, found again by name, followed, and stopped with a checkpoint.

A run NAME is submitted as NAME-1, NAME-2, ...; at most one of them runs, and each goes on from the
newest checkpoint of the run directory. The job carries the hash of all that travelled, so that
submitting the same again says that it runs.
"""

import asyncio
import os
import re
import shlex
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from configs.errors import ConfigError, Problem
from configs.infra import InfraConfig
from orchestrator.deploy.infra_check import RECIPE_FILE
from orchestrator.deploy.package import Package
from orchestrator.deploy.ray_auth import REMEDY, TOKEN_PATH, default_token_path

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable of a job: seconds between Ray's SIGTERM and its SIGKILL, three if it is not set."""
_COMMITTED = "stopped by SIGTERM; --resume auto goes on from here"
"""What a run says last when the signal ended it and its checkpoint is committed."""
_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
_RUN, _HASH, _RUN_DIR, _STOP_S = "braid_run", "braid_hash", "braid_run_dir", "braid_stop_s"
_HTTP_S, _POLL_S, _MARGIN_S = 10.0, 1.0, 60.0


class Client(Protocol):
    """What is used of Ray's JobSubmissionClient."""

    def submit_job(
        self,
        *,
        entrypoint: str,
        runtime_env: dict[str, Any],
        metadata: dict[str, str],
        submission_id: str,
    ) -> str: ...
    def list_jobs(self) -> Sequence[Any]: ...
    def get_job_logs(self, job_id: str) -> str: ...
    def tail_job_logs(self, job_id: str) -> Any: ...
    def stop_job(self, job_id: str) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One submission of a run."""

    id: str
    run: str
    attempt: int
    status: str
    hash: str
    run_dir: str
    stop_s: int
    """Seconds that it gets to commit a checkpoint when it is stopped."""
    message: str
    started: float | None
    """Seconds since the epoch."""

    @property
    def ended(self) -> bool:
        """Whether it neither runs nor will."""
        return self.status in _ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What came of submitting."""

    job: Job
    new: bool
    """False where the same was running already."""
    before: Job | None
    """The submission before it, which ended."""


def find_address(given: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the URL of a cluster's job server: as given, or from Ray's variable, or this
    machine's."""
    address = given or environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            Problem(
                where=f"--address {address}",
                what="is no URL of a Ray dashboard, which takes jobs",
                fix=f"Write it as {DEFAULT_ADDRESS}; `kubectl port-forward` brings it here.",
            )
        )
    return address.rstrip("/")


def check_closed(address: str, *, trusted: bool) -> None:
    """Ask for the list of jobs as anybody could who has no token.

    Raises:
        ConfigError: nobody answers, or a cluster answers that lets everybody in, and the recipe
            does not say that it may.
    """
    try:
        with urllib.request.urlopen(f"{address}/api/jobs/", timeout=_HTTP_S):
            is_open = True
    except urllib.error.HTTPError as error:
        is_open = error.code not in (401, 403)
    except OSError as error:
        why = getattr(error, "reason", error)
        fix = "Give the dashboard's URL, or `kubectl port-forward service/NAME-head-svc 8265`."
        raise ConfigError(
            Problem(where=f"--address {address}", what=f"does not answer: {why}", fix=fix)
        ) from None
    if is_open and not trusted:
        what = "takes jobs from everybody: it has no token authentication"
        raise ConfigError(Problem(where=f"--address {address}", what=what, fix=REMEDY))


def connect(address: str, token: str | None) -> Client:
    """Return a client of the job server.

    Raises:
        ConfigError: it wants a token and there is none, or another one.
    """
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        os.environ.pop(name, None)  # Ray would take them in place of the address
    # What travels was chosen file by file: no ignore rule may take one out.
    os.environ["RAY_RUNTIME_ENV_IGNORE_GITIGNORE"] = "1"
    os.environ["RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES"] = ""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        return JobSubmissionClient(address, headers=headers)
    except AuthenticationError:
        what = "has another token" if token else "wants a token, and you have none"
        fix = f"Put it into a file of mode 0600, and name that in {TOKEN_PATH} or by --token-file"
        raise ConfigError(
            Problem(
                where=f"--address {address}",
                what=what,
                fix=f"{fix}; {default_token_path()} is read too.",
            )
        ) from None
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(Problem(where=f"--address {address}", what=str(error))) from None


def list_runs(client: Client, run: str | None = None) -> list[Job]:
    """Return the submissions of all runs, or of one, by run and attempt."""
    found: list[Job] = []
    for details in client.list_jobs():
        metadata = details.metadata or {}
        match = re.fullmatch(r"(.+)-(\d+)", details.submission_id or "")
        if match is None or metadata.get(_RUN) != match[1] or run not in (None, match[1]):
            continue
        found.append(
            Job(
                id=details.submission_id,
                run=match[1],
                attempt=int(match[2]),
                status=str(getattr(details.status, "value", details.status)),
                hash=metadata.get(_HASH, ""),
                run_dir=metadata.get(_RUN_DIR, ""),
                stop_s=int(metadata.get(_STOP_S, 0)),
                message=" ".join((details.message or "").split()),
                started=None if details.start_time is None else details.start_time / 1000,
            )
        )
    return sorted(found, key=lambda j: (j.run, j.attempt))


def find_job(client: Client, name: str) -> Job:
    """Return a submission by its id, or the newest one of a run by the run's name.

    Raises:
        ConfigError: there is none.
    """
    jobs = list_runs(client)
    for job in (*(j for j in jobs if j.id == name), *reversed(jobs)):
        if name in (job.id, job.run):
            return job
    runs = ", ".join(dict.fromkeys(j.run for j in jobs)) or "none"
    what = f"no run or job of that name; runs there are: {runs}"
    raise ConfigError(Problem(where=name, what=what, fix="`braid status` shows them."))


def submit(
    client: Client, package: Package, infra: InfraConfig, *, accept_changes: bool = False
) -> Submitted:
    """Submit a package, unless the very same runs already.

    Args:
        accept_changes: resume although data, code or model are not those of the last attempt.

    Raises:
        ConfigError: another recipe of that name runs, which has the run directory.
    """
    before = list_runs(client, package.run)
    if running := [j for j in before if not j.ended]:
        return Submitted(job=_same(running[-1], package), new=False, before=None)
    attempt = before[-1].attempt + 1 if before else 1
    submission = f"{package.run}-{attempt}"
    with tempfile.TemporaryDirectory(prefix="braid-submit-") as folder:
        package.write(Path(folder))
        try:
            client.submit_job(
                entrypoint=entrypoint(package, accept_changes=accept_changes),
                runtime_env={"working_dir": folder, "env_vars": environment(infra)},
                metadata={
                    _RUN: package.run,
                    _HASH: package.hash,
                    _RUN_DIR: package.run_dir,
                    _STOP_S: str(infra.retry.stop_s),
                },
                submission_id=submission,
            )
        except RuntimeError as error:
            # Ray refuses an id that it has: somebody submitted in the meantime.
            taken = [j for j in list_runs(client, package.run) if j.id == submission]
            if not taken:
                raise ConfigError(_refused(submission, error)) from error
            return Submitted(job=_same(taken[0], package), new=False, before=None)
    return Submitted(
        job=find_job(client, submission), new=True, before=before[-1] if before else None
    )


def _refused(submission: str, error: RuntimeError) -> Problem:
    said = " ".join(str(error).split())
    fix = "See that the cluster is up: `ray status` on its head."
    if "No available agent" in said:
        fix = "Give each of several clusters on one machine its own --dashboard-agent-listen-port."
    return Problem(where=submission, what=f"the job server refused it: {said}", fix=fix)


def entrypoint(package: Package, *, accept_changes: bool = False) -> str:
    """Return the driver's command. `exec`: Ray's signals reach it without a shell between."""
    run_dir = shlex.quote(package.run_dir)
    command = f"exec braid run {RECIPE_FILE} --run-dir {run_dir} --resume auto"
    return f"{command} --accept-changes" if accept_changes else command


def environment(infra: InfraConfig) -> dict[str, str]:
    """Return the job's variables: the infra file's, and how long a stop waits."""
    return {**infra.env, STOP_WAIT: str(infra.retry.stop_s)}


def _same(job: Job, package: Package) -> Job:
    if job.hash == package.hash:
        return job
    raise ConfigError(
        Problem(
            where=f"name: {package.run}",
            what=f"{job.id} is {job.status} with another recipe, data or code, in {job.run_dir}",
            fix=f"Stop it first (`braid stop {job.id}`), or give this run another name.",
        )
    )


async def follow(client: Client, job: Job, show: Callable[[str], object]) -> Job:
    """Show a job's log as it grows; return the job when it has ended."""
    async for text in client.tail_job_logs(job.id):
        show(text)
    return await _until_ended(client, job, _MARGIN_S, asyncio.sleep)


async def stop(
    client: Client, job: Job, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
) -> Job:
    """Ask a job to stop and wait until it has; return it as it is then.

    Raises:
        ConfigError: it does not end in the time that it has for its checkpoint, and some more.
    """
    if job.ended:
        return job
    client.stop_job(job.id)
    return await _until_ended(client, job, job.stop_s + _MARGIN_S, sleep)


async def _until_ended(
    client: Client, job: Job, limit_s: float, sleep: Callable[[float], Awaitable[object]]
) -> Job:
    deadline = time.monotonic() + limit_s
    while True:
        job = find_job(client, job.id)
        if job.ended:
            return job
        if time.monotonic() > deadline:
            raise ConfigError(
                Problem(
                    where=job.id,
                    what=f"is still {job.status} after {limit_s:.0f} s",
                    fix=f"Look at `braid logs {job.id}`.",
                )
            )
        await sleep(_POLL_S)


def committed(client: Client, job: Job) -> bool:
    """Whether a stopped run said that its checkpoint is committed."""
    return _COMMITTED in client.get_job_logs(job.id)
