"""Which tier holds here: each is tried by attacking it, and the strongest that holds is taken."""

import os
import platform
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from configs.errors import ConfigError, Problem
from rewards.sandbox.inside import landlock
from rewards.sandbox.inside.syscalls import AUDIT_ARCH
from rewards.sandbox.jail import Sandbox
from rewards.sandbox.launch import TierUnavailable
from rewards.sandbox.result import MB, Call, Limits, Script, Tier, Verdict

_LIMITS = Limits(cpu_s=1.0, wall_s=30.0, memory=128 * MB)
_SHORT = replace(_LIMITS, cpu_s=0.1, wall_s=2.0)
_HONEST = "import csv\ndef double(x):\n    return 2 * x\n"  # csv: not loaded beforehand
_STRENGTH = {Tier.RLIMITS: 0, Tier.LANDLOCK: 1, Tier.BWRAP: 2}
_INSTALL = "Install the package `bubblewrap` (apt-get install bubblewrap, dnf install bubblewrap)."
_ALLOW = (
    "Allow user namespaces (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces; "
    "in a pod: seccompProfile Unconfined), or be content with `landlock`."
)
_KERNEL = "Use Linux 5.13 or newer with Landlock among its security modules (boot option lsm=)."


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the self-test found of one tier."""

    tier: Tier
    works: bool
    detail: str
    """How it is set up, or why it does not work."""
    remedy: str = ""
    held: Mapping[str, bool] = field(default_factory=dict[str, bool])
    """Attack -> whether the tier stopped it."""
    own_user_namespace: bool = False
    """How bubblewrap must be started."""

    def __str__(self) -> str:
        return f"{self.tier} ({self.detail})"


def choose_tier(require: str = "any") -> Probe:
    """Return the strongest tier that holds here.

    Args:
        require: the weakest that will do: `any`, `landlock`, `bwrap`.

    Raises:
        ConfigError: only weaker ones hold, or none.
    """
    weakest = 0 if require == "any" else _STRENGTH[Tier(require)]
    failed: list[Probe] = []
    for tier in Tier:
        if _STRENGTH[tier] < weakest:
            break
        found = probe(tier)
        if found.works:
            return found
        failed.append(found)
    where = "reward.sandbox.require"
    what = "; ".join(f"{p.tier}: {p.detail}" for p in failed)
    remedy = " Or: ".join(p.remedy for p in failed if p.remedy)
    raise ConfigError(
        Problem(where=where, what=f"{require!r} does not hold on this machine: {what}", fix=remedy)
    )


@cache
def probe(tier: Tier) -> Probe:
    """Return whether a tier works here and stops what it must; attacks it once a process."""
    if tier is Tier.BWRAP:
        return _probe_bwrap()
    if tier is Tier.LANDLOCK:
        if platform.machine() not in AUDIT_ARCH:
            what = f"no system call filter for {platform.machine()} (only {', '.join(AUDIT_ARCH)})"
            return Probe(tier=tier, works=False, detail=what, remedy="Use bubblewrap's machines.")
        if landlock.abi() < 1:
            return Probe(tier=tier, works=False, detail="no Landlock", remedy=_KERNEL)
        return _try(tier, f"Landlock {landlock.abi()}, seccomp, limits, {_user()}", _KERNEL)
    return _try(tier, f"limits alone, {_user()}: no boundary", "Run on Linux 5.3 or newer.")


def _probe_bwrap() -> Probe:
    if shutil.which("bwrap") is None:
        return Probe(tier=Tier.BWRAP, works=False, detail="not installed", remedy=_INSTALL)
    found = _try(Tier.BWRAP, f"namespaces, seccomp, limits, {_user()}", _ALLOW)
    if found.works or os.geteuid() != 0:
        return found
    detail = f"user namespace, seccomp, limits, {_user()}"
    second = _try(Tier.BWRAP, detail, _ALLOW, own_user_namespace=True)
    return second if second.works else found


def _user() -> str:
    return "another user" if os.geteuid() == 0 else "our own user"


def _try(tier: Tier, detail: str, remedy: str, *, own_user_namespace: bool = False) -> Probe:
    if sys.platform != "linux":
        return Probe(tier=tier, works=False, detail="needs Linux", remedy="Run on Linux.")
    try:
        with Sandbox(tier, _LIMITS, own_user_namespace=own_user_namespace) as jail:
            jail.start()
            honest = jail.run(Call(code=_HONEST, function="double", args=[21]))
            if not honest.equals(42):
                why = (
                    f"honest code does not run: {honest.error.splitlines()[-1:] or honest.verdict}"
                )
                return Probe(tier=tier, works=False, detail=why, remedy=remedy)
            held = _attack(jail, boundary=tier is not Tier.RLIMITS)
    except (TierUnavailable, OSError) as error:
        better = error.remedy if isinstance(error, TierUnavailable) else ""
        return Probe(tier=tier, works=False, detail=str(error), remedy=better or remedy)
    lost = [name for name, stopped in held.items() if not stopped]
    return Probe(
        tier=tier,
        works=not lost,
        detail=f"does not stop: {', '.join(lost)}" if lost else detail,
        remedy=remedy if lost else "",
        held=held,
        own_user_namespace=own_user_namespace,
    )


def _attack(jail: Sandbox, *, boundary: bool) -> dict[str, bool]:
    """Return which attacks the jail stops; a tier that is no boundary faces those on limits."""
    attacks: dict[str, Callable[[Sandbox], bool]] = {
        "endless loop": _stops_loop,
        "memory": _stops_memory,
        "environment": _hides_environment,
    }
    if boundary:
        attacks |= {
            "read a file": _stops_reading,
            "write a file": _stops_writing,
            "network": _stops_connecting,
            "signal": _stops_signals,
            "new namespace": _stops_namespaces,
        }
    return {name: stops(jail) for name, stops in attacks.items()}


def _stops_loop(jail: Sandbox) -> bool:
    return jail.run(Script(code="while True: pass"), _SHORT).verdict is Verdict.TIMEOUT


def _stops_memory(jail: Sandbox) -> bool:
    return jail.run(Script(code="x = bytearray(1 << 30)")).verdict is Verdict.MEMORY


def _hides_environment(jail: Sandbox) -> bool:
    result = jail.run(Script(code="import os; print(*os.environ)"))
    return result.verdict is Verdict.OK and result.stdout == b"\n"


def _stops_reading(jail: Sandbox) -> bool:
    with tempfile.TemporaryDirectory(prefix="braid-probe-") as folder:
        Path(folder).chmod(0o755)
        secret = Path(folder, "secret")
        secret.write_text("secret")
        secret.chmod(0o644)
        return b"secret" not in jail.run(Script(code=f"print(open({str(secret)!r}).read())")).stdout


def _stops_writing(jail: Sandbox) -> bool:
    with tempfile.TemporaryDirectory(prefix="braid-probe-") as folder:
        Path(folder).chmod(0o777)
        target = Path(folder, "written")
        jail.run(Script(code=f"open({str(target)!r}, 'w').write('x')"))
        return not target.exists()


def _stops_connecting(jail: Sandbox) -> bool:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = server.getsockname()
        jail.run(Script(code=f"import socket; socket.create_connection({address!r}, 1)"))
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return True
        return False


def _stops_signals(jail: Sandbox) -> bool:
    """Aim at a child of ours, so that nothing is hurt where the tier fails."""
    victim = os.posix_spawn("/bin/sleep", ["sleep", "30"], {})
    try:
        jail.run(Script(code=f"import os; os.kill({victim}, 9)"))
        time.sleep(0.01)
        return os.waitid(os.P_PID, victim, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    finally:
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)


def _stops_namespaces(jail: Sandbox) -> bool:
    code = "import ctypes; print(ctypes.CDLL(None).unshare(0x10000000))"
    return jail.run(Script(code=code)).stdout.strip() != b"0"
