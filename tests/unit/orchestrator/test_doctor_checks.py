"""Each check of `braid doctor`, well and broken: what it finds, and that it says what to do."""

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from configs.judges import JudgeConfig
from configs.schema import RunConfig
from orchestrator import cli
from orchestrator.doctor import access, devices, machine, models
from orchestrator.doctor import diagnose as all_checks
from orchestrator.doctor.access import check_ray_token, check_wandb
from orchestrator.doctor.devices import Gpu, check_gpus, check_nccl
from orchestrator.doctor.findings import Check, Finding, Level, Patient
from orchestrator.doctor.judges import check_judges
from orchestrator.doctor.machine import check_disk, check_ports, check_shared_memory
from orchestrator.doctor.models import check_hub, check_models

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs" / "models" / "tiny"


def recipe(**more: Any) -> RunConfig:
    data: dict[str, Any] = {
        "name": "small",
        "num_steps": 1,
        "model": {"path": str(TINY), "max_model_len": 64},
        "sources": [
            {
                "name": "sums",
                "data": {"procedural": "reasoning_gym/chain_sum"},
                "rewards": [{"name": "r", "use": "exact"}],
            }
        ],
        "batch": {"groups_per_step": 1},
    }
    return RunConfig.model_validate({**data, **more})


def worst(check: Check, patient: Patient, name: str | None = None) -> Finding:
    """Return the gravest finding, of that name; one that is not well says what to do."""
    order = [Level.OK, Level.WARNING, Level.FAILED]
    found = [f for f in check(patient) if name is None or f.name == name]
    assert all(f.remedy for f in found if f.level is not Level.OK)
    return max(found, key=lambda f: order.index(f.level))


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Take every variable and file of the machine's own user away."""
    for name in list(os.environ):
        if name.startswith(("HF_", "RAY_AUTH", "WANDB", "NCCL", "GLOO", "NETRC")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


H100 = Gpu("H100", 80.0, 0.5, "580.65.06")


def stand(monkeypatch: pytest.MonkeyPatch, found: object, cuda: str | None = "13.0") -> None:
    monkeypatch.setattr(devices, "find_gpus", lambda: found)
    monkeypatch.setattr(devices, "torch_cuda", lambda: cuda)


@pytest.mark.parametrize(
    ("found", "cuda", "gpus", "level", "word"),
    [
        ((), None, 0, Level.OK, "none"),
        ((), None, 1, Level.FAILED, "the recipe takes 1"),
        ("Driver/library version mismatch", None, 0, Level.FAILED, "mismatch"),
        ((H100,), "13.0", 1, Level.OK, "H100"),
        ((H100,), "13.0", 2, Level.FAILED, "the recipe takes 2"),
        ((H100,), None, 1, Level.FAILED, "no CUDA"),
        ((Gpu("A100", 80.0, 0.0, "535.1"),), "13.0", 1, Level.FAILED, "older than the 580"),
        ((Gpu("H100", 80.0, 40.0, "580.1"),), "13.0", 1, Level.WARNING, "another process"),
    ],
)
def test_gpus(monkeypatch, found, cuda, gpus, level, word):
    stand(monkeypatch, found, cuda)
    cfg = recipe(trainer={"actors": {"gpus": gpus}})
    gravest = worst(check_gpus, Patient(recipe=cfg))
    assert gravest.level is level and word in gravest.detail


def test_gpus_of_another_cluster_are_not_looked_for_here(monkeypatch):
    stand(monkeypatch, ())
    cfg = recipe(trainer={"actors": {"gpus": 8}}, ray_address="auto")
    assert worst(check_gpus, Patient(recipe=cfg)).level is Level.OK


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NVIDIA H100, 81920, 1024, 580.65'", (Gpu("NVIDIA H100", 80.0, 1.0, "580.65"),)),
        ("echo 'no devices were found'; exit 6", "no devices were found"),
    ],
)
def test_nvidia_smi_is_read(monkeypatch, tmp_path: Path, script: str, expected: object):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert devices.find_gpus() == expected


