"""Runs as jobs, against a job server that keeps Ray's rules: ids once, and a status for each."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from configs.errors import ConfigError
from configs.infra import InfraConfig
from configs.load import load_infra
from orchestrator.cli import _main
from orchestrator.deploy import jobs
from orchestrator.deploy.package import Package

ROOT = Path(__file__).parents[3]
STOPPED = "stopped by SIGTERM; --resume auto goes on from here\n"


@dataclass
class FakeJobs:
    """A job server. `stops_after` is how often a stopping job is asked for until it has ended."""

    jobs: dict[str, SimpleNamespace] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    sent: list[dict[str, Any]] = field(default_factory=list)
    stops_after: int = 3
    last_words: str = STOPPED

    def submit_job(self, *, submission_id: str, **job: Any) -> str:
        if submission_id in self.jobs:
            raise RuntimeError(f"500: Job with submission_id {submission_id} already exists.")
        folder = Path(job["runtime_env"]["working_dir"])
        files = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.*")}
        self.sent.append({**job, "files": files})
        self.jobs[submission_id] = SimpleNamespace(
            submission_id=submission_id,
            status="RUNNING",
            metadata=job["metadata"],
            message="Job is\n running.",
            start_time=1_700_000_000_000,
            stopping=None,
        )
        self.logs[submission_id] = "step 1\n"
        return submission_id

    def list_jobs(self) -> list[SimpleNamespace]:
        for name, job in self.jobs.items():
            if job.stopping is not None and job.status == "RUNNING":
                job.stopping -= 1
                if job.stopping <= 0:
                    job.status = "STOPPED"
                    self.logs[name] += self.last_words
        foreign = {"status": "RUNNING", "message": None, "start_time": None}
        return [
            *self.jobs.values(),
            SimpleNamespace(submission_id=None, metadata=None, **foreign),
            SimpleNamespace(submission_id="mine-7", metadata={}, **foreign),
        ]

    def get_job_logs(self, job_id: str) -> str:
        return self.logs[job_id]

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        yield self.logs[job_id]
        self.jobs[job_id].status = "SUCCEEDED"
        yield "step 2\n"

    def stop_job(self, job_id: str) -> bool:
        self.jobs[job_id].stopping = self.stops_after
        return True


def package(content: str = "a: 1\n", run: str = "mine") -> Package:
    files = {"recipe.yaml": content.encode(), "rubrics/a.txt": b"x"}
    origins = dict.fromkeys(files, "here")
    return Package(run=run, run_dir="/shared disk/runs/mine", files=files, origins=origins)


@pytest.fixture
def infra() -> InfraConfig:
    found = load_infra(ROOT / "k8s" / "infra" / "cpu.yaml")
    return found.model_copy(update={"env": {"HF_HUB_OFFLINE": "1"}})


def test_a_job_has_files_a_light_driver_and_time_for_its_checkpoint(infra: InfraConfig):
    server = FakeJobs()
    done = jobs.submit(server, package(), infra)
    assert (done.job.id, done.new, done.before) == ("mine-1", True, None)
    (sent,) = server.sent
    assert sent["files"] == {"recipe.yaml": "a: 1\n", "rubrics/a.txt": "x"}
    assert sent["entrypoint"] == (
        "exec braid run recipe.yaml --run-dir '/shared disk/runs/mine' --resume auto"
    )
    assert sent["runtime_env"]["env_vars"] == {
        "HF_HUB_OFFLINE": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": str(infra.retry.stop_s),
    }
    assert not Path(sent["runtime_env"]["working_dir"]).exists()
    assert set(sent) == {"entrypoint", "runtime_env", "metadata", "files"}, (
        "no GPU, no CPU of its own"
    )
    assert all(isinstance(v, str) for v in sent["metadata"].values())
    assert done.job.message == "Job is running." and done.job.stop_s == infra.retry.stop_s


def test_the_same_does_not_run_twice_and_another_recipe_not_beside_it(infra: InfraConfig):
    server = FakeJobs()
    first = jobs.submit(server, package(), infra)
    again = jobs.submit(server, package(), infra)
    assert (again.job.id, again.new, len(server.sent)) == (first.job.id, False, 1)
    with pytest.raises(ConfigError, match="mine-1 is RUNNING with another recipe") as refused:
        jobs.submit(server, package("a: 2\n"), infra)
    assert "braid stop mine-1" in str(refused.value)
    assert jobs.submit(server, package("a: 2\n", run="other"), infra).job.id == "other-1"


@pytest.mark.parametrize("status", ["FAILED", "STOPPED", "SUCCEEDED"])
def test_after_an_end_the_next_attempt_goes_on(infra: InfraConfig, status: str):
    server = FakeJobs()
    jobs.submit(server, package(), infra)
    server.jobs["mine-1"].status = status
    done = jobs.submit(server, package("a: 2\n"), infra)
    assert (done.job.id, done.new) == ("mine-2", True)
    assert done.before is not None and (done.before.id, done.before.status) == ("mine-1", status)


def test_two_who_submit_at_once_get_one_job(infra: InfraConfig):
    class Racing(FakeJobs):
        def submit_job(self, **job: Any) -> str:
            super().submit_job(**job)
            return super().submit_job(**job)  # somebody was first

    server = Racing()
    done = jobs.submit(server, package(), infra)
    assert (done.job.id, done.new, list(server.jobs)) == ("mine-1", False, ["mine-1"])


def test_a_refused_job_says_why(infra: InfraConfig):
    class Broken(FakeJobs):
        def submit_job(self, **job: Any) -> str:
            raise RuntimeError("No available agent")

    with pytest.raises(ConfigError, match=r"No available agent\n.*--dashboard-agent-listen-port"):
        jobs.submit(Broken(), package(), infra)


def test_runs_are_found_by_name_and_jobs_by_id(infra: InfraConfig):
    server = FakeJobs()
    for run in ("mine", "mine-1", "other"):
        jobs.submit(server, package(run=run), infra)
    server.jobs["mine-1"].status = "FAILED"
    jobs.submit(server, package(), infra)
    assert [j.id for j in jobs.list_runs(server)] == ["mine-1", "mine-2", "mine-1-1", "other-1"]
    assert [j.id for j in jobs.list_runs(server, "mine")] == ["mine-1", "mine-2"]
    assert jobs.find_job(server, "mine").id == "mine-2"
    assert jobs.find_job(server, "mine-1").id == "mine-1", "an id comes before a run's name"
    with pytest.raises(ConfigError, match="runs there are: mine, mine-1, other"):
        jobs.find_job(server, "yours")


async def _no_wait(seconds: float) -> None:
    await asyncio.sleep(0)


def test_stop_waits_until_the_job_has_ended(infra: InfraConfig, monkeypatch: pytest.MonkeyPatch):
    server = FakeJobs()
    job = jobs.submit(server, package(), infra).job
    job = asyncio.run(jobs.stop(server, job, _no_wait))
    assert job.status == "STOPPED" and jobs.committed(server, job)
    assert asyncio.run(jobs.stop(server, job, _no_wait)) is job

    server = FakeJobs(stops_after=10**9)
    job = jobs.submit(server, package(), infra).job
    ticks = iter(range(0, 10**6, 50))
    monkeypatch.setattr(jobs.time, "monotonic", lambda: float(next(ticks)))
    with pytest.raises(ConfigError, match=f"still RUNNING after {infra.retry.stop_s + 60} s"):
        asyncio.run(jobs.stop(server, job, _no_wait))


@contextmanager
def job_server(code: int) -> Iterator[str]:
    """Answer every request with one status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_a_server_that_takes_jobs_from_all_is_refused_unless_trusted():
    with job_server(401) as address:
        jobs.check_closed(address, trusted=False)
    with job_server(200) as address:
        with pytest.raises(ConfigError) as refused:
            jobs.check_closed(address, trusted=False)
        jobs.check_closed(address, trusted=True)
    (problem,) = refused.value.problems
    assert "no token authentication" in problem.what and "RAY_AUTH_MODE=token" in problem.fix
    with pytest.raises(ConfigError, match="does not answer"):
        jobs.check_closed("http://127.0.0.1:1", trusted=False)


