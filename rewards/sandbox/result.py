"""What goes into the jail and what comes out of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from rewards.sandbox.inside.confine import Limits as KernelLimits
from rewards.sandbox.inside.values import canonical

MB = 1 << 20


class Tier(StrEnum):
    """How strong the walls are; the strongest first."""

    BWRAP = "bwrap"
    """bubblewrap: namespaces, seccomp, limits; nothing of this machine in sight."""
    LANDLOCK = "landlock"
    """Landlock, seccomp, limits, no_new_privs, another user where root."""
    RLIMITS = "rlimits"
    """Limits alone: no boundary against code that means harm."""


class Verdict(StrEnum):
    """How a run ended."""

    OK = "ok"
    """It ended by itself, with a value where one was asked for."""
    WRONG = "wrong"
    """Its value is none that any plain value can equal: NaN, a subclass, too deep, too large."""
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT = "output"
    """It wrote more than it may, to its streams or its folder."""
    CRASH = "crash"
    """It raised, was killed by a signal, or ended without the value asked for."""
    SANDBOX_ERROR = "sandbox_error"
    """Ours, not its: never a reward of 0."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run may use. Bytes and seconds."""

    cpu_s: float = 5.0
    """CPU time of all its processes."""
    wall_s: float = 11.0
    """Time on the clock; above the CPU time, so that a busy machine fails nobody."""
    memory: int = 512 * MB
    """Address space of each process, and resident memory of all together."""
    processes: int = 1
    """1 forbids starting any; threads are bounded either way."""
    output: int = MB
    """Of each of stdout, stderr and the value."""
    disk: int = 64 * MB
    """In its folder, the only place that it can write to."""
    files: int = 1024
    """In its folder."""
    file_size: int = 16 * MB
    open_files: int = 64

    def for_kernel(self) -> KernelLimits:
        """Return the part that is enforced beside the process."""
        return KernelLimits(
            cpu_s=self.cpu_s,
            wall_s=self.wall_s,
            memory=self.memory,
            processes=self.processes,
            open_files=self.open_files,
            file_size=min(self.file_size, self.disk),
            disk=self.disk,
            files=self.files,
        )


@dataclass(frozen=True, kw_only=True)
class Script:
    """A Python program: reads stdin, writes stdout."""

    code: str
    stdin: str = ""

    def request(self) -> dict[str, object]:
        """Return what the jail is told."""
        return {"mode": "script", "code": self.code}


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call of a Python function; its value is what is asked for."""

    code: str
    function: str
    """Name, or `Class.method` of an object made without arguments."""
    args: Sequence[object] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict[str, object])
    wrappers: Sequence[tuple[str, Sequence[object]]] = ()
    """Built-in functions that the value goes through, and their further arguments."""
    tuples_as_lists: bool = False
    """Write a tuple of the value as a list."""

    def request(self) -> dict[str, object]:
        """Return what the jail is told."""
        return {
            "mode": "call",
            "code": self.code,
            "function": self.function,
            "arguments": canonical([list(self.args), dict(self.kwargs)]),
            "wrappers": canonical([[name, list(more)] for name, more in self.wrappers]),
            "tuples_as_lists": self.tuples_as_lists,
        }


@dataclass(frozen=True, kw_only=True)
class Grade:
    """A grader's `grade(sample, item)`."""

    source: str
    sample: Mapping[str, object]
    item: Mapping[str, object]

    def request(self) -> dict[str, object]:
        """Return what the jail is told."""
        given: dict[str, object] = {"sample": dict(self.sample), "item": dict(self.item)}
        return {"mode": "grade", "code": self.source, **given}


@dataclass(frozen=True, kw_only=True)
class Command:
    """A shell command in a folder with these files."""

    command: str
    files: Mapping[str, str]
    stdin: str = ""

    def request(self) -> dict[str, object]:
        """Return what the jail is told."""
        return {"mode": "command", "command": self.command, "files": dict(self.files)}


Job = Script | Call | Grade | Command


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxResult:
    """What a run gave back. Everything here but the verdict is the tested code's word."""

    verdict: Verdict
    value: bytes | None = None
    """Canonical text of the value (`inside.values`)."""
    stdout: bytes = b""
    stderr: bytes = b""
    error: str = ""
    """What went wrong: the exception's last lines, the limit, or what the sandbox could not do."""
    error_name: str = ""
    """Class of the exception."""
    exit_code: int = 0
    """Negative: the signal that ended it."""
    seconds: float = 0.0
    cpu_s: float = 0.0
    attempts: tuple[str, ...] = ()
    """What it tried that only tampering tries, as far as it was seen."""

    def equals(self, expected: object, *, tuples_as_lists: bool = False) -> bool:
        """Return whether the value is the expected one, of the very same types throughout."""
        text = canonical(expected, tuples_as_lists=tuples_as_lists)
        return self.verdict is Verdict.OK and self.value == text.encode()
