"""`braid submit`, `status`, `logs` and `stop`: runs on a cluster, from where you sit."""

import asyncio
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from configs.errors import ConfigError, Problem
from configs.infra import InfraConfig
from configs.load import load_infra, load_recipe
from configs.schema import RunConfig
from orchestrator.commands.options import AcceptChanges, Overrides
from orchestrator.commands.output import print_json

if TYPE_CHECKING:
    from orchestrator.deploy.jobs import Client, Job
    from orchestrator.deploy.package import Package

FAILED = 1
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="Dashboard; default http://127.0.0.1:8265."),
]
K8s = Annotated[bool, typer.Option("--k8s", help="On Kubernetes, through kubectl.")]
Namespace = Annotated[
    str | None, typer.Option("--namespace", help="With --k8s; default the current one.")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="Token of the Ray cluster; mode 0600.")
]
Name = Annotated[str, typer.Argument(metavar="RUN", help="Run, or one of its jobs (RUN-2).")]


def submit(
    recipe: Annotated[Path, typer.Argument(help="Recipe: what runs.")],
    infra: Annotated[Path, typer.Option("--infra", help="Infra file: where.")],
    overrides: Overrides = None,
    address: Address = None,
    k8s: K8s = False,
    token_file: TokenFile = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show its log until it ends.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would travel; submit nothing.")
    ] = False,
    accept_changes: AcceptChanges = False,
) -> None:
    """Run a recipe on a Ray cluster or on Kubernetes; the same again does not run twice."""
    _one_place(address, k8s, None, token_file)
    if k8s and accept_changes:
        what = "does not go with --k8s, whose retries would accept them too"
        raise ConfigError(Problem(where="--accept-changes", what=what, fix="Leave it out."))
    cfg, where = load_recipe(recipe, overrides or ()), load_infra(infra)
    if k8s:
        raise typer.Exit(_submit_k8s(cfg, where, follow=follow, dry_run=dry_run))
    from orchestrator.deploy.package import make_package

    package = make_package(cfg, where)
    _warn(cfg, where)
    _show(package)
    if dry_run:
        return
    client = _client(address, token_file, trusted=cfg.allow_unauthenticated_ray)
    job = _submit_job(client, package, where, address, accept_changes=accept_changes)
    if follow:
        raise typer.Exit(_follow(client, job))


def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="One run alone.")] = None,
    address: Address = None,
    k8s: K8s = False,
    namespace: Namespace = None,
    token_file: TokenFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show the runs of a cluster: status, since when, and where they write."""
    _one_place(address, k8s, namespace, token_file)
    if k8s:
        from orchestrator.deploy.kube import find_ray_jobs

        found = find_ray_jobs(namespace, run)
        rows = [
            (j.name, f"{j.status} {j.job_status}", j.started, j.recipe, j.message) for j in found
        ]
        shown, head = [asdict(j) for j in found], ("run", "status", "since", "recipe", "")
    else:
        from orchestrator.deploy.jobs import list_runs

        jobs = list_runs(_client(address, token_file), run)
        rows = [(j.id, j.status, _since(j.started), j.run_dir, j.message) for j in jobs]
        shown, head = [asdict(j) for j in jobs], ("job", "status", "since", "run directory", "")
    if as_json:
        print_json(shown)
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in head:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table if rows else "no runs", markup=False)


def logs(
    run: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    address: Address = None,
    k8s: K8s = False,
    namespace: Namespace = None,
    token_file: TokenFile = None,
) -> None:
    """Show the driver's log of a run."""
    _one_place(address, k8s, namespace, token_file)
    if k8s:
        from orchestrator.deploy.kube import find_ray_job, show_logs

        raise typer.Exit(show_logs(find_ray_job(namespace, run), follow=follow))
    from orchestrator.deploy import jobs

    client = _client(address, token_file)
    job = jobs.find_job(client, run)
    if follow:
        raise typer.Exit(_follow(client, job))
    sys.stdout.write(client.get_job_logs(job.id))


def stop(
    run: Name,
    address: Address = None,
    k8s: K8s = False,
    namespace: Namespace = None,
    token_file: TokenFile = None,
) -> None:
    """Stop a run and wait until its checkpoint is committed; submitting it again resumes it."""
    _one_place(address, k8s, namespace, token_file)
    if k8s:
        from orchestrator.deploy import kube

        kube.stop(kube.find_ray_job(namespace, run))
        _say(f"{run}: stopped, and its pods are freed")
        return
    from orchestrator.deploy import jobs

    client = _client(address, token_file)
    job = jobs.find_job(client, run)
    if job.ended:
        _say(f"{job.id}: has ended already: {job.status}")
        return
    _say(f"{job.id}: stopping; it has {job.stop_s} s to commit a checkpoint")
    job = asyncio.run(jobs.stop(client, job))
    if job.status == "STOPPED" and not jobs.committed(client, job):
        _say(
            f"{job.id}: ended without saying that its checkpoint is committed; the newest one in "
            f"{job.run_dir} is older. If it was killed, raise retry.stop_s in the infra file."
        )
        raise typer.Exit(FAILED)
    _say(f"{job.id}: {job.status}; its checkpoint is in {job.run_dir}")


