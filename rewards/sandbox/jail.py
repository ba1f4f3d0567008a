"""The sandbox as graders use it: one warm process behind it, one fresh process for each input.

Invariants:
- what comes out of the jail is read as bytes with a limit on each stream, never parsed before it
  is known to be whole, and never more than parsed for its frames;
- every wait ends: the warm process kills at the limits, and a warm process that does not answer
  is killed itself, with all that it started;
- a fault of ours is SANDBOX_ERROR, never a verdict on the tested code.
"""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from rewards.sandbox.inside import harness
from rewards.sandbox.inside.zygote import End
from rewards.sandbox.launch import Launch, TierUnavailable, launch
from rewards.sandbox.orphans import adopting, below, reap
from rewards.sandbox.result import Command, Job, Limits, SandboxResult, Script, Tier, Verdict

_START_S, _STOP_S, _SLACK_S = 30.0, 5.0, 10.0
_MESSAGE = 1 << 16
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_FORBIDDEN_CALL = "forbidden system call"
_USUAL = """
    math json re collections itertools functools heapq bisect string random typing operator copy
    datetime fractions decimal statistics
"""
USUAL_MODULES = tuple(_USUAL.split())
"""Loaded before any input, so that no input pays for them."""


class JailLost(Exception):
    """The warm process died or does not answer."""


