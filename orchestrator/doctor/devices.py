"""GPUs, their driver, and NCCL; asked of nvidia-smi and package metadata, without torch."""

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, distributions

from orchestrator.doctor.findings import Finding, Level, Patient

_TIMEOUT_S = 20.0
_LEAST_DRIVER = {12: 525, 13: 580}
"""Major version of CUDA -> oldest driver that runs it."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One line of nvidia-smi."""

    name: str
    memory_gib: float
    used_gib: float
    driver: str


def find_gpus() -> tuple[Gpu, ...] | str:
    """Return this machine's GPUs; none without nvidia-smi, its words where it fails."""
    fields = "name,memory.total,memory.used,driver_version"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        return ()
    except subprocess.TimeoutExpired:
        return f"did not answer within {_TIMEOUT_S:g} s"
    if asked.returncode != 0:
        return (asked.stdout + asked.stderr).strip().splitlines()[-1][:200]
    rows = [[cell.strip() for cell in line.split(",")] for line in asked.stdout.splitlines()]
    return tuple(
        Gpu(name, float(total) / 1024, float(used) / 1024, driver)
        for name, total, used, driver in rows
    )


def torch_cuda() -> str | None:
    """Return the version of CUDA that the installed torch is built for; None for none."""
    try:
        text = distribution("torch").read_text("../torch/version.py") or ""
    except (PackageNotFoundError, OSError):
        return None
    found = re.search(r"^cuda.*?= *['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def check_gpus(patient: Patient) -> Iterator[Finding]:
    """Compare the GPUs with what the recipe asks for, and their driver with torch's CUDA."""
    found = find_gpus()
    if isinstance(found, str):
        yield _gpus(Level.FAILED, f"nvidia-smi {found}", "Mend the driver; see `dmesg`.")
        return
    wanted = patient.gpus
    if not found:
        level = Level.FAILED if wanted else Level.OK
        asked = f"; the recipe takes {wanted:g}" if wanted else "; CPU recipes run"
        fix = "Run it where GPUs are, or give the recipe `ray_address`." if wanted else ""
        yield _gpus(level, f"none{asked}", fix)
        return
    names = ", ".join(sorted({f"{g.name} ({g.memory_gib:.0f} GiB)" for g in found}))
    if wanted > len(found):
        fix = "Lower the groups' count, or run it on more GPUs."
        yield _gpus(Level.FAILED, f"{len(found)} x {names}; the recipe takes {wanted:g}", fix)
    else:
        yield _gpus(Level.OK, f"{len(found)} x {names}")
    taken = [i for i, gpu in enumerate(found) if gpu.used_gib > 0.1 * gpu.memory_gib]
    if taken:
        where = ", ".join(map(str, taken))
        fix = "End what runs there (`nvidia-smi` names it): engines take a share of all memory."
        yield _gpus(Level.WARNING, f"GPU {where} holds memory of another process", fix, "in use")
    yield _driver(found[0].driver)


def _driver(driver: str) -> Finding:
    cuda = torch_cuda()
    if cuda is None:
        fix = "Install the extra `gpu`, whose torch has CUDA."
        what = f"{driver}; but the installed torch has no CUDA"
        return _gpus(Level.FAILED, what, fix, "driver")
    least = _LEAST_DRIVER.get(int(cuda.split(".")[0]), 0)
    if int(driver.split(".")[0]) < least:
        what = f"{driver}, older than the {least} that CUDA {cuda} needs"
        return _gpus(Level.FAILED, what, f"Update the driver to {least} or newer.", "driver")
    return _gpus(Level.OK, f"{driver}, with torch for CUDA {cuda}", name="driver")


def _gpus(level: Level, detail: str, remedy: str = "", name: str = "gpus") -> Finding:
    return Finding(section="gpu", name=name, level=level, detail=detail, remedy=remedy)


def check_nccl(patient: Patient) -> Iterator[Finding]:
    """Look for NCCL where GPUs are, and for the network interfaces that variables name."""
    there = find_gpus()
    if there and not isinstance(there, str):
        nccl = {d.name: d.version for d in distributions() if d.name.startswith("nvidia-nccl")}
        yield Finding(
            section="gpu",
            name="nccl",
            level=Level.OK if nccl else Level.FAILED,
            detail=", ".join(f"{n} {v}" for n, v in nccl.items()) or "not installed",
            remedy="" if nccl else "Install the extra `gpu`, which brings it.",
        )
    interfaces = {name for _, name in socket.if_nameindex()}
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        given = os.environ.get(variable, "")
        wrong = [n for n in given.split(",") if n and not _names_one(n, interfaces)]
        if given:
            yield Finding(
                section="network",
                name=variable,
                level=Level.FAILED if wrong else Level.OK,
                detail=f"{given}; there is no {', '.join(wrong)}" if wrong else given,
                remedy=f"Name one of {', '.join(sorted(interfaces))}." if wrong else "",
            )


def _names_one(given: str, interfaces: set[str]) -> bool:
    """As NCCL reads it: a prefix, `=name` exactly, `^prefix` any other."""
    if given.startswith("^"):
        return any(not name.startswith(given[1:]) for name in interfaces)
    if given.startswith("="):
        return given[1:] in interfaces
    return any(name.startswith(given) for name in interfaces)
