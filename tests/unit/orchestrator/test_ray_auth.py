"""Tokens of Ray clusters: made in private, found where Ray looks, hidden from jails, demanded."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from configs.errors import ConfigError
from configs.load import load_recipe
from orchestrator import cluster
from orchestrator.deploy import ray_auth
from rewards.sandbox.jail import Sandbox
from rewards.sandbox.result import Limits, Script, Tier
from rewards.sandbox.tiers import probe

ROOT = Path(__file__).parents[3]
VARIABLES = (ray_auth.MODE, ray_auth.TOKEN, ray_auth.TOKEN_PATH)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token, and an environment without one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def token_file(path: Path, text: str = "secret", mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_private_token_is_fresh_ours_alone_and_used_by_ray_whatever_the_environment_says():
    code = """
import os, stat
from orchestrator.deploy.ray_auth import private_token
import ray  # before: what Ray reads at import is read again
path = private_token()
from ray._raylet import AuthenticationMode, AuthenticationTokenLoader, get_authentication_mode
used = AuthenticationTokenLoader.instance().get_raw_token()
print(oct(stat.S_IMODE(path.stat().st_mode)), oct(stat.S_IMODE(path.parent.stat().st_mode)))
print(used == path.read_text(), len(used), get_authentication_mode() == AuthenticationMode.TOKEN)
print(os.environ["RAY_AUTH_MODE"], "RAY_AUTH_TOKEN" in os.environ, used in os.environ.values())
print(path)
print(used)
"""
    theirs = {ray_auth.MODE: "disabled", ray_auth.TOKEN: "of another cluster"}
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **theirs},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.splitlines()
        for _ in range(2)
    ]
    for lines in said:
        assert lines[:3] == ["0o600 0o700", "True 64 True", "token False False"]
        assert not Path(lines[3]).parent.exists(), "it ends with the process"
    assert said[0][4] != said[1][4]


def test_the_token_is_found_where_ray_looks_and_closed_to_others(home: Path):
    assert ray_auth.find_token({}) is None
    default = token_file(home / ".ray" / "auth_token", "default\n", 0o644)
    assert ray_auth.find_token({}) == "default"
    assert stat.S_IMODE(default.stat().st_mode) == 0o600
    named = token_file(home / "named", "named")
    assert ray_auth.find_token({ray_auth.TOKEN_PATH: str(named)}) == "named"
    both = {ray_auth.TOKEN: "plain", ray_auth.TOKEN_PATH: str(named)}
    assert ray_auth.find_token(both) == "plain"
    assert ray_auth.find_token(both, named) == "named"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: token_file(path, " \n"), "is empty"),
        (lambda path: path.write_bytes(b"\xff\xfe") and path.chmod(0o600), "is not text"),
    ],
)
def test_a_token_file_that_holds_none_is_said(
    home: Path, make: Callable[[Path], object], says: str
):
    make(home / "token")
    with pytest.raises(ConfigError, match=says):
        ray_auth.find_token({}, home / "token")


def test_somebody_else_s_open_file_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch):
    path = token_file(home / "token", mode=0o640)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match=r"mode 0640.*\n.*chmod 600"):
        ray_auth.find_token({}, path)


def test_joining_needs_a_token_or_a_word_that_none_is_needed(home: Path):
    with pytest.raises(ConfigError) as refused:
        ray_auth.prepare_to_join("auto", trusted=False)
    (problem,) = refused.value.problems
    assert problem.where == "ray_address: auto"
    assert ray_auth.TOKEN_PATH in problem.fix and "ray get-auth-token" in problem.fix
    ray_auth.prepare_to_join("auto", trusted=True)
    assert ray_auth.MODE not in os.environ


@contextmanager
def control_service(*, wants_token: bool) -> Iterator[str]:
    """Serve what is asked of Ray's control service, with or without a guard."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if wants_token:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""

    handlers = {"GetClusterId": grpc.unary_unary_rpc_method_handler(answer)}
    service = grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", handlers)
    server = grpc.server(ThreadPoolExecutor(1), handlers=[service])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait(10)


def test_a_cluster_that_answers_without_a_token_is_refused_with_the_remedy():
    with control_service(wants_token=True) as address:
        ray_auth.refuse_open("auto", address)
    with control_service(wants_token=False) as address, pytest.raises(ConfigError) as refused:
        ray_auth.refuse_open("auto", address)
    (problem,) = refused.value.problems
    assert "RAY_AUTH_MODE=token" in problem.fix and f"{ray_auth.TRUST}: true" in problem.fix
    with pytest.raises(ConfigError, match="does not say whether it wants a token"):
        ray_auth.answers_without_token("127.0.0.1:1")


@pytest.mark.parametrize(
    ("joined", "trusted", "asked"),
    [(None, False, []), ("auto", False, ["prepare", "refuse"]), ("auto", True, ["prepare"])],
)
def test_a_run_starts_a_closed_cluster_or_asks_the_one_it_joins(
    monkeypatch: pytest.MonkeyPatch, joined: str | None, trusted: bool, asked: list[str]
):
    did: list[str] = []
    options: dict[str, object] = {}
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **given: options.update(given))
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(cluster.ray, "get_runtime_context", lambda: context)
    for name, word in {
        "private_token": "token",
        "stay_on_loopback": "loopback",
        "prepare_to_join": "prepare",
        "refuse_open": "refuse",
    }.items():
        monkeypatch.setattr(ray_auth, name, lambda *a, word=word, **k: did.append(word))
    recipe = load_recipe(ROOT / "configs/recipes/quickstart.yaml")
    update = {"ray_address": joined, "allow_unauthenticated_ray": trusted}
    asyncio.run(cluster.start_ray(recipe.model_copy(update=update)))
    assert did == (asked or ["token", "loopback"])
    assert options["address"] == (joined or "local")
    assert ("include_dashboard" in options) is (joined is None)


STEAL = """
import glob, os
found = dict(os.environ)
for path in [{path!r}, *glob.glob("/proc/*/environ"), *glob.glob("/tmp/braid-ray-*/*")]:
    try:
        found[path] = open(path, "rb").read()
    except OSError:
        pass
print(found)
"""


@pytest.mark.parametrize("tier", [Tier.BWRAP, Tier.LANDLOCK])
def test_jailed_code_sees_neither_the_token_nor_where_it_lies(
    tier: Tier, home: Path, monkeypatch: pytest.MonkeyPatch
):
    found = probe(tier)
    assert found.works, found
    token = "5ec2e7" * 10
    path = token_file(home / "braid-ray-x" / "auth_token", token)
    home.chmod(0o755)
    monkeypatch.setenv(ray_auth.TOKEN_PATH, str(path))
    monkeypatch.setenv(ray_auth.TOKEN, token)
    limits = Limits(cpu_s=2.0, wall_s=10.0)
    with Sandbox(tier, limits, own_user_namespace=found.own_user_namespace) as jail:
        said = jail.run(Script(code=STEAL.format(path=str(path))))
    assert said.stdout.startswith(b"{"), said
    assert token.encode() not in said.stdout and b"auth_token" not in said.stdout