def test_addresses():
    assert jobs.find_address(None, {}) == jobs.DEFAULT_ADDRESS
    named = {"RAY_API_SERVER_ADDRESS": "https://ray.example.com/"}
    assert jobs.find_address(None, named) == "https://ray.example.com"
    assert jobs.find_address("http://a:1", named) == "http://a:1"
    for wrong in ("auto", "10.0.0.1:6379", "ray://a:10001"):
        with pytest.raises(ConfigError, match="is no URL of a Ray dashboard"):
            jobs.find_address(wrong, {})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeJobs:
    """The commands talk to a fake server, and no token of this machine is read."""
    fake = FakeJobs()
    monkeypatch.setattr(jobs, "connect", lambda address, token: fake)
    monkeypatch.setattr(jobs, "check_closed", lambda address, trusted: None)
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    monkeypatch.setenv("HOME", str(tmp_path))
    return fake


SUBMIT = (
    "submit",
    str(ROOT / "configs/recipes/quickstart.yaml"),
    "--infra",
    str(ROOT / "k8s/infra/cpu.yaml"),
    "--set",
    "model.path=/shared/models/tiny",
)


def test_the_commands_from_submit_to_stop(server: FakeJobs, capsys: pytest.CaptureFixture[str]):
    assert _main([*SUBMIT, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert not server.jobs and "recipe.yaml" in said and "/shared/runs/quickstart" in said

    assert _main([*SUBMIT]) == 0
    shown = capsys.readouterr()
    assert shown.out == "quickstart-1\n" and "braid logs quickstart-1 -f" in shown.err
    assert _main([*SUBMIT]) == 0
    assert "is RUNNING already" in capsys.readouterr().err

    assert _main(["status", "--json"]) == 0
    (job,) = json.loads(capsys.readouterr().out)
    assert (job["id"], job["status"]) == ("quickstart-1", "RUNNING")
    assert _main(["logs", "quickstart"]) == 0
    assert capsys.readouterr().out == "step 1\n"

    assert _main(["stop", "quickstart"]) == 0
    assert "STOPPED; its checkpoint is in /shared/runs/quickstart" in capsys.readouterr().err
    assert _main(["stop", "quickstart"]) == 0
    assert "has ended already: STOPPED" in capsys.readouterr().err

    assert _main([*SUBMIT, "--follow", "--accept-changes"]) == 0
    assert server.sent[-1]["entrypoint"].endswith(" --resume auto --accept-changes")
    shown = capsys.readouterr()
    assert shown.out == "quickstart-2\nstep 1\nstep 2\n"
    assert "quickstart-1 was STOPPED, and it goes on" in shown.err
    assert "quickstart-2: SUCCEEDED" in shown.err
    assert _main(["status"]) == 0
    assert "quickstart-2" in capsys.readouterr().out


def test_a_run_that_was_killed_instead_is_said(
    server: FakeJobs, capsys: pytest.CaptureFixture[str]
):
    server.last_words = ""
    assert _main([*SUBMIT]) == 0
    assert _main(["stop", "quickstart-1"]) == 1
    assert "raise retry.stop_s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--k8s", "--address", "http://a:1"], "--address: does not go with --k8s"),
        (["--set", "seed=x"], "seed"),
        (["--set", "rollout.actors.cpus=50"], "no pod with room"),
    ],
)
def test_bad_input_submits_nothing(
    server: FakeJobs, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
):
    assert _main([*SUBMIT, *arguments]) == 2
    assert says in " ".join(capsys.readouterr().err.split()) and not server.jobs
