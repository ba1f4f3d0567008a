"""Shared memory, ports and disk."""

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from configs.model_files import find_model_folder, read_model_shape
from configs.schema import RunConfig
from orchestrator.doctor.findings import Finding, Level, Patient

SHARED_MEMORY = Path("/dev/shm")
_LEAST_SHARED_GIB = 1.0
_GIB = 2**30
AGENT_PORT = 52365
"""Where the agent of every Ray node listens, unless told otherwise."""
_CONNECT_S = 3.0
_LEAST_FREE_GIB = 5.0


def check_shared_memory(patient: Patient) -> Iterator[Finding]:
    """Compare /dev/shm with what Ray's object store, NCCL and several ranks of an engine need."""
    try:
        state = os.statvfs(SHARED_MEMORY)
    except OSError as error:
        yield _memory(Level.FAILED, f"{SHARED_MEMORY}: {error.strerror}", "Mount it as tmpfs.")
        return
    size = state.f_frsize * state.f_blocks / _GIB
    free = state.f_frsize * state.f_bavail / _GIB
    shown = f"{size:.2f} GiB, {free:.2f} free"
    if free < _LEAST_SHARED_GIB:
        level = Level.FAILED if patient.gpus else Level.WARNING
        fix = (
            "Give the container more (`docker run --shm-size=8g`, `shm` of an infra file's group), "
            "or remove what lies there: Ray falls back to disk, NCCL fails."
        )
        yield _memory(level, f"{shown}; {_LEAST_SHARED_GIB:g} GiB are needed", fix)
    else:
        yield _memory(Level.OK, shown)


def _memory(level: Level, detail: str, remedy: str = "") -> Finding:
    return Finding(section="memory", name="shared", level=level, detail=detail, remedy=remedy)


def check_ports(patient: Patient) -> Iterator[Finding]:
    """Look whether another Ray cluster is in the way, and whether the recipe's can be reached."""
    address = None if patient.recipe is None else patient.recipe.ray_address
    if address is not None and address != "auto":
        yield _reaches(address)
    elif address is None:
        taken = not is_free(AGENT_PORT)
        what = f"port {AGENT_PORT} is taken: another Ray cluster runs on this machine"
        fix = (
            "Runs start beside it, but jobs submitted to either may find no agent: stop the other, "
            "or give its address as `ray_address`."
        )
        yield Finding(
            section="network",
            name="ports",
            level=Level.WARNING if taken else Level.OK,
            detail=what if taken else "no other Ray cluster is in the way",
            remedy=fix if taken else "",
        )


def is_free(port: int) -> bool:
    """Return whether a server could listen there, on any address."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError:
            return False
        return True


def _reaches(address: str) -> Finding:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        level, detail = Level.FAILED, f"{address} cannot be reached: {error}"
        remedy = "Start the cluster there, open the port, or correct `ray_address`."
    else:
        level, detail, remedy = Level.OK, f"{address} answers", ""
    return Finding(section="network", name="ray_address", level=level, detail=detail, remedy=remedy)


def check_disk(patient: Patient) -> Iterator[Finding]:
    """Compare free space with what the checkpoints will take."""
    folder = next(
        p for p in (patient.run_dir.absolute(), *patient.run_dir.absolute().parents) if p.is_dir()
    )
    need, why = _LEAST_FREE_GIB, "logs and checkpoints"
    kept = None if patient.recipe is None else checkpoints_gib(patient.recipe)
    if kept is not None:
        need, why = max(0.5, kept), "the checkpoints that are kept and the one being written"
    yield _disk("run directory", folder, need, why)
    if not os.access(folder, os.W_OK):
        yield Finding(
            section="disk",
            name="run directory",
            level=Level.FAILED,
            detail=f"{folder} cannot be written by user {os.getuid()}",
            remedy="Give --run-dir a folder that can.",
        )
    yield from _offload(patient)
    spill = Path("/tmp")
    yield _disk("ray", spill, 1.0, "Ray's logs and spilled objects")


def _offload(patient: Patient) -> Iterator[Finding]:
    """Look at the disk to which the trainer offloads, where its ranks run here."""
    cfg = patient.recipe
    if cfg is None or cfg.trainer.nvme is None or cfg.ray_address is not None:
        return
    path = Path(cfg.trainer.nvme.path)
    folder = next((p for p in (path, *path.parents) if p.is_dir()), Path("/"))
    if os.access(folder, os.W_OK):
        yield _disk("trainer.nvme", folder, _LEAST_FREE_GIB, "offloaded parts of the model")
    else:
        yield Finding(
            section="disk",
            name="trainer.nvme",
            level=Level.FAILED,
            detail=f"{path} cannot be written by user {os.getuid()}",
            remedy="Mount the disk there, or name a folder of it that can be written.",
        )


def checkpoints_gib(cfg: RunConfig) -> float | None:
    """Return what the kept checkpoints, and one more, take: weights, fp32 masters and Adam's
    moments of the policy and of a critic; None where the models are not here."""
    trained = [cfg.model.path, *([cfg.of_critic.model.path] if cfg.needs_critic else [])]
    folders = [find_model_folder(path) for path in trained]
    shapes = [read_model_shape(folder) if folder else None for folder in folders]
    params = [shape.params for shape in shapes if shape is not None and shape.params is not None]
    if len(params) < len(trained):
        return None
    weights = 4 if cfg.model.dtype == "float32" else 2
    masters = 0 if cfg.model.dtype == "float32" else 4
    return 1.2 * (cfg.checkpoint.keep + 1) * sum(params) * (weights + masters + 8) / _GIB


def _disk(name: str, folder: Path, need_gib: float, why: str) -> Finding:
    free = shutil.disk_usage(folder).free / _GIB
    short = free < need_gib
    return Finding(
        section="disk",
        name=name,
        level=Level.FAILED if short else Level.OK,
        detail=f"{folder} has {free:.1f} GiB free"
        + (f"; {why} take {need_gib:.1f}" if short else ""),
        remedy="Free some, lower checkpoint.keep, or use another disk." if short else "",
    )
