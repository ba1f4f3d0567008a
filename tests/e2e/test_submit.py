"""Jobs on a real Ray cluster of three nodes with a token: what runs, stops, dies and goes on."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from actors.processes import descendants, identify
from configs.versions import pinned

ROOT = Path(__file__).parents[2]
BRAID = Path(sys.executable).with_name("braid")
RAY = Path(sys.executable).with_name("ray")
pytestmark = pytest.mark.timeout(600)
START_ATTEMPTS = 4
GRADER = """
from pathlib import Path

def brief(rollout, task, limits):
    return float(len(rollout.last_text) < int(Path(limits).read_text()))
"""


class RayCluster:
    """`ray start` nodes with ports of their own, so that other clusters may run beside it."""

    def __init__(self, folder: Path):
        self.token = folder / "token"
        self.token.touch(mode=0o600)
        self.token.write_text("0123456789abcdef" * 4)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            "PATH": f"{BRAID.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_WAIT_POLICY": "passive",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "PYTHONUNBUFFERED": "1",
        }
        self.url = ""
        self._folder = folder
        self._nodes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the head, which takes no actor, and a node for each group."""
        control, dashboard, client = free_ports(3)
        self.url = f"http://127.0.0.1:{dashboard}"
        named = {"": control, "dashboard-": dashboard, "ray-client-server-": client}
        head = ("--head", "--num-cpus=0", *(f"--{n}port={p}" for n, p in named.items()))
        workers = [
            (f"--address=127.0.0.1:{control}", "--num-cpus=1", f"--labels=braid-group={group}")
            for group in ("learn", "play")
        ]
        for options in (head, *workers):
            self._start(*options)

    def _start(self, *options: str) -> None:
        """Start a node; on a busy machine Ray's own deadlines end some before they are up."""
        for _ in range(START_ATTEMPTS):
            if self._try_to_start(*options):
                return
        raise AssertionError(self.said())

    def _try_to_start(self, *options: str) -> bool:
        number = len(self._nodes)
        names = ("dashboard-agent-listen", "dashboard-agent-grpc", "metrics-export")
        ports = zip((*names, "runtime-env-agent"), free_ports(4), strict=True)
        own = [f"--{name}-port={port}" for name, port in ports]
        workers = ["--min-worker-port=0", "--max-worker-port=0"]
        # Of its own: nodes that share one delete each other's copy of a job's working directory.
        temporary = [f"--temp-dir={self._folder}/ray{number}"]
        store = "--object-store-memory=100000000"
        with (self._folder / f"node{number}.txt").open("w") as out:
            self._nodes.append(
                subprocess.Popen(
                    [RAY, "start", "--block", *options, *own, *workers, *temporary, store],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env=self.env,
                    cwd=self._folder,
                )
            )
        deadline = time.monotonic() + 120
        while self._nodes[-1].poll() is None:
            if "Ray runtime started" in (self._folder / f"node{number}.txt").read_text():
                return True
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.2)
        return False

    def said(self) -> str:
        """What the nodes said last, and Ray's own processes."""
        logs = self._folder.glob("ray*/session_2*/logs/*")
        own = [p for p in sorted(logs) if p.suffix in (".out", ".err", ".log") and p.stat().st_size]
        paths = [*sorted(self._folder.glob("node*.txt")), *own]
        return "".join(f"--- {p.name}\n{p.read_text()[-1500:]}\n" for p in paths)

    def family(self):
        own = [identify(node.pid) for node in self._nodes]
        return [p for p in own if p] + [p for n in self._nodes for p in descendants(n.pid)]

    def braid(self, command: str, *arguments: str, **variables: str):
        """Run a command of braid against the cluster."""
        return subprocess.run(
            [BRAID, command, *arguments, "--address", self.url],
            cwd=self._folder,
            env={**self.env, **variables},
            capture_output=True,
            text=True,
            timeout=240,
        )

    def status(self, job: str) -> str:
        """Ask the job server itself: a command of braid takes seconds, on a busy machine many."""
        headers = {"Authorization": f"Bearer {self.token.read_text()}"}
        asked = urllib.request.Request(f"{self.url}/api/jobs/{job}", headers=headers)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(asked, timeout=30) as answer:
            return json.loads(answer.read())["status"]

    def wait_for_status(self, job: str, wanted: str) -> None:
        deadline = time.monotonic() + 60
        while (now := self.status(job)) != wanted:
            assert time.monotonic() < deadline, now
            time.sleep(0.5)

    def log(self, job: str) -> str:
        return self.braid("logs", job).stdout

    def close(self) -> None:
        family = self.family()
        for node in reversed(self._nodes):
            node.send_signal(signal.SIGTERM)
        for node in self._nodes:
            try:
                node.wait(20)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait(20)
        for process in family:
            if identify(process.pid) == process:
                os.kill(process.pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has, below those that the kernel gives to connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("0.0.0.0", port)):
            found.append(port)
    return found if len(set(found)) == count else free_ports(count)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets lie in it, whose names may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="braid-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def cluster(folder: Path) -> Iterator[RayCluster]:
    made = RayCluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.close()


