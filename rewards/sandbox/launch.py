"""What starts the jail's warm process in each tier, and the user that it gives its children."""

import functools
import json
import os
import shutil
import socket
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rewards.sandbox.inside.confine import Confinement
from rewards.sandbox.result import Tier

_INSIDE = Path(__file__).parent / "inside"
_BOX, _JAIL = "/box", "/braid"
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[3]); from inside.zygote import main; "
    "sys.path.pop(0); main()"
)
_FIRST_UID, _UIDS = 61000, 4000
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC = ("/etc/ld.so.cache", "/etc/alternatives")
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""Of the warm process; the tested code gets an empty one."""


class TierUnavailable(Exception):
    """A tier cannot run here; the message says why."""

    def __init__(self, message: str, remedy: str = ""):
        self.remedy = remedy
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to start the warm process, and what must be freed after it."""

    command: list[str]
    """Follows with the number of the control descriptor, the confinement and the code's folder."""
    confinement: str
    code: str
    environment: Mapping[str, str]
    user: int | None
    """To start it as; empty for ours."""
    folder: Path | None
    claim: socket.socket | None

    def arguments(self, control: int) -> list[str]:
        """Return the whole command line."""
        return [*self.command, str(control), self.confinement, self.code]

    def free(self) -> None:
        """Remove the folder and give the user back."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.claim is not None:
            self.claim.close()


@dataclass(frozen=True)
class Interpreter:
    """The Python of the tested code: ours, without what is installed unless asked for."""

    executable: str
    homes: tuple[str, ...]
    """Folders of the interpreter that lie outside /usr."""
    packages: tuple[str, ...]
    """Folders of the installed packages."""


@functools.cache
def interpreter() -> Interpreter:
    """Return the interpreter that runs this process, as it is found without its environment."""
    homes = {os.path.realpath(p) for p in (sys.base_prefix, sys.base_exec_prefix)}
    found = {os.path.realpath(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")}
    return Interpreter(
        executable=os.path.realpath(sys.executable),
        homes=tuple(sorted(h for h in homes if h != "/usr")),
        packages=tuple(sorted(found)),
    )


def launch(
    tier: Tier, *, packages: bool, preload: Sequence[str], own_user_namespace: bool = False
) -> Launch:
    """Return how the tier's warm process is started.

    Args:
        packages: let the tested code import what is installed here.
        preload: modules loaded once, before any input.
        own_user_namespace: bubblewrap as an unprivileged user, also where we are root.

    Raises:
        TierUnavailable: a part that the tier needs is missing.
    """
    root = os.geteuid() == 0
    claim, uid = claim_user() if root else (None, None)
    python = interpreter()
    site = python.packages if packages else ()
    readable = [*_SYSTEM, *_ETC, *python.homes, *site]
    shut = root and not _open_to_all(readable)
    if shut and tier is Tier.RLIMITS:
        raise TierUnavailable(
            f"{python.executable} lies in a folder shut to other users",
            "Use an interpreter that every user can run, or a stronger tier.",
        )
    boot = [python.executable, "-I", "-S", "-X", "utf8", "-c", _BOOT]
    folder, code, command, work = None, str(_INSIDE.parent), boot, _BOX
    userns = own_user_namespace or not root
    if tier is Tier.BWRAP:
        code = _JAIL
        command = [*_bwrap(readable, unprivileged=userns), "--", *boot]
    else:
        folder = _folder(uid)
        work = str(folder)
    confinement = Confinement(
        tier=tier.value,
        uid=None if tier is Tier.BWRAP and userns else uid,
        read_as_root=tier is Tier.LANDLOCK and shut,
        work=work,
        readable=readable,
        path=_sys_path(site),
        preload=list(preload),
        counted=_counted(tier, uid),
    )
    return Launch(
        command=command,
        confinement=json.dumps(asdict(confinement)),
        code=code,
        environment=_ENVIRONMENT,
        user=uid if tier is Tier.BWRAP and userns else None,
        folder=folder,
        claim=claim,
    )


def claim_user() -> tuple[socket.socket, int]:
    """Return a user id that no other sandbox of this machine has, and what holds it.

    An abstract socket holds it, which the kernel frees with us, however we end.

    Raises:
        TierUnavailable: all are taken.
    """
    for i in range(_UIDS):
        uid = _FIRST_UID + (os.getpid() * 7 + i) % _UIDS
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            claim.bind(f"\0braid-sandbox-user-{uid}")
        except OSError:
            claim.close()
            continue
        return claim, uid
    raise TierUnavailable(f"all {_UIDS} users of the sandbox are taken")


def _bwrap(readable: Sequence[str], *, unprivileged: bool) -> list[str]:
    found = shutil.which("bwrap")
    if found is None:
        raise TierUnavailable("bubblewrap is not installed")
    command = [found, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--hostname", "sandbox", "--cap-drop", "ALL"]
    capabilities = ["CAP_SYS_ADMIN"]
    if unprivileged:
        command.append("--unshare-user")
    else:
        capabilities += ["CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_SETPCAP"]
    for name in capabilities:
        command += ["--cap-add", name]
    for folder in sorted({str(f) for path in readable for f in Path(path).parents} - {"/"}):
        command += ["--perms", "0755", "--dir", folder]  # theirs may be shut to other users
    for path in readable:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind-try", path, path]
    command += ["--ro-bind", str(_INSIDE), f"{_JAIL}/inside"]
    command += ["--proc", "/proc", "--dev", "/dev", "--dir", _BOX, "--dir", "/tmp"]
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", _BOX]


def _folder(uid: int | None) -> Path:
    """Make the folder that inputs run in; in memory where there is room for it."""
    shared = "/dev/shm"
    place = shared if os.access(shared, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="braid-sandbox-", dir=place))
    if uid is not None:
        os.chown(folder, uid, uid)
    return folder


def _sys_path(site: Sequence[str]) -> list[str]:
    base = {"installed_base": sys.base_prefix, "base": sys.base_prefix}
    base |= {"installed_platbase": sys.base_exec_prefix, "platbase": sys.base_exec_prefix}
    library = [sysconfig.get_path(kind, vars=base) for kind in ("stdlib", "platstdlib")]
    dynamic = sysconfig.get_config_var("DESTSHARED") or str(Path(library[1]) / "lib-dynload")
    return [*dict.fromkeys((*library, dynamic)), *site]


def _counted(tier: Tier, uid: int | None) -> int:
    """Return how many processes of ours count as the tested code's user's; -1: to be counted."""
    if tier is Tier.BWRAP:
        return 4
    return 0 if uid is not None else -1


def _open_to_all(paths: Sequence[str]) -> bool:
    """Return whether every folder on the way to the paths can be entered by any user."""
    for path in paths:
        for folder in (Path(path), *Path(path).parents):
            try:
                mode = folder.stat().st_mode
            except OSError:
                continue
            if stat.S_ISDIR(mode) and not mode & stat.S_IXOTH:
                return False
    return True