def _warn(cfg: RunConfig, infra: InfraConfig) -> None:
    """Say what is odd about recipe and infra file."""
    from configs.validate import find_warnings
    from configs.validate_infra import warn_infra
    from orchestrator.deploy.infra_check import warn_recipe_on

    for warning in (*find_warnings(cfg), *warn_infra(infra), *warn_recipe_on(cfg, infra)):
        _say(f"warning: {warning}")


def _show(package: "Package") -> None:
    from orchestrator.deploy.jobs import entrypoint

    for name, content in package.files.items():
        _say(f"  {name:<40} {len(content):>12,} bytes  {package.origins[name]}")
    _say(f"{_files(len(package.files))}, {package.size:,} bytes; hash {package.hash}")
    _say(f"the job: {entrypoint(package)}")


def _submit_job(
    client: "Client",
    package: "Package",
    infra: InfraConfig,
    address: str | None,
    *,
    accept_changes: bool,
) -> "Job":
    from orchestrator.deploy import jobs

    done = jobs.submit(client, package, infra, accept_changes=accept_changes)
    if not done.new:
        _say(f"{done.job.id}: is {done.job.status} already, with the same recipe, data and code")
    elif done.before is None:
        _say(f"{done.job.id}: submitted")
    else:
        _say(f"{done.job.id}: submitted; {done.before.id} was {done.before.status}, and it goes on")
    sys.stdout.write(f"{done.job.id}\n")
    at = f" --address {shlex.quote(address)}" if address else ""
    _say(f"`braid logs {done.job.id} -f{at}` shows it, `braid stop {done.job.id}{at}` ends it")
    return done.job


def _submit_k8s(cfg: RunConfig, infra: InfraConfig, *, follow: bool, dry_run: bool) -> int:
    from orchestrator.deploy import kube
    from orchestrator.deploy.render import render

    bundle = render(cfg, infra)
    _warn(cfg, infra)
    for line in _travelling(bundle.documents):
        _say(line)
    if dry_run:
        sys.stdout.write(bundle.to_yaml())
        return 0
    if kube.apply(bundle, infra):
        _say(f"{bundle.run}: applied in namespace {infra.namespace}")
    else:
        _say(f"{bundle.run}: runs already, with the same recipe and data")
    if not follow:
        _say(f"`braid status {bundle.run} --k8s --namespace {infra.namespace}` shows it")
        return 0
    job = kube.wait_for_job(infra.namespace, bundle.run, infra.retry.pending_s)
    return kube.show_logs(job, follow=True)


def _travelling(documents: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Yield what goes into the ConfigMap, with sizes."""
    for document in documents:
        data = document.get("data")
        if document["kind"] == "ConfigMap" and isinstance(data, dict):
            sizes = {str(name): len(str(text).encode()) for name, text in data.items()}
            yield from (f"  {name:<40} {size:>12,} bytes" for name, size in sizes.items())
            yield f"{_files(len(sizes))}, {sum(sizes.values()):,} bytes"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _client(address: str | None, token_file: Path | None, *, trusted: bool = True) -> "Client":
    """Connect to a job server; unless it is trusted, one that takes jobs from all is refused."""
    from orchestrator.deploy import jobs
    from orchestrator.deploy.ray_auth import find_token

    url = jobs.find_address(address)
    token = find_token(path=token_file)
    if not trusted:
        jobs.check_closed(url, trusted=False)
    parts = urlsplit(url)
    if token and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        _say(f"warning: {url} sends the token in the clear; use https, or kubectl port-forward")
    return jobs.connect(url, token)


def _follow(client: "Client", job: "Job") -> int:
    from orchestrator.deploy import jobs
    from orchestrator.interrupt import Signalled, run_interruptible

    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        ended = run_interruptible(jobs.follow(client, job, show))
    except Signalled:
        _say(f"{job.id} goes on; `braid stop {job.id}` ends it")
        raise
    _say(f"{ended.id}: {ended.status}. {ended.message}")
    return 0 if ended.status == "SUCCEEDED" else FAILED


def _one_place(
    address: str | None, k8s: bool, namespace: str | None, token_file: Path | None
) -> None:
    """Refuse options of the other place."""
    given = (
        {"--address": address, "--token-file": token_file} if k8s else {"--namespace": namespace}
    )
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        what = f"does not go {'with' if k8s else 'without'} --k8s"
        raise ConfigError([Problem(where=name, what=what, fix="Leave it out.") for name in wrong])


def _since(started: float | None) -> str:
    if started is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