def write_inputs(folder: Path) -> None:
    """Write the quickstart's mix in small steps and without a reference, with a grader of the
    user's own that reads a file, and where it runs; the model lies on the storage."""
    storage = folder / "shared"
    shutil.copytree(ROOT / "configs/models/tiny", storage / "models/tiny")
    recipe = yaml.safe_load((ROOT / "configs/recipes/quickstart.yaml").read_text())
    recipe["model"]["path"] = str(storage / "models/tiny")
    recipe["num_steps"] = 2000
    recipe["batch"] |= {"groups_per_step": 3}
    recipe["eval"] = {"at_start": False, "at_end": False}
    recipe["algorithm"]["kl"] = {"coef": 0}
    recipe["logging"] = {"trainer_logprobs": False}
    recipe["rollout"] |= {"max_num_seqs": 16}
    for source in recipe["sources"]:
        mine = {"name": "brief", "use": "my_graders:brief", "args": {"limits": "limits.txt"}}
        source |= {"group_size": 4, "rewards": [*source["rewards"], mine]}
        source["data"] |= {"size": 100, "held_out": 4}
    (folder / "my_graders.py").write_text(GRADER)
    (folder / "limits.txt").write_text("12")
    (folder / ".gitignore").write_text("my_graders.py\nlimits.txt\n")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pod = {"cpus": 1, "memory": "4Gi"}
    infra = {
        "name": "here",
        "image": "none:1",
        "ray_version": pinned("ray"),
        "auth_secret": "none",
        "head": pod,
        "groups": [
            {"name": "learn", "roles": ["trainer"], **pod},
            {"name": "play", "roles": ["rollout", "reward"], **pod},
        ],
        "storage": {"claim": "none", "mount": str(storage)},
        "retry": {"stop_s": 90},
    }
    (folder / "infra.yaml").write_text(yaml.safe_dump(infra))


def lines(path: Path) -> list[dict]:
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def wait_for_step(cluster: RayCluster, run_dir: Path, job: str, step: int) -> None:
    deadline = time.monotonic() + 240
    look = time.monotonic() + 5
    while not any(m["step"] >= step for m in lines(run_dir / "metrics.jsonl")):
        if time.monotonic() > look:
            assert cluster.status(job) in ("PENDING", "RUNNING"), cluster.log(job)
            look = time.monotonic() + 5
        assert time.monotonic() < deadline, cluster.log(job)
        time.sleep(0.2)


def wait_for_actors(cluster: RayCluster, run_dir: Path, attempt: int, after: int) -> int:
    """Wait until the driver of an attempt has actors (or trains already); return its pid."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        latest = json.loads((run_dir / "run.json").read_text())["attempts"][-1]
        trains = any(m["step"] > after for m in lines(run_dir / "metrics.jsonl"))
        if latest["attempt"] == attempt and (trains or has_actors(cluster)):
            return latest["pid"]
        time.sleep(0.5)
    raise AssertionError(f"no actor of attempt {attempt}: {cluster.said()}")


def has_actors(cluster: RayCluster) -> bool:
    """Whether a worker of Ray's holds an actor of ours, which its title tells."""
    for process in cluster.family():
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{process.pid}/cmdline").read_text()
            if re.match(r"ray::(Trainer|Rollout|Reward)Actor", title):
                return True
    return False