def test_nccl_and_the_interfaces_that_are_named(monkeypatch):
    stand(monkeypatch, (H100,))
    monkeypatch.setattr(devices, "distributions", lambda: ())
    assert worst(check_nccl, Patient(), "nccl").level is Level.FAILED
    stand(monkeypatch, ())
    assert list(check_nccl(Patient())) == []
    for given, level in (("lo", Level.OK), ("eth99,lo", Level.FAILED), ("^docker", Level.OK)):
        monkeypatch.setenv("NCCL_SOCKET_IFNAME", given)
        assert worst(check_nccl, Patient()).level is level


def test_shared_memory(monkeypatch, tmp_path: Path):
    class State:
        f_frsize, f_blocks, f_bavail = 2**20, 64, 60

    assert machine.SHARED_MEMORY.is_dir()
    monkeypatch.setattr(machine.os, "statvfs", lambda path: State)
    small = worst(check_shared_memory, Patient(recipe=recipe()))
    assert small.level is Level.WARNING and "--shm-size" in small.remedy
    on_gpu = recipe(trainer={"actors": {"gpus": 1}})
    assert worst(check_shared_memory, Patient(recipe=on_gpu)).level is Level.FAILED
    State.f_blocks = State.f_bavail = 8192
    assert worst(check_shared_memory, Patient(recipe=on_gpu)).level is Level.OK
    monkeypatch.undo()
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
    assert worst(check_shared_memory, Patient()).level is Level.FAILED


