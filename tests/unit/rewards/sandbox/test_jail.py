"""What a run gives back, in each tier that stands here, and what it leaves behind: nothing."""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rewards.sandbox.inside.processes import Tree
from rewards.sandbox.jail import Sandbox
from rewards.sandbox.result import (
    MB,
    Call,
    Command,
    Grade,
    Job,
    Limits,
    Script,
    Tier,
    Verdict,
)
from rewards.sandbox.tiers import choose_tier, probe

SMALL = Limits(cpu_s=5, wall_s=60, memory=96 * MB, output=1 << 14, disk=4 * MB, files=64)
SHORT = replace(SMALL, cpu_s=0.3, wall_s=0.6)
DOUBLE = Call(code="def double(x):\n    return 2 * x\n", function="double", args=[21])


@pytest.fixture(scope="module", params=list(Tier), ids=str)
def tier(request: pytest.FixtureRequest) -> Tier:
    """A tier that stands here."""
    found = probe(request.param)
    if not found.works:
        pytest.skip(f"{found.tier} does not stand here: {found.detail}")
    return found.tier


@pytest.fixture(scope="module")
def jail(tier: Tier) -> Iterator[Sandbox]:
    with Sandbox(tier, SMALL, own_user_namespace=probe(tier).own_user_namespace) as made:
        yield made


def test_some_boundary_stands_here():
    assert choose_tier("landlock").works


def test_a_value_comes_back_exactly_typed(jail: Sandbox):
    result = jail.run(DOUBLE)
    assert result.verdict is Verdict.OK
    assert result.equals(42)
    assert not result.equals(42.0)
    assert not result.equals(True)


def test_a_method_with_keywords_and_wrappers(jail: Sandbox):
    code = "class S:\n    def pick(self, a, *, key):\n        return {x for x in a if x != key}\n"
    job = Call(
        code=code, function="S.pick", args=[[3, 1, 2]], kwargs={"key": 2}, wrappers=[("sorted", [])]
    )
    assert jail.run(job).equals([1, 3])


def test_a_program_reads_and_writes(jail: Sandbox):
    code = (
        "import sys\nfor line in sys.stdin:\n    print(line.strip()[::-1])\n"
        "print('e', file=sys.stderr)"
    )
    result = jail.run(Script(code=code, stdin="añb\ncd\n"))
    assert result.verdict is Verdict.OK
    assert result.stdout.decode() == "bña\ndc\n"
    assert result.stderr == b"e\n"


def test_a_program_ends_as_the_interpreter_would(jail: Sandbox):
    code = (
        "import atexit, threading, time\natexit.register(print, 'last')\n"
        "go = threading.Event()\n"
        "late = lambda: (go.wait(), time.sleep(0.02), print('thread'))\n"
        "threading.Thread(target=late).start()\n"
        "if __name__ == '__main__': print('main', end='')\n"
        "go.set()\n"
    )
    assert jail.run(Script(code=code)).stdout == b"mainthread\nlast\n"


def test_a_command_runs_another_language(jail: Sandbox):
    job = Command(command="tr a-z A-Z < in.txt; cat", files={"in.txt": "abc"}, stdin="xyz")
    result = jail.run(job, Limits(processes=8))
    assert (result.verdict, result.stdout) == (Verdict.OK, b"ABCxyz")
    assert jail.run(Command(command="exit 3", files={})).exit_code == 3


def test_a_grader_sees_sample_and_item(jail: Sandbox):
    source = "def grade(sample, item):\n    return len(sample['output_text']) / item['n']\n"
    result = jail.run(Grade(source=source, sample={"output_text": "hello"}, item={"n": 10}))
    assert result.equals(0.5)