def test_a_job_is_submitted_once_stopped_killed_and_goes_on(
    cluster: RayCluster, folder: Path, scan_ports
):
    """Two of the three jobs start engines and train: the second's driver dies while they start.
    One that dies in the middle of training is `test_run`'s."""
    write_inputs(folder)
    run_dir = folder / "shared/runs/quickstart"
    submit = ("recipe.yaml", "--infra", "infra.yaml")

    first = cluster.braid("submit", *submit)
    assert (first.returncode, first.stdout) == (0, "quickstart-1\n"), first.stderr + cluster.said()
    assert "my_graders.py" in first.stderr and "limits.txt" in first.stderr
    # All of this while its engines start.
    wrong = folder / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("f" * 64)
    stranger = cluster.braid("status", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert stranger.returncode == 2 and "has another token" in stranger.stderr
    again = cluster.braid("submit", *submit)
    assert again.stdout == "quickstart-1\n" and "already" in again.stderr, again.stderr
    other = cluster.braid("submit", *submit, "--set", "seed=2")
    assert other.returncode == 2 and "with another recipe" in other.stderr

    wait_for_step(cluster, run_dir, "quickstart-1", 2)
    ports = scan_ports(cluster.family())
    assert not [p for p in ports if p.kind in ("open", "late")]
    assert sum(p.kind == "token" for p in ports) >= 8, "control, and each node's own"
    assert cluster.status("quickstart-1") == "RUNNING", "what was scanned is a job that trains"

    stopped = cluster.braid("stop", "quickstart")
    assert stopped.returncode == 0, stopped.stderr + cluster.log("quickstart")
    asked = cluster.braid("status", "--json")
    (listed,) = json.loads(asked.stdout)
    assert (listed["id"], listed["status"]) == ("quickstart-1", "STOPPED")
    last = lines(run_dir / "metrics.jsonl")[-1]["step"]
    assert (run_dir / f"checkpoints/step_{last}").is_dir(), "the stop's checkpoint"

    assert cluster.braid("submit", *submit).stdout == "quickstart-2\n"
    os.kill(wait_for_actors(cluster, run_dir, 2, last), signal.SIGKILL)
    cluster.wait_for_status("quickstart-2", "FAILED")
    assert f"resuming after step {last}" in cluster.log("quickstart")

    end = max(m["step"] for m in lines(run_dir / "metrics.jsonl")) + 2
    third = cluster.braid("submit", *submit, "--set", f"num_steps={end}", "--follow")
    assert third.returncode == 0, third.stdout + third.stderr
    assert "quickstart-2 was FAILED" in third.stderr
    assert re.search(r"resuming after step \d+", third.stdout)
    assert [m["step"] for m in lines(run_dir / "metrics.jsonl")] == list(range(1, end + 1))
    for step in range(1, end + 1):
        seen = Counter((r["group_id"], r["index"]) for r in rollouts(run_dir, step))
        assert set(seen.values()) == {1}
    asked = subprocess.run(
        [BRAID, "ledger", run_dir, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert asked.returncode == 0, asked.stdout
    assert json.loads(asked.stdout)["attempts"] == 3


def rollouts(run_dir: Path, step: int) -> list[dict]:
    return lines(run_dir / f"rollouts/step_{step}.jsonl")


PRIVATE = """
import asyncio, sys
import ray
from configs.load import load_recipe
from orchestrator.cluster import start_ray

async def main():  # Ray's processes end with the thread that started them, a run's loop's
    await start_ray(load_recipe(sys.argv[1]))
    ray.get(ray.remote(num_cpus=0)(lambda: None).remote(), timeout=120)
    print("up", flush=True)
    await asyncio.sleep(300)

asyncio.run(main())
"""


def test_a_private_cluster_listens_on_the_loopback_interface_and_wants_its_token(scan_ports):
    command = [sys.executable, "-c", PRIVATE, ROOT / "configs/recipes/quickstart.yaml"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    family = []
    try:
        assert run.stdout is not None and run.stdout.readline() == "up\n"
        family = [p for p in (identify(run.pid), *descendants(run.pid)) if p]
        ports = scan_ports(family, silent_s=30.0)
        assert {p.host for p in ports} == {"127.0.0.1"}, ports
        assert {p.kind for p in ports} <= {"token", "metrics"}, ports
        assert sum(p.kind == "token" for p in ports) >= 4, "control, node, agents and workers"
    finally:
        run.terminate()
        run.wait(30)
        for process in family:
            if identify(process.pid) == process:
                os.kill(process.pid, signal.SIGKILL)
