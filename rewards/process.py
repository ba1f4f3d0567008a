"""One grader process as its owner sees it: started warm, asked with a deadline, killed at it.

A worker that is killed leaves its sandboxes without a parent; its owner adopts and reaps them.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import cast

from pydantic import JsonValue

from configs.graders.union import GraderConfig
from configs.sandbox import SandboxConfig
from rewards import wire
from rewards.sandbox.orphans import adopting, below, reap
from rewards.score import Score
from rewards.subject import Subject

_INHERITED = (
    "PATH",
    "HOME",
    "TMPDIR",
    "TZ",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)
"""All that a worker gets of its owner's environment: graders run model text, so no secret."""
START_TIMEOUT_S = 120.0
"""Longest that a worker may take to import its graders."""
_REAP_TIMEOUT_S = 10.0
_LOOK_S = 0.005


class GraderStartError(Exception):
    """A worker could not be started; grading cannot go on."""


class GraderProcess:
    """Owns at most one live worker. Blocking; used by one thread at a time.

    Only `interrupt` may be called from elsewhere: the thread that waits then gets WorkerLost.
    Nothing but `kill` reaps the worker, so its process id stays ours until then.
    """

    def __init__(self, graders: Mapping[str, GraderConfig], sandbox: SandboxConfig | None = None):
        """Start nothing yet.

        Args:
            graders: COMPUTE graders by path.
            sandbox: walls and limits of the code that they test.
        """
        self._hello: JsonValue = {
            "graders": {path: grader.model_dump(mode="json") for path, grader in graders.items()},
            "sandbox": (sandbox or SandboxConfig()).model_dump(mode="json"),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._interrupted = False

    @property
    def pid(self) -> int | None:
        """Process id of the live worker."""
        return None if self._process is None else self._process.pid

    def ensure_started(self) -> None:
        """Start a worker if none is alive, and wait until it is ready.

        Raises:
            GraderStartError: it died, said what failed, or took longer than START_TIMEOUT_S.
        """
        if self._process is not None and _running(self._process):
            return
        self.kill()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rewards.worker", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=_environment(),
            )
        self._sock = ours
        if self._interrupted:  # read after the process is known to `interrupt`
            self.kill()
            raise GraderStartError("the grader pool is closed")
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            wire.send(ours, self._hello, deadline)
            answer = cast("dict[str, JsonValue]", wire.receive(ours, deadline))
        except (TimeoutError, wire.WorkerLost) as error:
            process = self._process
            self.kill()
            late = f"was not ready after {START_TIMEOUT_S:g} s"
            died = f"died while starting ({_death(process)}); its output tells why"
            why = late if isinstance(error, TimeoutError) else died
            raise GraderStartError(f"the grader process {why}") from error
        if not answer["ready"]:
            self.kill()
            raise GraderStartError(f"the grader process cannot load: {answer['message']}")

    def grade(self, path: str, subject: Subject, timeout_s: float) -> Score:
        """Have one rollout graded by the grader at `path`.

        Raises:
            GradeFailed: the grader cannot judge it.
            TimeoutError: no answer in time; the worker is killed.
            WorkerLost: the worker died, or `interrupt` was called.
            GraderStartError: there was no live worker, and none could be started.
        """
        self.ensure_started()
        sock, process = self._sock, self._process
        if sock is None or process is None:
            raise wire.WorkerLost("killed")
        deadline = time.monotonic() + timeout_s
        try:
            wire.send(sock, {"path": path, "subject": wire.pack_subject(subject)}, deadline)
            answer = wire.receive(sock, deadline)
        except TimeoutError:
            self.kill()
            raise
        except wire.WorkerLost as error:
            self.kill()
            raise wire.WorkerLost(f"the grader process died ({_death(process)})") from error
        return wire.unpack_result(answer)

    def interrupt(self) -> None:
        """Kill the worker while another thread may be waiting for it, and start no other."""
        self._interrupted = True
        process, sock = self._process, self._sock
        if process is not None and process.returncode is None:
            _end(process)
        if sock is not None:
            with contextlib.suppress(OSError):  # closed by its owner just now
                sock.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """Kill the worker, if there is one, with all that it started, and reap it."""
        process, sock = self._process, self._sock
        self._process = self._sock = None
        if process is not None:
            if process.returncode is None:
                _end(process)
            process.wait(_REAP_TIMEOUT_S)
        if sock is not None:
            sock.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker, which somebody else reaps, with its group and all below it."""
    members = below(process.pid)
    deadline = time.monotonic() + _REAP_TIMEOUT_S
    with adopting():
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # reaped just now
            os.killpg(process.pid, signal.SIGKILL)
            while _running(process) and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
        reap(members)


def _environment() -> dict[str, str]:
    """Return the environment of a worker: it finds every module that its parent finds."""
    return {
        **{name: os.environ[name] for name in _INHERITED if name in os.environ},
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore::SyntaxWarning",
    }


def _running(process: subprocess.Popen[bytes]) -> bool:
    """Return whether the process, not reaped yet, has not ended; reaps nothing."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, options) is None


def _death(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