VERDICTS: dict[str, tuple[Job, Verdict]] = {
    "raises": (Call(code="def f():\n    raise KeyError('k')", function="f"), Verdict.CRASH),
    "no such function": (Call(code="x = 1", function="f"), Verdict.CRASH),
    "does not parse": (Call(code="def f(:", function="f"), Verdict.CRASH),
    "ends without a value": (Call(code="import os\nos._exit(0)", function="f"), Verdict.CRASH),
    "exit code": (Script(code="import sys; sys.exit(1)"), Verdict.CRASH),
    "killed": (Script(code="import ctypes; ctypes.string_at(0)"), Verdict.CRASH),
    "spins": (Script(code="while True: pass"), Verdict.TIMEOUT),
    "sleeps": (Script(code="import time; time.sleep(60)"), Verdict.TIMEOUT),
    "memory": (Script(code="b = bytearray(1 << 30)"), Verdict.MEMORY),
    "memory caught": (
        Call(code="def f():\n    return bytearray(1 << 30)", function="f"),
        Verdict.MEMORY,
    ),
    "floods": (Script(code="while True: print('x' * 1000)"), Verdict.OUTPUT),
    "large value": (Call(code="def f():\n    return 'x' * 10 ** 6", function="f"), Verdict.OUTPUT),
    "not plain": (Call(code="def f():\n    return object()", function="f"), Verdict.WRONG),
    "nan": (Call(code="def f():\n    return float('nan')", function="f"), Verdict.WRONG),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts(jail: Sandbox, name: str):
    job, expected = VERDICTS[name]
    result = jail.run(job, SHORT if expected is Verdict.TIMEOUT else SMALL)
    assert result.verdict is expected, result
    assert result.value is None
    assert result.error
    assert jail.run(DOUBLE).equals(42)


def test_an_exception_comes_with_its_last_lines(jail: Sandbox):
    result = jail.run(Call(code="def f():\n    raise KeyError('k')", function="f"))
    assert result.error_name == "KeyError"
    assert result.error.splitlines()[-1] == "KeyError: 'k'"
    assert "harness" not in result.error


def test_tampering_is_seen(jail: Sandbox):
    code = "import os, gc\ndef f():\n    gc.get_objects()\n    open('/etc/shadow')\n"
    attempts = jail.run(Call(code=code, function="f")).attempts
    assert "gc.get_objects" in attempts
    assert "open /etc/shadow" in attempts
    assert jail.run(DOUBLE).attempts == ()


def test_forbidden_calls_are_seen(jail: Sandbox):
    if jail.tier is Tier.RLIMITS:
        pytest.skip("limits alone filter no system calls")
    result = jail.run(Script(code="import ctypes\nctypes.CDLL(None).ptrace(0, 0, 0, 0)"))
    assert result.exit_code == -signal.SIGSYS
    assert "forbidden system call" in result.attempts


def test_nothing_passes_from_one_input_to_the_next(jail: Sandbox):
    leave = (
        "import builtins, sys, os, random\nbuiltins.left = sys.left = 1\nopen('left', 'w')\n"
        "os.environ['LEFT'] = '1'\nsys.path.append('left')\nsys.setrecursionlimit(99)\n"
        "sys.modules['left'] = sys\nrandom.seed(1)\n"
    )
    look = (
        "import builtins, sys, os, random\nprint(hasattr(builtins, 'left'), hasattr(sys, 'left'),"
        " os.listdir('.'), dict(os.environ), 'left' in sys.path, 'left' in sys.modules,"
        " sys.getrecursionlimit(), random.random())"
    )
    seen = []
    for _ in range(2):
        assert jail.run(Script(code=leave)).verdict is Verdict.OK
        seen.append(jail.run(Script(code=look)).stdout.decode().rsplit(None, 1))
    state = "False False [] {} False False 1000"
    assert [s[0] for s in seen] == [state, state]
    assert seen[0][1] != seen[1][1]  # random numbers are drawn anew


def test_no_new_process_unless_allowed(jail: Sandbox):
    if jail.tier is Tier.RLIMITS:
        pytest.skip("limits alone count threads and processes as one")
    fork = Script(code="import os\npid = os.fork()\nif pid: os.wait(); print('forked')\n")
    assert jail.run(fork).error_name == "PermissionError"
    assert jail.run(fork, Limits(processes=4)).stdout == b"forked\n"


def traces() -> set[str]:
    """Name our open descriptors and our descendants, but for what only waits to be collected."""
    gc.collect()
    descendants = {f"process {pid}" for pid in Tree.descendants(os.getpid())}
    return descendants | {f"descriptor {fd}" for fd in os.listdir("/proc/self/fd")}


def test_300_runs_leave_nothing(tier: Tier):
    before = traces()
    spawn = "import os\nfor _ in range(3):\n    if os.fork() == 0: os._exit(0)\nopen('f', 'w')\n"
    with Sandbox(tier, Limits(processes=8)) as made:
        made.start()
        warm, folder = traces(), made.folder
        for i in range(300):
            job = Script(code=spawn) if i % 10 == 0 else DOUBLE
            assert made.run(job).verdict is Verdict.OK
        assert traces() - warm == set()
    assert traces() - before == set()
    assert folder is None or not folder.exists()


def test_a_dead_warm_process_is_our_fault_and_is_replaced(tier: Tier):
    with Sandbox(tier, Limits()) as made:
        assert made.run(DOUBLE).equals(42)
        assert made.pid is not None
        for pid in (*Tree.descendants(made.pid), made.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        results = [made.run(DOUBLE) for _ in range(3)]
        assert all(r.verdict in (Verdict.OK, Verdict.SANDBOX_ERROR) for r in results)
        assert results[-1].equals(42)


def test_killing_the_owner_frees_everything(tier: Tier):
    program = (
        "import sys\nfrom rewards.sandbox.jail import Sandbox\n"
        "from rewards.sandbox.result import *\n"
        f"s = Sandbox(Tier.{tier.name}, Limits(cpu_s=60, wall_s=60, processes=4))\n"
        "s.start()\nprint(s.pid, s.folder or '', flush=True)\n"
        's.run(Script(code=\'import os, time\\nos.fork()\\nopen("f", "w")\\ntime.sleep(60)\'))\n'
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env)
    try:
        assert owner.stdout is not None
        told, _, folder = owner.stdout.readline().decode().rstrip("\n").partition(" ")
        pid = int(told)
        assert bool(folder) == (tier is not Tier.BWRAP)
        _until(lambda: len(Tree.descendants(pid)) >= 2)
        left = [pid, *Tree.descendants(pid)]
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    _until(lambda: not [p for p in left if _lives(p)])
    _until(lambda: not (folder and os.path.exists(folder)))


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state != b"Z"


def _until(holds: object, seconds: float = 60.0) -> None:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stuck_input_costs_others_nothing():
    """A second sandbox answers while the first one's input spins."""
    tier = choose_tier().tier
    spin = Script(code="while True: pass")
    with Sandbox(tier, Limits(cpu_s=100, wall_s=100)) as stuck, Sandbox(tier, Limits()) as free:
        stuck.start()
        free.start()
        pid = stuck.pid
        assert pid is not None
        idle = len(Tree.descendants(pid))
        thread = threading.Thread(target=stuck.run, args=(spin,))
        thread.start()
        try:
            _until(lambda: len(Tree.descendants(pid)) > idle)
            answers = [free.run(DOUBLE).equals(42) for _ in range(50)]
            assert thread.is_alive()
        finally:
            for one in (*Tree.descendants(pid), pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            thread.join(30)
        assert not thread.is_alive()
    assert all(answers)


def test_the_request_holds_no_more_than_the_input():
    told = json.dumps(DOUBLE.request())
    assert "42" not in told