class Sandbox:
    """Runs inputs one after another; used by one thread at a time. Close it, or use `with`."""

    def __init__(
        self,
        tier: Tier,
        limits: Limits | None = None,
        *,
        packages: bool = False,
        preload: Sequence[str] = (),
        own_user_namespace: bool = False,
    ):
        """Start nothing yet: the first run does.

        Args:
            limits: of each run, unless the run has its own.
            packages: let the tested code import what is installed here.
            preload: modules loaded before any input, beside the usual ones.
            own_user_namespace: bubblewrap as an unprivileged user, also where we are root.
        """
        self.tier = tier
        self.limits = limits or Limits()
        self._packages = packages
        self._preload = (*USUAL_MODULES, *preload)
        self._own_user_namespace = own_user_namespace
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._launch: Launch | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of what was started, while it runs."""
        return None if self._process is None else self._process.pid

    @property
    def folder(self) -> Path | None:
        """Where inputs run while it is started, in the tiers without a file system of their own."""
        return None if self._launch is None else self._launch.folder

    def start(self) -> None:
        """Start the warm process, if none runs.

        Raises:
            TierUnavailable: it cannot start here.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._launch = launch(
            self.tier,
            packages=self._packages,
            preload=self._preload,
            own_user_namespace=self._own_user_namespace,
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = ours
        with theirs:
            self._process = subprocess.Popen(
                self._launch.arguments(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=dict(self._launch.environment),
                start_new_session=True,
                user=self._launch.user,
                group=self._launch.user,
                extra_groups=None if self._launch.user is None else [],
            )
        ours.settimeout(_START_S)
        try:
            ready = ours.recv(_MESSAGE)
        except OSError as error:
            ready = str(error).encode()
        if ready != b"ready":
            why = self._last_words() or ready.decode(errors="replace") or "it died at once"
            self.close()
            raise TierUnavailable(f"{self.tier} does not start: {why}")

    def run(self, job: Job, limits: Limits | None = None) -> SandboxResult:
        """Run one input in a process of its own. Never raises for what the input does."""
        limits = limits or self.limits
        began = time.monotonic()
        try:
            self.start()
            if self._process is None or self._control is None:
                raise JailLost("it was closed")
            return self._run(job, limits, self._control, began)
        except (JailLost, TierUnavailable, OSError) as error:
            words = self._last_words()
            self.close()
            return SandboxResult(
                verdict=Verdict.SANDBOX_ERROR,
                error=f"{error} {words}".strip(),
                seconds=time.monotonic() - began,
            )

    def close(self) -> None:
        """End the warm process and all that it started, and reap it."""
        process, control, started = self._process, self._control, self._launch
        self._process = self._control = self._launch = None
        members = [] if process is None else below(process.pid)
        with adopting():
            if control is not None:
                control.close()  # it ends by itself at that
            if process is not None:
                try:
                    process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    _kill_tree(process)
            reap(members)
        if process is not None and process.stderr is not None:
            process.stderr.close()
        if started is not None:
            started.free()

    def _run(self, job: Job, limits: Limits, control: socket.socket, began: float) -> SandboxResult:
        stdin = job.stdin if isinstance(job, Script | Command) else ""
        request = _sealed(json.dumps(job.request()).encode())
        given = _sealed(stdin.encode("utf-8", "surrogatepass"))
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        reads = [read for read, _ in pipes]
        (_, result), (_, stdout), (_, stderr) = pipes
        try:
            message = json.dumps(asdict(limits.for_kernel())).encode()
            try:
                socket.send_fds(control, [message], [request, result, given, stdout, stderr])
            finally:
                for fd in (request, given, result, stdout, stderr):
                    os.close(fd)
            streams = _Streams(reads, limits.output)
            end = _collect(control, streams, limits.wall_s + _SLACK_S)
        finally:
            for fd in reads:
                os.close(fd)
        return _judge(job, limits, end, streams, time.monotonic() - began)

    def _last_words(self) -> str:
        """Return what the warm process wrote before it died."""
        process = self._process
        if process is None or process.stderr is None:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        os.set_blocking(process.stderr.fileno(), False)
        words = (process.stderr.read() or b"").decode(errors="replace").strip()
        return words.splitlines()[-1] if words else ""


class _Streams:
    """The three pipes of a run: value frames, stdout, stderr."""

    def __init__(self, fds: Sequence[int], limit: int):
        self.data = {fd: bytearray() for fd in fds}
        self._fds = fds
        self._limit = limit
        for fd in fds:
            os.set_blocking(fd, False)

    def read(self, fd: int) -> bool:
        """Take what there is; return whether more may come."""
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        self.data[fd] += chunk
        return bool(chunk)

    @property
    def over(self) -> bool:
        """Whether one of them is beyond the limit."""
        return any(len(data) > self._limit for data in self.data.values())

    def texts(self) -> tuple[bytes, bytes, bytes]:
        """Return frames, stdout and stderr, cut at the limit."""
        frames, stdout, stderr = (bytes(self.data[fd][: self._limit]) for fd in self._fds)
        return frames, stdout, stderr


def _collect(control: socket.socket, streams: _Streams, seconds: float) -> End:
    """Read until the warm process tells of the end.

    Raises:
        JailLost: it does not.
    """
    poll = select.poll()
    poll.register(control, select.POLLIN)
    for fd in streams.data:
        poll.register(fd, select.POLLIN)
    deadline, killed = time.monotonic() + seconds, False
    while True:
        left = deadline - time.monotonic()
        ready = [fd for fd, _ in poll.poll(max(0.0, left) * 1000)]
        if not ready:
            raise JailLost(f"no end after {seconds:g} s")
        for fd in ready:
            if fd != control.fileno() and not streams.read(fd):
                poll.unregister(fd)
        if streams.over and not killed:
            killed = True
            control.send(b"kill")
            for fd in streams.data:
                with contextlib.suppress(KeyError):
                    poll.unregister(fd)
        if control.fileno() in ready:
            data = control.recv(_MESSAGE)
            if not data:
                raise JailLost("the warm process died")
            if not killed:
                _drain(streams)
            return cast(End, json.loads(data))


def _drain(streams: _Streams) -> None:
    """Take what was written before the end; all writers are dead."""
    for fd in streams.data:
        before = -1
        while len(streams.data[fd]) != before and not streams.over:
            before = len(streams.data[fd])
            streams.read(fd)


def _judge(job: Job, limits: Limits, end: End, streams: _Streams, seconds: float) -> SandboxResult:
    frames, stdout, stderr = streams.texts()
    answer = _Answer(frames)
    code = end["exit"]
    attempts = list(answer.attempts)
    if code == -signal.SIGSYS:
        attempts.append(_FORBIDDEN_CALL)
    name, error, value = answer.error_name, answer.error, None
    wants_value = not isinstance(job, Script | Command)
    if end["why"] == "error":
        verdict, error = Verdict.SANDBOX_ERROR, end["text"]
    elif streams.over or end["why"] == "disk" or code == -signal.SIGXFSZ:
        verdict, error = Verdict.OUTPUT, "wrote more than it may"
    elif end["why"] == "timeout" or code == -signal.SIGXCPU or end["cpu"] > limits.cpu_s:
        verdict, error = Verdict.TIMEOUT, f"over {limits.cpu_s:g} s of CPU or {limits.wall_s:g} s"
    elif end["why"] == "memory" or answer.kind == harness.NO_MEMORY:
        verdict, error = Verdict.MEMORY, f"over {limits.memory >> 20} MB"
    elif answer.kind == harness.NOT_PLAIN:
        verdict = Verdict.WRONG
    elif code != 0 or answer.kind == harness.ERROR or answer.broken:
        verdict, error = Verdict.CRASH, error or f"ended with {_shown(code)}"
    elif wants_value and answer.kind != harness.VALUE:
        verdict, error = Verdict.CRASH, "ended without a value"
    else:
        verdict, value, error = Verdict.OK, answer.value, ""
    return SandboxResult(
        verdict=verdict,
        value=value,
        stdout=stdout,
        stderr=stderr,
        error=error,
        error_name=name,
        exit_code=code,
        seconds=seconds,
        cpu_s=end["cpu"],
        attempts=tuple(attempts),
    )


class _Answer:
    """The frames of a run: at most one answer, and what was seen of tampering."""

    def __init__(self, frames: bytes):
        self.kind = b""
        self.value: bytes | None = None
        self.error = self.error_name = ""
        self.broken = False
        self.attempts: list[str] = []
        at = 0
        while at < len(frames):
            if len(frames) - at < harness.HEADER.size:
                self._refuse("half a frame")
                return
            kind, length = harness.HEADER.unpack_from(frames, at)
            at += harness.HEADER.size
            body = frames[at : at + length]
            at += length
            if len(body) < length:
                self._refuse("half a frame")
                return
            self._take(kind, body)

    def _take(self, kind: bytes, body: bytes) -> None:
        text = body.decode("utf-8", "replace")
        if kind == harness.TAMPERING:
            self.attempts.append(text[:120])
            return
        if self.kind:
            self._refuse("a second answer")
            return
        self.kind = kind
        if kind == harness.VALUE:
            self.value = body
        elif kind == harness.ERROR:
            self.error_name, _, self.error = text.partition("\n")
        elif kind in (harness.NOT_PLAIN, harness.NO_MEMORY):
            self.error = text[:500]
        else:
            self._refuse("an unknown frame")

    def _refuse(self, what: str) -> None:
        self.broken, self.value = True, None
        self.attempts.append(what)


def _shown(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _sealed(data: bytes) -> int:
    """Return a descriptor of these bytes that nobody can change, at its start."""
    fd = os.memfd_create("braid", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a jail that does not end: from its leaves up, so that each is reaped by its parent."""
    from rewards.sandbox.inside.processes import Tree

    for pid in (*reversed(Tree.descendants(process.pid)), process.pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    process.wait(_STOP_S)
