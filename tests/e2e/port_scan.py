"""What the listening TCP ports of processes answer to somebody who has no token."""

import contextlib
import http.client
import os
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc

_LISTEN = "0A"
_STORE_MAGIC = 0x3C85F7CE
_EMPTY_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_METHODS = (
    "NodeInfoGcsService/GetClusterId",
    "JobInfoGcsService/GetAllJobInfo",
    "InternalKVGcsService/InternalKVKeys",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "RayletDriver/ClusterInfo",
    "RayletDriver/KVList",
    "CoreWorkerService/GetCoreWorkerStats",
    "CoreWorkerService/PushTask",
    "RuntimeEnvService/GetRuntimeEnvsInfo",
    "ReporterService/GetTraceback",
    "ReporterService/HealthCheck",
    "LogService/ListLogs",
    "HealthzService/HealthCheck",
)
"""Methods of Ray's services, each served on some of its ports."""


_REFUSED = {"401", "403", "UNAUTHENTICATED"}
_LATE = {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
PATIENCE_S = 60.0
"""For a port that is late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A listening socket and what it answered."""

    host: str
    port: int
    command: str
    answers: tuple[str, ...]
    """`METHOD or PATH: status` of everything that answered."""

    @property
    def kind(self) -> str:
        """`token`: it refuses all that was asked for want of one; `metrics`, `store` and `silent`
        are what knows no tokens (exporters, torch's TCPStore, gloo); `late` gave some answers not
        in time, and refused the rest; `open` answers to anybody."""
        said = {a.rsplit(" ", 1)[1] for a in self.answers}
        if said and said <= _REFUSED | _LATE:
            return "late" if said & _LATE else "token"
        known = {frozenset[str](): "silent", frozenset({"metrics"}): "metrics"}
        if self.answers == ("TCPStore: OK",):
            return "store"
        return known.get(frozenset(said), "open")


def scan(pids: Iterable[int], *, silent_s: float = 0.0) -> list[Port]:
    """Find the listening sockets of processes and try each of them.

    Args:
        silent_s: for how long one that says nothing is tried again: it may be about to.
    """
    listening = _listening()
    found: dict[str, int] = {}
    for pid in pids:
        for link in _links(Path(f"/proc/{pid}/fd")):
            match = re.fullmatch(r"socket:\[(\d+)\]", link)
            if match and match[1] in listening:
                found.setdefault(match[1], pid)
    with ThreadPoolExecutor(64) as pool:
        tried = pool.map(lambda i: _settled(i, *listening[i], found[i], silent_s), found)
        return [port for port in tried if port is not None]


def _settled(inode: str, host: str, port: int, pid: int, silent_s: float) -> Port | None:
    """Try a port until what it says is no matter of load; None where it closes meanwhile."""
    began = time.monotonic()
    while True:
        said = _try(host, port, pid)
        patience = {"silent": silent_s, "late": PATIENCE_S}.get(said.kind, 0.0)
        if time.monotonic() - began >= patience:
            return said
        if inode not in _listening():
            return None
        time.sleep(0.5)


def _links(folder: Path) -> Iterator[str]:
    """Yield what a process's descriptors point to; those that close meanwhile are left out."""
    with contextlib.suppress(OSError):
        for descriptor in folder.iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(descriptor)


def _listening() -> dict[str, tuple[str, int]]:
    """Return host and port of the machine's listening sockets by inode."""
    found: dict[str, tuple[str, int]] = {}
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == _LISTEN:
                address, _, port = words[1].partition(":")
                raw = bytes.fromhex(address)
                swapped = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                host = socket.inet_ntop(family, swapped).removeprefix("::ffff:")
                found[words[9]] = (host, int(port, 16))
    return found


def _try(host: str, port: int, pid: int) -> Port:
    to = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, host)
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        command = "?"
    answers = _http(to, port)
    if not answers:
        answers = _grpc(to, port) if _speaks_http2(to, port) else _store(to, port)
    return Port(host=host, port=port, command=command, answers=tuple(answers))


def _http(host: str, port: int) -> list[str]:
    answers: list[str] = []
    for path in ("/api/jobs/", "/metrics", "/api/version", "/logs", "/health", "/v1/models"):
        connection = http.client.HTTPConnection(host, port, timeout=2)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            exported = answer.status == 200 and answer.read(6) == b"# HELP"
            answers.append(f"{path}: {'metrics' if exported else answer.status}")
        except (OSError, http.client.HTTPException):
            return answers
        finally:
            connection.close()
    return answers


def _speaks_http2(host: str, port: int) -> bool:
    """Greet as a client of HTTP/2 does, with empty settings; a server answers with its own."""
    try:
        with socket.create_connection((host, port), timeout=3) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _EMPTY_SETTINGS)
            return connection.recv(9)[3:4] == b"\x04"
    except OSError:
        return False


def _grpc(host: str, port: int) -> list[str]:
    answers: list[str] = []
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=10)
        except grpc.FutureTimeoutError:
            return ["no channel: UNAVAILABLE"]
        for method in _METHODS:
            call = channel.unary_unary(f"/ray.rpc.{method}")
            try:
                call(b"", timeout=5)
                answers.append(f"{method}: OK")
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    answers.append(f"{method}: {error.code().name}")
    return answers or ["no method known: UNIMPLEMENTED"]


def _store(host: str, port: int) -> list[str]:
    """Greet as a client of torch's TCPStore does, and ping it."""
    nonce = b"ping"
    try:
        with socket.create_connection((host, port), timeout=2) as connection:
            connection.sendall(b"\x00" + struct.pack("<I", _STORE_MAGIC) + b"\x0d" + nonce)
            return ["TCPStore: OK"] if connection.recv(4) == nonce else []
    except OSError:
        return []
