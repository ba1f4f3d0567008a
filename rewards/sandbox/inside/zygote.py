"""The warm process in the jail: forks a pristine child for each input, watches it, kills it.

Invariants:
- tested code never runs here, and nothing that comes from it is read here: a child's answer goes
  to the parent by a descriptor that the parent made;
- no child outlives its input, nor does a file: in the bubblewrap tier each input has its own
  process and mount namespace, which die with it; elsewhere every descendant is killed (this
  process is their subreaper) and the folder is emptied before the parent hears of the end;
- it ends, and all with it, when the parent's end of the control socket closes.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import TypedDict, cast

from . import harness, kernel, landlock, seccomp
from .confine import Confinement, Limits, confine, lower_limits, private_mounts
from .folder import clear, usage
from .processes import Tree
from .syscalls import table

_FDS = 5  # request, result, stdin, stdout, stderr
_FIRST_LOOK_S, _LOOK_S = 0.05, 0.02
_KILL_S = 5.0
_TELL, _RULES = 200, 201
"""Descriptors in a child until it is confined: where it says what went wrong, Landlock's rules."""
_MESSAGE = 1 << 16


class End(TypedDict):
    """How a child ended, as the parent hears it."""

    why: str
    """Empty, or which limit it was killed at; `error` where it could not be confined."""
    text: str
    exit: int
    """Exit code, or the signal that killed it as a negative number."""
    cpu: float
    rss: int


