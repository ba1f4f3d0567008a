"""The seccomp program and the tables of system calls, without loading them."""

import platform
import re
import struct
from pathlib import Path

import pytest

from rewards.sandbox.inside import syscalls
from rewards.sandbox.inside.seccomp import DEADLY, DENIED, Rules, program

KILL, ERRNO, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000


def judge(filter_: bytes, arch: int, number: int, *args: int) -> int:
    """Run the filter on one system call, as the kernel does."""
    steps = [struct.unpack_from("=HBBI", filter_, at) for at in range(0, len(filter_), 8)]
    given = struct.pack("=IIQ6Q", number, arch, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    at = accumulator = 0
    for _ in range(len(steps)):
        code, yes, no, k = steps[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", given, k)
        elif code == 0x06:
            return k
        else:
            hit = {
                0x15: accumulator == k,
                0x35: accumulator >= k,
                0x45: accumulator & k != 0,
            }[code]
            at += yes if hit else no
    raise AssertionError("the program does not end")


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest) -> str:
    return request.param


def verdict(machine: str, rules: Rules, name: str, *args: int) -> int:
    arch = syscalls.AUDIT_ARCH[machine]
    return judge(program(rules, machine), arch, syscalls.table(machine)[name], *args)


def test_each_listed_call_is_judged_as_listed(machine: str):
    table = syscalls.table(machine)
    for name in set(DEADLY) & set(table):
        assert verdict(machine, Rules(), name) == KILL, name
    for name in set(DENIED) & set(table):
        assert verdict(machine, Rules(), name) == ERRNO, name


def test_other_calls_and_other_machines(machine: str):
    read = {"x86_64": 0, "aarch64": 63}[machine]
    arch = syscalls.AUDIT_ARCH[machine]
    assert judge(program(Rules(), machine), arch, read) == ALLOW
    assert judge(program(Rules(), machine), 0x40000003, read) == KILL  # 32-bit calls


def test_x32_calls_die():
    arch = syscalls.AUDIT_ARCH["x86_64"]
    assert judge(program(Rules(), "x86_64"), arch, 0x40000000 + 39) == KILL


def test_clone_by_its_flags(machine: str):
    fork, thread = Rules(fork=True), Rules(fork=False)
    assert verdict(machine, fork, "clone", 17) == ALLOW
    assert verdict(machine, thread, "clone", 17) == ERRNO
    assert verdict(machine, thread, "clone", 0x00010000 | 0x100) == ALLOW
    for flag in (
        0x80,
        0x20000,
        0x2000000,
        0x4000000,
        0x8000000,
        0x10000000,
        0x20000000,
        0x40000000,
    ):
        assert verdict(machine, fork, "clone", flag | 17) == ERRNO, hex(flag)
    assert verdict(machine, fork, "clone3") & 0xFFFF == 38


def test_calls_on_other_processes(machine: str):
    assert verdict(machine, Rules(), "prlimit64", 0) == ALLOW
    assert verdict(machine, Rules(), "prlimit64", 4711) == ERRNO
    assert verdict(machine, Rules(), "ioctl", 0, 0x5412) == ERRNO
    assert verdict(machine, Rules(), "ioctl", 0, 0x5401) == ALLOW


def test_signals_and_modes_where_asked(machine: str):
    only = Rules(signals_to=77, own_files=True)
    assert verdict(machine, only, "kill", 77) == verdict(machine, only, "kill", 0) == ALLOW
    assert verdict(machine, only, "kill", 78) == verdict(machine, only, "kill", 2**32 - 1) == ERRNO
    assert (
        verdict(machine, only, "tgkill", 78) == verdict(machine, only, "pidfd_send_signal") == ERRNO
    )
    assert verdict(machine, only, "fchmod") == ERRNO
    assert verdict(machine, Rules(), "fchmod") == verdict(machine, Rules(), "kill", 78) == ALLOW


def test_a_machine_without_a_table_is_refused():
    with pytest.raises(syscalls.UnknownMachine, match="riscv64"):
        program(Rules(), "riscv64")


def test_numbers_are_the_kernel_headers():
    names = {"x86_64": "unistd_64.h", "aarch64": "unistd_64.h"}
    machine = platform.machine()
    headers = list(Path("/usr/include").rglob(names.get(machine, "-")))
    if not headers:
        pytest.skip("no kernel headers are installed to compare with")
    text = headers[0].read_text()
    known = {n: int(v) for n, v in re.findall(r"#define __NR_(\w+)\s+(\d+)", text)}
    ours = {n: v for n, v in syscalls.table(machine).items() if n in known}
    assert len(ours) > 80
    assert ours == {n: known[n] for n in ours}