def test_ports(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        monkeypatch.setattr(machine, "AGENT_PORT", port)
        assert worst(check_ports, Patient()).level is Level.WARNING
        there = Patient(recipe=recipe(ray_address=f"127.0.0.1:{port}"))
        assert worst(check_ports, there).level is Level.OK
    assert worst(check_ports, Patient()).level is Level.OK
    gone = worst(check_ports, there)
    assert gone.level is Level.FAILED and "cannot be reached" in gone.detail


def test_disk(monkeypatch, tmp_path: Path):
    patient = Patient(recipe=recipe(), run_dir=tmp_path / "runs" / "x")
    assert worst(check_disk, patient).level is Level.OK
    usage = shutil.disk_usage(tmp_path)._replace(free=100 * 2**20)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    assert worst(check_disk, patient, "run directory").level is Level.FAILED
    assert worst(check_disk, patient, "ray").level is Level.FAILED
    monkeypatch.undo()
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert "cannot be written" in worst(check_disk, patient).detail


def test_checkpoints_are_weighed():
    gib = machine.checkpoints_gib(recipe(checkpoint={"keep": 4}))
    small = machine.checkpoints_gib(recipe(checkpoint={"keep": 2}))
    assert gib is not None and small is not None and gib == pytest.approx(small * 5 / 3)
    assert machine.checkpoints_gib(recipe(model={"path": "org/absent"})) is None
    sources = [{**recipe().sources[0].model_dump(mode="json"), "advantage": {"use": "gae"}}]
    both = machine.checkpoints_gib(recipe(checkpoint={"keep": 4}, sources=sources))
    assert both == pytest.approx(2 * gib), "the critic's too"
    assert machine.checkpoints_gib(recipe(sources=sources, critic={"path": "org/absent"})) is None


def test_the_disk_to_offload_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    name = "trainer.nvme"
    there = recipe(trainer={"nvme": {"path": str(tmp_path / "new")}})
    assert worst(check_disk, Patient(recipe=there), name).level is Level.OK
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    closed = worst(check_disk, Patient(recipe=there), name)
    assert closed.level is Level.FAILED and "cannot be written" in closed.detail
    away = recipe(ray_address="auto", trainer={"nvme": {"path": "/nowhere"}})
    assert name not in {f.name for f in check_disk(Patient(recipe=away))}


def test_the_hub_offline_and_without_a_network(monkeypatch, bare: Path):
    absent = Patient(recipe=recipe(model={"path": "org/model"}))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "does not answer" in worst(check_hub, absent).detail
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = worst(check_hub, absent)
    assert offline.level is Level.FAILED and "HF_HUB_OFFLINE is set" in offline.detail
    assert "hf download org/model" in offline.remedy
    snapshot = bare / ".cache/huggingface/hub/models--org--model/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert worst(check_hub, absent).level is Level.OK
    assert worst(check_hub, Patient()).level is Level.OK


def test_a_data_set_that_is_not_here(monkeypatch, bare: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = {"name": "s", "data": {"hub": "org/rows"}, "rewards": [{"name": "r", "use": "exact"}]}
    patient = Patient(recipe=recipe(sources=[source]))
    assert worst(check_hub, patient).name == "sources.s.data.hub"
    (bare / ".cache/huggingface/datasets/org___rows").mkdir(parents=True)
    assert worst(check_hub, patient).level is Level.OK


def change(file: str, **fields: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return apply


def write(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text) and None


ALL = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
BEGUN = "{% if add_generation_prompt %}<assistant>{% endif %}"
MODELS: list[tuple[str, Callable[[Path], object], str | None]] = [
    ("whole", lambda folder: None, None),
    ("begun", write(ALL + BEGUN), None),
    ("marked", write("{%- generation %}" + ALL + "{% endgeneration -%}" + BEGUN), None),
    ("no weights", lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    ("syntax", write("{% for m in %}"), "cannot be rendered"),
    ("refuses", write("{{ raise_exception('no users') }}"), "no users"),
    ("escapes", write("{{ messages.__class__.__mro__ }}" + ALL + BEGUN), "cannot be rendered"),
    ("deaf", write("hello" + BEGUN), "leaves the user's message out"),
    ("never begins", write(ALL), "does not begin the assistant's turn"),
]


@pytest.mark.parametrize(("name", "broken", "word"), MODELS, ids=[m[0] for m in MODELS])
def test_models(tmp_path: Path, name: str, broken: Callable[[Path], object], word: str | None):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    broken(folder)
    gravest = worst(check_models, Patient(recipe=recipe(model={"path": str(folder)})))
    assert gravest.level is (Level.OK if word is None else Level.FAILED)
    assert word is None or word in gravest.detail


def test_a_model_that_never_ends(tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    change("tokenizer_config.json", eos_token=None)(folder)
    change("config.json", eos_token_id=None)(folder)
    patient = Patient(recipe=recipe(model={"path": str(folder)}))
    assert "eos_token" in worst(check_models, patient).detail


def test_every_model_of_a_recipe_is_looked_at():
    cfg = recipe(
        judges={"j": {"engines": {"model": {"path": "org/judge"}}}},
        reward_models={"r": {"model": {"path": "org/rm"}}},
    )
    assert set(models.models_of(cfg)) == {
        "model",
        "judges.j.engines.model",
        "reward_models.r.model",
    }


def test_models_that_score_are_looked_for_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    mute = tmp_path / "mute"
    shutil.copytree(TINY, mute)
    (mute / "chat_template.jinja").unlink()
    sources = [{**recipe().sources[0].model_dump(mode="json"), "advantage": {"use": "gae"}}]
    more: dict[str, Any] = {"algorithm": {"kl": {"coef": 0.1}}, "sources": sources}
    for where, given in (
        ("reference", {"reference": {"path": "org/absent"}}),
        ("critic", {"critic": {"path": "org/absent"}}),
        ("teachers.big.model", {"teachers": {"big": {"model": {"path": "org/absent"}}}}),
    ):
        absent = Patient(recipe=recipe(**more, **given))
        assert worst(check_hub, absent, where).level is Level.FAILED
        there = json.loads(json.dumps(given).replace("org/absent", str(mute)))
        here = Patient(recipe=recipe(**more, **there))
        assert worst(check_models, here, where).level is Level.OK, "it needs no chat template"
    assert set(models.models_of(recipe(reference={"path": "org/absent"}))) == {"model"}


def test_the_token_of_ray(monkeypatch, bare: Path):
    alone, joining = Patient(), Patient(recipe=recipe(ray_address="auto"))
    assert worst(check_ray_token, alone).level is Level.OK
    assert worst(check_ray_token, joining).level is Level.FAILED
    token = bare / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("secret")
    token.chmod(0o644)
    assert "chmod 600" in worst(check_ray_token, joining).remedy
    assert worst(check_ray_token, joining).level is Level.FAILED
    assert worst(check_ray_token, alone).level is Level.WARNING
    token.chmod(0o600)
    assert worst(check_ray_token, joining).level is Level.OK
    token.write_text("")
    assert "is empty" in worst(check_ray_token, joining).detail
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-in-a-variable")
    found = worst(check_ray_token, joining)
    assert found.level is Level.WARNING and "secret-in" not in found.detail + found.remedy
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert worst(check_ray_token, alone).level is Level.FAILED


def test_wandb_s_key(monkeypatch, bare: Path):
    online = Patient(recipe=recipe(logging={"wandb": "online"}))
    assert list(check_wandb(Patient(recipe=recipe()))) == []
    assert worst(check_wandb, online).level is Level.FAILED
    (bare / ".netrc").write_text("machine api.wandb.ai login user password " + "k" * 40 + "\n")
    assert worst(check_wandb, online).level is Level.OK
    (bare / ".netrc").write_text("not a netrc file {")
    assert not access._in_netrc()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert worst(check_wandb, online).level is Level.OK


class Server:
    """Answers with one status and body."""

    def __init__(self) -> None:
        self.status, self.content = 200, '{"met": true}'

    def body(self) -> bytes:
        message = {"role": "assistant", "content": self.content}
        return json.dumps({"choices": [{"message": message}], "model": "m-1"}).encode()


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body, status = told.body(), told.status
            if status == 400 and "response_format" not in asked:
                status = 200
            if status != 200:
                body = b'{"error": {"message": "response_format: no such thing"}}'
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield told, f"http://127.0.0.1:{httpd.server_port}/v1"
    httpd.shutdown()
    thread.join(timeout=10)
    httpd.server_close()


def asked(url: str, **endpoint: object) -> Patient:
    given = {"base_url": url, "model": "m", "private": True, **endpoint}
    judge = JudgeConfig.model_validate({"endpoint": given, "timeout_s": 5})
    return Patient(judges={"j": judge})


def test_judges(server: tuple[Server, str], monkeypatch):
    told, url = server
    assert worst(check_judges, asked(url)).level is Level.OK
    told.status = 400  # until response_format is left out
    assert worst(check_judges, asked(url)).level is Level.WARNING
    told.status, told.content = 200, "Yes, it is."
    assert "not as JSON" in worst(check_judges, asked(url)).detail
    for status, word in ((401, "HTTP 401"), (503, "HTTP 503"), (302, "redirects")):
        told.status = status
        found = worst(check_judges, asked(url))
        assert found.level is Level.FAILED and word in found.detail
    unset = worst(check_judges, asked(url, api_key_env="NO_SUCH_KEY"))
    assert unset.level is Level.FAILED and "NO_SUCH_KEY" in unset.detail
    assert "no connection" in worst(check_judges, asked("http://127.0.0.1:9/v1")).detail
    assert list(check_judges(Patient())) == []


def test_a_silent_judge(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr("orchestrator.doctor.judges.PATIENCE_S", 0.2)
        found = worst(check_judges, asked(f"http://127.0.0.1:{silent.getsockname()[1]}/v1"))
    assert found.level is Level.FAILED and "no answer within 0.2 s" in found.detail


def test_the_command_takes_a_recipe_and_a_file_of_judges(
    monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], server: tuple[Server, str]
):
    seen: list[Patient] = []

    def look(patient: Patient) -> Iterator[Finding]:
        seen.append(patient)
        yield from check_judges(patient)

    monkeypatch.setattr(all_checks, "CHECKS", (look,))
    judges = tmp_path / "judges.yaml"
    endpoint = {"base_url": server[1], "model": "m", "private": True}
    judges.write_text(json.dumps({"judges": {"j": {"endpoint": endpoint}}}))
    quickstart = str(ROOT / "configs/recipes/quickstart.yaml")
    assert cli._main(["doctor", quickstart, "--judges", str(judges), "--json"]) == 0
    assert seen[0].recipe is not None and seen[0].recipe.name == "quickstart"
    assert json.loads(capsys.readouterr().out)["findings"][0]["name"] == "j"
    server[0].status = 401
    assert cli._main(["doctor", "--judges", str(judges)]) == 1
    assert cli._main(["doctor", str(tmp_path / "no.yaml")]) == 2
