"""Token authentication of Ray: a fresh token for a cluster of our own, and no other cluster joined
that lets in whoever reaches its ports.

A token is a bearer secret of the whole cluster: who has it runs code as the cluster's user. It lies
in a file that only its owner may read, and children get the file's path, never the token itself,
in their environment. Graders' jails have an empty environment and cannot open the file.
"""

import atexit
import importlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, Problem

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
TRUST = "allow_unauthenticated_ray"
"""The recipe's knob with which a cluster without tokens is used nevertheless."""
_PROBE_S = 10.0
REMEDY = (
    "Start every node of it with RAY_AUTH_MODE=token and one token (`ray get-auth-token "
    "--generate`; on Kubernetes, authOptions.mode: token), or, on a network that nobody else "
    f"reaches, set {TRUST}: true."
)


def default_token_path() -> Path:
    """Return where Ray keeps a user's token."""
    return Path.home() / ".ray" / "auth_token"


def private_token() -> Path:
    """Make a token for a cluster of our own, and have this process and its children use it.

    Its folder is removed when the process ends, with which the cluster ends too.
    """
    folder = Path(tempfile.mkdtemp(prefix="braid-ray-"))  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "auth_token"
    with open(path, "x", opener=_owner_only) as file:
        file.write(secrets.token_hex(32))
    _use(path)
    return path


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _use(path: Path) -> None:
    """Have Ray in this process, and in its children, use the token in a file."""
    os.environ.pop(TOKEN, None)  # it would come before the file
    os.environ[MODE], os.environ[TOKEN_PATH] = "token", str(path)
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")  # what was read at import is read again, as ray.init does itself
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def stay_on_loopback() -> None:
    """Have a cluster that this process starts listen on the loopback interface alone, as Ray does
    by default where it allows no cluster of several nodes (macOS)."""
    constants: Any = importlib.import_module("ray._private.ray_constants")
    constants.ENABLE_RAY_CLUSTER = False


def find_token(environ: Mapping[str, str] = os.environ, path: Path | None = None) -> str | None:
    """Return the token that a user has, where Ray looks for it: the variable, the file that a
    variable names, the default file. None where there is none.

    Args:
        path: file to read in their place.

    Raises:
        ConfigError: the file is missing or empty, or others may read it and that cannot be changed.
    """
    if path is None and environ.get(TOKEN):
        return environ[TOKEN].strip()
    named = path or (Path(environ[TOKEN_PATH]) if environ.get(TOKEN_PATH) else None)
    if named is None and not default_token_path().is_file():
        return None
    return _read_token(named or default_token_path())


def _read_token(path: Path) -> str:
    try:
        _close_to_others(path)
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is not text"
        problem = Problem(where=str(path), what=f"cannot be read: {why}", fix="Check the path.")
        raise ConfigError(problem) from None
    if not token:
        raise ConfigError(Problem(where=str(path), what="is empty", fix="Write the token to it."))
    return token


def _close_to_others(path: Path) -> None:
    """Take the rights of group and others from a token file, which Ray creates with 0644."""
    status = path.stat()
    if not stat.S_IMODE(status.st_mode) & 0o077:
        return
    if status.st_uid != os.geteuid():
        raise ConfigError(
            Problem(
                where=str(path),
                what=f"others may read the token (mode {stat.S_IMODE(status.st_mode):04o}), and "
                "the file is not yours",
                fix="Have its owner run `chmod 600` on it, or copy it to a file of your own.",
            )
        )
    path.chmod(0o600)


def prepare_to_join(address: str, *, trusted: bool) -> None:
    """Have Ray in this process use the user's token before it joins the cluster at `address`.

    Raises:
        ConfigError: there is none, and the recipe does not say that none is needed.
    """
    token = find_token()
    if token is not None:
        if os.environ.get(TOKEN) is None:
            _use(Path(os.environ.get(TOKEN_PATH) or default_token_path()))
        elif os.environ.get(MODE) != "token":
            os.environ[MODE] = "token"
            raylet: Any = importlib.import_module("ray._raylet")
            raylet.Config.initialize("")
    elif not trusted:
        raise ConfigError(
            Problem(
                where=f"ray_address: {address}",
                what="there is no token to join it with",
                fix=f"Give the cluster's in {TOKEN_PATH}=FILE (mode 0600) or in "
                f"{default_token_path()}. If the cluster has none: {REMEDY}",
            )
        )


def answers_without_token(gcs_address: str) -> bool:
    """Ask a cluster's control service for its id, as anybody could who has no token."""
    grpc: Any = importlib.import_module("grpc")
    messages: Any = importlib.import_module("ray.core.generated.gcs_service_pb2")
    services: Any = importlib.import_module("ray.core.generated.gcs_service_pb2_grpc")
    with grpc.insecure_channel(gcs_address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = services.NodeInfoGcsServiceStub(channel)
        try:
            stub.GetClusterId(messages.GetClusterIdRequest(), timeout=_PROBE_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise ConfigError(
                Problem(
                    where="ray_address",
                    what=f"{gcs_address} does not say whether it wants a token: {error.code()}",
                    fix="See that the cluster's control service is up and reachable.",
                )
            ) from None
    return True


def refuse_open(address: str, gcs_address: str) -> None:
    """Raise ConfigError if a cluster lets in whoever reaches its ports."""
    if answers_without_token(gcs_address):
        raise ConfigError(
            Problem(
                where=f"ray_address: {address}",
                what="this Ray cluster has no token authentication: whoever reaches its ports "
                "runs code on all of its nodes",
                fix=REMEDY,
            )
        )
