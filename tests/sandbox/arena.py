"""Plants secrets, targets and victims, lets attacks loose in a sandbox, and says which ones won.

    python tests/sandbox/arena.py TIER [--only NAME ...] [--families NAME ...] [--userns] SECRET

The secret is an argument, a variable of the environment, a file and an open descriptor. Prints one
JSON object: attack -> why it won, or empty.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from attacks import ATTACKS, Attack
from hacks import FOR_TRUE, HACKS, HONEST

from rewards.sandbox.jail import Sandbox
from rewards.sandbox.result import MB, Call, Limits, SandboxResult, Script, Tier

SMALL = Limits(
    cpu_s=0.4, wall_s=2.0, memory=128 * MB, output=MB // 4, disk=8 * MB, files=300, processes=8
)
LARGE = Limits(cpu_s=2.0, wall_s=4.0, processes=8)
ROOMY = Limits(cpu_s=2.0, wall_s=30.0)
"""Of honest code, on a machine that others keep busy."""


class World:
    """What is worth attacking."""

    def __init__(self, secret: str):
        self.secret = secret
        self.mark = f"braid-mark-{secrets.token_hex(4)}"
        self.daemon = f"braid-daemon-{secrets.token_hex(4)}"
        self.folder = Path(tempfile.mkdtemp(prefix="braid-arena-"))
        self.folder.chmod(0o755)
        self._planted: dict[str, float] = {}
        self._plant()
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(self.folder / "socket"))
        (self.folder / "socket").chmod(0o777)
        self.unix.listen()
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0{self.mark}")
        self.abstract.listen()
        for target in (self.tcp, self.udp, self.unix, self.abstract):
            target.setblocking(False)
        self.victim = subprocess.Popen(["sleep", "600"])
        self.signals: list[int] = []
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda got, _: self.signals.append(got))
        self.held = os.open(self.folder / "answer.json", os.O_RDONLY)
        os.set_inheritable(self.held, True)

    def _plant(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "answer.json").write_text(json.dumps({"answer": self.secret}))
        for name in ("tests.py", "reward.json"):
            path = self.folder / name
            if path.exists() and path.stat().st_mtime == self._planted.get(name):
                continue
            path.write_text(f"# {name} untouched")
            path.chmod(0o644)
            self._planted[name] = path.stat().st_mtime

    def fill(self, code: str) -> str:
        """Return the program with what was planted put in."""
        values = {
            "WORLD": str(self.folder),
            "MARK": self.mark,
            "PID": str(os.getpid()),
            "VICTIM": str(self.victim.pid),
            "TCP": str(self.tcp.getsockname()[1]),
            "UDP": str(self.udp.getsockname()[1]),
            "ABSTRACT": self.mark,
            "DAEMON": self.daemon,
        }
        for name, value in values.items():
            code = code.replace(f"@{name}@", value)
        return code

    def damage(self, own: Path | None) -> str:
        """Return what an attack did to the world, and mend it.

        Args:
            own: the sandbox's folder, which may hold nothing after a run.
        """
        found: list[str] = []
        for target in (self.tcp, self.unix, self.abstract):
            with contextlib.suppress(BlockingIOError):
                target.accept()[0].close()
                found.append("a connection")
        with contextlib.suppress(BlockingIOError):
            self.udp.recv(100)
            found.append("a datagram")
        if self.signals:
            found.append(f"signals {self.signals}")
            self.signals.clear()
        if self.victim.poll() is not None:
            found.append("the victim died")
            self.victim = subprocess.Popen(["sleep", "600"])
        for name in ("tests.py", "reward.json"):
            path = self.folder / name
            same = path.is_file() and path.stat().st_mtime == self._planted[name]
            if not same or path.stat().st_mode & 0o777 != 0o644:
                found.append(f"{name} changed")
                path.unlink(missing_ok=True)
        self._plant()
        for place in ("/", "/tmp", "/usr", "/usr/local/bin", "/var/tmp", "/root", "/home", "/etc",
                      "/dev", "/dev/shm", str(self.folder)):  # fmt: skip
            mark = Path(place, self.mark)
            with contextlib.suppress(OSError):
                if mark.exists():
                    found.append(f"{mark} written")
                    mark.unlink()
        if own is not None and os.listdir(own):
            found.append(f"left in the folder: {os.listdir(own)[:3]}")
        found += self._daemons()
        return ", ".join(found)

    def _daemons(self) -> Iterator[str]:
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if self.daemon.encode() in Path(f"/proc/{name}/cmdline").read_bytes():
                    os.kill(int(name), signal.SIGKILL)
                    yield f"process {name} lives on"

    def close(self) -> None:
        """Free everything."""
        self.victim.kill()
        self.victim.wait()
        for target in (self.tcp, self.udp, self.unix, self.abstract):
            target.close()
        os.close(self.held)
        shutil.rmtree(self.folder, ignore_errors=True)


def attack(world: World, jail: Sandbox, case: Attack) -> str:
    """Let one attack loose; return why it won, or nothing."""
    limits = SMALL if case.small else LARGE
    result = jail.run(Script(code=world.fill(case.code)), limits)
    why = _why(world, result)
    if case.ends and result.verdict not in case.ends:
        why += f" ended as {result.verdict} ({result.error[-200:]})"
    if result.seconds > 8.0:
        why += f" took {result.seconds:.1f} s"
    why += world.damage(jail.folder)
    control = jail.run(Call(code=HONEST, function="double", args=[21]), ROOMY)
    if not control.equals(42):
        why += f" the next input got {control}"
    if control.stdout or control.attempts:
        why += f" the next input printed {control.stdout!r} {control.attempts}"
    return why.strip()


def _why(world: World, result: SandboxResult) -> str:
    said = result.stdout + result.stderr + result.error.encode() + (result.value or b"")
    if result.verdict == "sandbox_error":
        return f"sandbox error: {result.error}"
    if world.secret.encode() in said:
        return "the secret came out"
    return "it says so: " + repr(result.stdout[-100:]) if b"WIN" in result.stdout else ""


def hack(jail: Sandbox, name: str, code: str) -> str:
    """Judge a wrong solution as a grader would; return why it won, or nothing."""
    for _ in range(2):  # the second time for those that remember
        result = jail.run(Call(code=code, function="double", args=[21]), LARGE)
        if result.verdict == "sandbox_error":
            return f"sandbox error: {result.error}"
        if result.equals(42):
            return "taken for right"
    control = jail.run(Call(code=HONEST, function="double", args=[21]), ROOMY)
    return "" if control.equals(42) else f"the next input got {control}"


def zombies() -> list[int]:
    """Return processes that ended and were not reaped, among our children."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                if fields[0] == b"Z" and int(fields[1]) == os.getpid():
                    found.append(int(name))
    return found