def main() -> None:
    """Serve until the parent closes the control socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    given = Confinement(**json.loads(sys.argv[2]))
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    sys.path[:] = [*sys.path, *given.path]
    for name in given.preload:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    os.chdir(given.work)
    rules = landlock_rules(given)
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    Zygote(control, given, rules).serve()


def landlock_rules(given: Confinement) -> int:
    """Return the Landlock rules of the tier, or -1 for none."""
    if given.tier != "landlock":
        return -1
    devices = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]
    return landlock.ruleset(given.readable, [given.work], devices)


class Zygote:
    """Serves one input at a time."""

    def __init__(self, control: socket.socket, given: Confinement, rules: int):
        self._control = control
        self._given = given
        self._rules = rules
        self._own = Tree.memory_of(os.getpid())

    def serve(self) -> None:
        """Run inputs until the control socket closes; leave nothing behind."""
        while True:
            data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE, _FDS)
            if not data:
                break
            if len(fds) != _FDS:  # a kill that came after the end
                continue
            end = self._run(Limits(**json.loads(data)), fds)
            if end["why"] == "abandoned":
                break
            self._control.send(json.dumps(end).encode())
        if self._given.tier != "bwrap":
            os.rmdir(self._given.work)

    def _run(self, limits: Limits, fds: list[int]) -> End:
        report, tell = os.pipe()
        began = time.monotonic()
        pid = self._fork()
        if pid == 0:
            try:
                os.close(report)
                self._child(limits, fds, tell)
            except BaseException as error:  # noqa: BLE001 - the parent must hear of it
                _tell(_TELL, {"why": "error", "text": f"{type(error).__name__}: {error}"})
            finally:
                os._exit(99)
        for fd in (*fds, tell):
            os.close(fd)
        why = self._watch(pid, limits, began)
        end = self._reap(pid, report, why)
        os.close(report)
        if self._given.tier != "bwrap":
            self._sweep()
        return end

    def _fork(self) -> int:
        if self._given.tier == "bwrap":
            return kernel.fork_into(kernel.CLONE_NEWPID | kernel.CLONE_NEWNS, table()["clone"])
        return os.fork()

    def _child(self, limits: Limits, fds: list[int], tell: int) -> None:
        """Confine this new process and run the input. Never returns."""
        self._control.close()
        _arrange(fds, tell, self._rules)
        if self._given.tier == "bwrap":
            private_mounts(self._given, limits)
            confine(self._given)
            self._be_init()
        else:
            confine(self._given)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        lower_limits(self._given, limits, self._own.virtual)
        request = _read_request()
        if self._rules >= 0:
            landlock.restrict(_RULES)
        if self._given.tier != "rlimits":
            seccomp.load(seccomp.program(self._filter(limits)))
        os.closerange(5, _RULES + 1)
        gc.enable()
        harness.run(request, self._given.path)

    def _filter(self, limits: Limits) -> seccomp.Rules:
        same_user = self._given.tier == "landlock" and self._given.uid is None
        scoped = landlock.abi() >= landlock.SIGNALS_SINCE or self._given.tier == "bwrap"
        return seccomp.Rules(
            fork=limits.processes > 1,
            own_files=same_user,
            signals_to=0 if scoped else os.getpid(),
        )

    def _be_init(self) -> None:
        """Fork the tested process, and stay as the first of its namespace until it ends."""
        child = os.fork()
        if child == 0:
            return
        for fd in range(5):
            os.close(fd)
        while True:
            pid, status, use = os.wait3(0)
            if pid == child:
                break
        _tell(_TELL, _ended(status, use.ru_utime + use.ru_stime, use.ru_maxrss))
        os._exit(0)

    def _watch(self, pid: int, limits: Limits, began: float) -> str:
        """Wait for the child; return which limit it was killed at, or nothing."""
        ended = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        tree, pause = Tree(pid, self._own.resident), _FIRST_LOOK_S
        try:
            while True:
                ready = [fd for fd, _ in poll.poll(pause * 1000)]
                if ended in ready:
                    return ""
                if ready:
                    why = "killed" if self._control.recv(_MESSAGE) else "abandoned"
                else:
                    why = self._over(tree, limits, time.monotonic() - began)
                if why:
                    self._kill(pid)
                    return why
                pause = _LOOK_S
        finally:
            os.close(ended)

    def _over(self, tree: Tree, limits: Limits, seconds: float) -> str:
        """Return which limit the processes are beyond."""
        if seconds > limits.wall_s:
            return "timeout"
        cpu, resident = tree.measure()
        if cpu > limits.cpu_s:
            return "timeout"
        if resident > limits.memory:
            return "memory"
        if self._given.tier == "bwrap":
            return ""
        size, files = usage(self._given.work, limits.files)
        return "disk" if size > limits.disk or files > limits.files else ""

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _reap(self, pid: int, report: int, why: str) -> End:
        _, status, use = os.wait4(pid, 0)
        told = os.read(report, _MESSAGE)
        if told:
            end = cast(End, {**_ended(status, 0.0, 0), **json.loads(told)})
        else:
            end = _ended(status, use.ru_utime + use.ru_stime, use.ru_maxrss)
        if why:
            end["why"] = why
        return end

    def _sweep(self) -> None:
        """Kill and reap every descendant that is left, and empty the folder.

        Raises:
            TimeoutError: some live on; the process ends, and the parent starts another one.
        """
        deadline = time.monotonic() + _KILL_S
        while left := Tree.children(os.getpid()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes {left} cannot be killed")
            self._kill_all(left)
            for _ in range(len(left)):
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(-1, 0 if len(left) == 1 else os.WNOHANG)
        clear(self._given.work)

    def _kill_all(self, left: list[int]) -> None:
        """Kill the children, and theirs: at one stroke where they have a user of their own."""
        if self._given.uid is None:
            for pid in left:
                for one in (pid, *Tree.descendants(pid)):
                    self._kill(one)
            return
        killer = os.fork()
        if killer == 0:
            try:
                kernel.become(self._given.uid)
                os.kill(-1, signal.SIGKILL)
            finally:
                os._exit(0)
        os.waitpid(killer, 0)


def _arrange(fds: list[int], tell: int, rules: int) -> None:
    """Put the input's descriptors at 0 to 4, the others at _TELL and _RULES; close the rest."""
    request, result, stdin, stdout, stderr = fds
    moves = {**dict(enumerate((stdin, stdout, stderr, request, result))), _TELL: tell}
    if rules >= 0:
        moves[_RULES] = rules
    held = {
        target: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _RULES + 1) for target, fd in moves.items()
    }
    for target, fd in held.items():
        os.dup2(fd, target, inheritable=target < 3)
    os.closerange(5, _TELL)
    os.closerange(_RULES + (rules >= 0), 1 << 16)


def _read_request() -> dict[str, object]:
    with open(harness.REQUEST, "rb", closefd=False) as file:
        return cast("dict[str, object]", json.loads(file.read()))


def _ended(status: int, cpu: float, rss: int) -> End:
    return End(why="", text="", exit=os.waitstatus_to_exitcode(status), cpu=cpu, rss=rss)


def _tell(tell: int, what: object) -> None:
    os.write(tell, json.dumps(what).encode())
