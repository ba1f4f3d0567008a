"""Runs one input in its own process and hands back what came out, as frames on one descriptor.

The tested code shares this process and can forge any frame: all that it can forge is its own
answer. What is expected never comes here, and nothing here judges.
"""

import atexit
import builtins
import os
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

from .values import NotPlain, canonical, read

REQUEST, RESULT = 3, 4
"""Descriptors: the input, and where the answer goes."""
HEADER = struct.Struct("!cI")
"""Of a frame: its kind, and the bytes that follow."""
VALUE, ERROR, NO_MEMORY, NOT_PLAIN, TAMPERING = b"v", b"e", b"m", b"u", b"t"
_TRACE_LINES, _TEXT_CHARS, _MOST_EVENTS = 6, 4000, 16
_SUSPECTS = """
    ctypes.call_function ctypes.PyObj_FromPtr ctypes.string_at ctypes.cdata socket.connect
    socket.bind socket.sendto os.kill os.killpg os.chmod os.chown os.setxattr gc.get_objects
    gc.get_referrers sys.setprofile sys._current_frames os.exec os.posix_spawn pty.spawn
    signal.pthread_kill
"""
_SUSPECT = frozenset(_SUSPECTS.split())
"""Audit events that code which only computes an answer does not cause."""
_OUTSIDE = ("/proc", "/sys", "/etc", "/root", "/home", "/dev/mem", "/dev/sd", "/dev/vd")


def run(request: dict[str, object], path: list[str]) -> None:
    """Run the input and end the process. Never returns."""
    own = _Answer()
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogatepass", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    sys.argv = [""]
    sys.path[:] = [*path, os.getcwd()]
    mode = str(request["mode"])
    if mode == "command":
        _become_command(request, own)
    _watch(own)
    code = str(request["code"])
    try:
        if mode == "script":
            _end(_as_program(code, own), flush=True)
        value = _call(code, request) if mode == "call" else _grade(code, request)
        own.send(VALUE, canonical(value, tuples_as_lists=bool(request.get("tuples_as_lists"))))
    except MemoryError:
        own.send(NO_MEMORY, "MemoryError")
    except NotPlain as error:
        own.send(NOT_PLAIN, str(error))
    except BaseException as error:  # noqa: BLE001 - whatever the tested code raises is its answer
        own.error(error)
    _end(0)


class _Answer:
    """The private descriptor."""

    def __init__(self) -> None:
        self._events = 0

    def send(self, kind: bytes, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        view = memoryview(HEADER.pack(kind, len(data)) + data)
        while view:
            view = view[os.write(RESULT, view) :]

    def error(self, error: BaseException) -> None:
        """Send the name, the message and the last lines of the traceback."""
        name = type(error).__name__
        try:
            trace = error.__traceback__
            while trace is not None and trace.tb_frame.f_globals is globals():
                trace = trace.tb_next  # ours, which tell nobody anything
            error = error.with_traceback(trace)
            lines = "".join(traceback.format_exception(error)).strip().splitlines()
        except BaseException:  # noqa: BLE001 - the exception's own methods are the tested code's
            lines = [name]
        shown = "\n".join(lines[-_TRACE_LINES:])[-_TEXT_CHARS:]
        self.send(ERROR, f"{name}\n{shown}")

    def suspect(self, event: str) -> None:
        self._events += 1
        if self._events <= _MOST_EVENTS:
            self.send(TAMPERING, event[:100])


def _watch(own: _Answer) -> None:
    """Tell of what only tampering does. Seen, not stopped: stopping is the kernel's part."""
    busy = [False]
    own_places = (*sys.path, sys.base_prefix, sys.base_exec_prefix)

    def hook(event: str, args: tuple[object, ...]) -> None:
        if busy[0]:
            return
        busy[0] = True
        try:
            if event in _SUSPECT:
                own.suspect(event)
            elif event == "open" and _is_outside(args[0], own_places):
                own.suspect(f"open {args[0]}")
        finally:
            busy[0] = False

    sys.addaudithook(hook)


def _is_outside(path: object, own_places: tuple[str, ...]) -> bool:
    """Whether code has no business there; the interpreter itself may lie in somebody's home."""
    return isinstance(path, str) and path.startswith(_OUTSIDE) and not path.startswith(own_places)


def _module(name: str) -> ModuleType:
    module = ModuleType(name)
    sys.modules[name] = module
    return module


def _as_program(code: str, own: _Answer) -> int:
    """Run as `python solution.py` would; return the exit code."""
    module = _module("__main__")
    try:
        exec(compile(code, "solution.py", "exec"), module.__dict__)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return int(stop.code or 0) & 0xFF
        sys.stderr.write(f"{stop.code}\n")
        return 1
    except MemoryError:
        own.send(NO_MEMORY, "MemoryError")
        return 1
    except BaseException as error:  # noqa: BLE001
        own.error(error)
        return 1
    return 0


def _call(code: str, request: dict[str, object]) -> object:
    """Define the tested code and call its function, or the method of its class."""
    module = _module("solution")
    exec(compile(code, "solution.py", "exec"), module.__dict__)
    owner, _, method = str(request["function"]).rpartition(".")
    found = getattr(getattr(module, owner)(), method) if owner else getattr(module, method)
    args, kwargs = cast("tuple[list[Any], dict[str, Any]]", read(str(request["arguments"])))
    value = found(*args, **kwargs)
    for name, more in cast("list[tuple[str, list[Any]]]", read(str(request["wrappers"]))):
        value = getattr(builtins, name)(value, *more)
    return value


def _grade(code: str, request: dict[str, object]) -> object:
    """Define a grader and call it."""
    module = _module("grader")
    exec(compile(code, "grader.py", "exec"), module.__dict__)
    grade: Callable[[object, object], object] = module.grade
    value: Any = grade(request["sample"], request["item"])
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()  # a grader may compute with numpy; its scalars are floats
    return value


def _become_command(request: dict[str, object], own: _Answer) -> None:
    """Write the files and turn into the shell that runs the command."""
    files = cast("dict[str, str]", request["files"])
    for name, text in files.items():
        with open(name, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    home = os.getcwd()
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": home, "TMPDIR": home}
    environment["LANG"] = "C.UTF-8"
    try:
        os.execve("/bin/sh", ["sh", "-c", str(request["command"])], environment)
    except OSError as error:
        own.error(error)
        _end(127)


def _end(code: int, *, flush: bool = False) -> None:
    """End as the interpreter would (threads, atexit, buffers), without taking it apart."""
    try:
        if flush:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
            sys.stdout.flush()
            sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - a stream that the tested code closed or replaced
        code = code or 120
    os._exit(code)