def fight(
    tier: Tier, secret: str, families: set[str], only: set[str], userns: bool
) -> dict[str, str]:
    """Run the chosen attacks; return why each one won."""
    results: dict[str, str] = {}
    world = World(secret)
    try:
        with Sandbox(tier, own_user_namespace=userns) as jail:
            jail.start()
            for case in ATTACKS:
                if case.family in families and (not only or case.name in only):
                    results[f"{case.family}: {case.name}"] = attack(world, jail, case)
            if "verdicts" in families:
                for name, code in HACKS.items():
                    if not only or name in only:
                        results[f"verdicts: {name}"] = hack(jail, name, code)
                one = jail.run(Call(code=FOR_TRUE, function="double", args=[21]))
                results["verdicts: 1 for True"] = "taken for right" if one.equals(True) else ""
        time.sleep(0.05)
        results["after it: processes"] = f"zombies {left}" if (left := zombies()) else ""
    finally:
        world.close()
    return results


FAMILIES = ("secrets", "integrity", "network", "processes", "kernel", "resources", "verdicts")


def main() -> None:
    """Fight in one tier and print the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tier", type=Tier)
    parser.add_argument("secret")
    parser.add_argument("--families", nargs="*", default=FAMILIES)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--userns", action="store_true")
    given = parser.parse_args()
    results = fight(given.tier, given.secret, set(given.families), set(given.only), given.userns)
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
