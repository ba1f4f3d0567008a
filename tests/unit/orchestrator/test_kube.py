"""Runs on Kubernetes, against a kubectl that records its calls and keeps RayJobs in a file."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.cli import _main

ROOT = Path(__file__).parents[3]
KUBECTL = """#!/usr/bin/env python3
import json, pathlib, sys
folder = pathlib.Path({folder!r})
arguments = sys.argv[1:]
given = sys.stdin.read() if "-f" in arguments and "-" in arguments else ""
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps([arguments, given]) + "\\n")
answers = json.loads((folder / "answers.json").read_text())
verb = " ".join(arguments[:2])
if verb.startswith("exec"):
    verb = " ".join(arguments[arguments.index("--") + 1:][:3])
code, text = answers.get(verb, [0, ""])
(sys.stderr if code else sys.stdout).write(text)
sys.exit(code)
"""


class Kubectl:
    """What kubectl answers, by verb and kind, and what it was asked."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._answers: dict[str, tuple[int, str]] = {}
        self.answer("get rayjobs", {"items": []})

    def answer(self, call: str, what: object, code: int = 0) -> None:
        self._answers[call] = (code, what if isinstance(what, str) else json.dumps(what))
        (self._folder / "answers.json").write_text(json.dumps(self._answers))

    def calls(self) -> list[tuple[str, str]]:
        path = self._folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(" ".join(asked), given) for asked, given in map(json.loads, lines)]


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(folder=str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return Kubectl(tmp_path)


def ray_job(status: str, recipe: str, **more: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "quickstart", "namespace": "default"},
        "spec": {"metadata": {"recipe": recipe}},
        "status": {"jobDeploymentStatus": status, **more},
    }


RUNNING = {"jobStatus": "RUNNING", "jobId": "quickstart-x", "rayClusterName": "quickstart-c"}
SUBMIT = (
    "submit",
    str(ROOT / "configs/recipes/quickstart.yaml"),
    "--infra",
    str(ROOT / "k8s/infra/cpu.yaml"),
    "--set",
    "model.path=/shared/models/tiny",
    "--k8s",
)


def rendered(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert _main([*SUBMIT, "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert "recipe.yaml" in shown.err and "1 file, " in shown.err
    return list(yaml.safe_load_all(shown.out))


def test_a_dry_run_asks_kubectl_nothing(kubectl: Kubectl, capsys: pytest.CaptureFixture[str]):
    assert {d["kind"] for d in rendered(capsys)} >= {"RayJob", "ConfigMap", "ServiceAccount"}
    assert kubectl.calls() == []


def test_submit_applies_the_bundle_once_the_token_is_there(
    kubectl: Kubectl, capsys: pytest.CaptureFixture[str]
):
    bundle = rendered(capsys)
    kubectl.answer("get secret", 'secrets "braid-ray-token" not found', code=1)
    assert _main([*SUBMIT]) == 2
    assert "openssl rand -hex 32" in capsys.readouterr().err
    kubectl.answer("get secret", "secret/braid-ray-token")
    assert _main([*SUBMIT]) == 0
    asked, given = kubectl.calls()[-1]
    assert asked == "apply -f -" and list(yaml.safe_load_all(given)) == bundle


def test_the_same_is_not_applied_twice_and_another_not_over_it(
    kubectl: Kubectl, capsys: pytest.CaptureFixture[str]
):
    (recipe,) = (d["metadata"]["name"] for d in rendered(capsys) if d["kind"] == "ConfigMap")
    kubectl.answer("get rayjobs", {"items": [ray_job("Running", recipe, **RUNNING)]})
    assert _main([*SUBMIT]) == 0
    assert "runs already" in capsys.readouterr().err
    kubectl.answer("get rayjobs", {"items": [ray_job("Running", "quickstart-recipe-other")]})
    assert _main([*SUBMIT]) == 2
    assert "is Running with another recipe" in capsys.readouterr().err
    assert not any(asked.startswith(("apply", "delete")) for asked, _ in kubectl.calls())


@pytest.mark.parametrize("status", ["Complete", "Failed"])
def test_a_run_that_has_ended_makes_room(
    kubectl: Kubectl, capsys: pytest.CaptureFixture[str], status: str
):
    kubectl.answer("get rayjobs", {"items": [ray_job(status, "quickstart-recipe-other")]})
    assert _main([*SUBMIT]) == 0
    verbs = [asked.split()[0] for asked, _ in kubectl.calls()]
    assert verbs[-2:] == ["delete", "apply"]


def test_status_logs_and_stop(kubectl: Kubectl, capsys: pytest.CaptureFixture[str]):
    kubectl.answer("get rayjobs", {"items": [ray_job("Running", "r", **RUNNING)]})
    kubectl.answer("get pods", "pod/quickstart-head\n")
    assert _main(["status", "--k8s", "--namespace", "team", "--json"]) == 0
    (job,) = json.loads(capsys.readouterr().out)
    assert (job["status"], job["job_status"]) == ("Running", "RUNNING")
    assert "get rayjobs -n team -l app.kubernetes.io/name=braid" in kubectl.calls()[-1][0]

    on_head = "exec -n default pod/quickstart-head -c ray-head -- ray job"
    address = "--address http://127.0.0.1:8265 quickstart-x"
    assert _main(["logs", "quickstart", "--k8s", "-f"]) == 0
    assert kubectl.calls()[-1][0] == f"{on_head} logs {address} --follow"
    assert "ray.io/cluster=quickstart-c,ray.io/node-type=head" in kubectl.calls()[-2][0]

    assert _main(["stop", "quickstart", "--k8s"]) == 0
    stopped, deleted = (asked for asked, _ in kubectl.calls()[-2:])
    assert stopped == f"{on_head} stop {address}"
    assert deleted.startswith("delete rayjob quickstart -n default --wait=true")


def test_pods_are_left_alone_where_the_job_could_not_be_stopped(
    kubectl: Kubectl, capsys: pytest.CaptureFixture[str]
):
    kubectl.answer("get rayjobs", {"items": [ray_job("Running", "r", **RUNNING)]})
    kubectl.answer("get pods", "pod/quickstart-head\n")
    kubectl.answer("ray job stop", "no answer", code=1)
    assert _main(["stop", "quickstart", "--k8s"]) == 2
    assert "pods are left alone" in " ".join(capsys.readouterr().err.split())
    assert not any(asked.startswith("delete") for asked, _ in kubectl.calls())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["logs", "nothing", "--k8s"], "no such run in the current namespace"),
        (["logs", "quickstart", "--k8s"], "its job has not started"),
        (["stop", "quickstart", "--namespace", "team"], "does not go without --k8s"),
    ],
)
def test_what_cannot_be_done_is_said(
    kubectl: Kubectl, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
):
    kubectl.answer("get rayjobs", {"items": [ray_job("Initializing", "r")]})
    assert _main(arguments) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_cluster_that_stays_has_no_job(
    kubectl: Kubectl, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    infra = yaml.safe_load((ROOT / "k8s/infra/cpu.yaml").read_text()) | {"kind": "cluster"}
    (tmp_path / "infra.yaml").write_text(yaml.safe_dump(infra))
    assert _main([*SUBMIT[:3], str(tmp_path / "infra.yaml"), *SUBMIT[4:]]) == 2
    assert "submit to its dashboard by --address" in " ".join(capsys.readouterr().err.split())
