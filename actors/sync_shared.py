"""Two buffers that a sender shares with receivers on its own device: CUDA IPC on a GPU, a mapping
of /dev/shm on the CPU. Bytes do not travel; the group carries only the handshakes.

What is published in the store is JSON, never pickle: whoever reaches the store runs no code here.
"""

import base64
import contextlib
import json
import mmap
import os
import socket
import uuid
from datetime import timedelta
from pathlib import Path

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from actors.sync_group import SyncGroup
from actors.sync_plan import WeightSyncError

SLOTS = 2
_KEY = "shared/buffers"


class SharedBuffers:
    """SLOTS flat byte tensors [nbytes], the same memory in sender and receivers."""

    def __init__(self, slots: tuple[torch.Tensor, ...], path: Path | None = None):
        self.slots = slots
        self._path = path

    @classmethod
    def create(cls, group: SyncGroup, nbytes: int, device: torch.device) -> "SharedBuffers":
        """Make the buffers on the sender's device and publish how to open them."""
        if device.type == "cuda":
            shared, offer = _create_cuda(nbytes, device)
        else:
            shared, offer = _create_mapping(nbytes, group.init.generation)
        group.store.set(_KEY, json.dumps(offer))
        return shared

    @classmethod
    def open(cls, group: SyncGroup, device: torch.device) -> "SharedBuffers":
        """Open the sender's buffers.

        Raises:
            WeightSyncError: they lie on another host or device.
        """
        group.store.wait([_KEY], timedelta(seconds=group.init.timeout_s))
        offer = json.loads(group.store.get(_KEY))
        if offer["kind"] == "cuda_ipc":
            return _open_cuda(offer, device)
        return _open_mapping(offer)

    def unlink(self) -> None:
        """Take the mapping's name away once all have opened it; a killed peer then leaves none."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def _create_mapping(nbytes: int, generation: int) -> tuple[SharedBuffers, dict[str, object]]:
    path = Path(f"/dev/shm/braid-{generation}-{uuid.uuid4().hex[:12]}")
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        # fallocate, not truncate: a full /dev/shm must fail here, not as SIGBUS at first use.
        os.posix_fallocate(handle, 0, SLOTS * nbytes)
        memory = mmap.mmap(handle, SLOTS * nbytes)
    except OSError as error:
        path.unlink()
        raise WeightSyncError(
            f"/dev/shm has no room for {SLOTS} buffers of {nbytes} bytes ({error.strerror}): lower "
            "weight_sync.bucket_mib, enlarge /dev/shm, or set weight_sync.transport: broadcast"
        ) from error
    finally:
        os.close(handle)
    offer: dict[str, object] = {
        "kind": "mapping",
        "path": str(path),
        "nbytes": nbytes,
        "host": socket.gethostname(),
    }
    return SharedBuffers(_slices(memory, nbytes), path), offer


def _open_mapping(offer: dict[str, object]) -> SharedBuffers:
    nbytes = int(str(offer["nbytes"]))
    try:
        handle = os.open(str(offer["path"]), os.O_RDWR)
    except FileNotFoundError as error:
        raise WeightSyncError(
            f"weight_sync.transport: shared, but the trainer's buffers are on {offer['host']} and "
            f"this engine on {socket.gethostname()}, or /dev/shm is not shared: use broadcast"
        ) from error
    with contextlib.closing(os.fdopen(handle, "r+b")) as file:
        memory = mmap.mmap(file.fileno(), SLOTS * nbytes)
    return SharedBuffers(_slices(memory, nbytes))


def _slices(memory: mmap.mmap, nbytes: int) -> tuple[torch.Tensor, ...]:
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return tuple(whole[i * nbytes : (i + 1) * nbytes] for i in range(SLOTS))


def _create_cuda(nbytes: int, device: torch.device) -> tuple[SharedBuffers, dict[str, object]]:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        if "expandable_segments:true" in os.environ.get(name, "").lower():
            raise WeightSyncError(
                f"{name} turns expandable_segments on, which CUDA IPC cannot share: take it out of "
                "the trainer's environment, or set weight_sync.transport: broadcast"
            )
    slots = tuple(torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(SLOTS))
    handles = [reduce_tensor(slot)[1] for slot in slots]
    offer: dict[str, object] = {
        "kind": "cuda_ipc",
        "uuid": str(torch.cuda.get_device_properties(device).uuid),
        "host": socket.gethostname(),
        "slots": [_encode(args) for args in handles],
    }
    return SharedBuffers(slots), offer


def _open_cuda(offer: dict[str, object], device: torch.device) -> SharedBuffers:
    mine = str(torch.cuda.get_device_properties(device).uuid)
    if mine != offer["uuid"]:
        raise WeightSyncError(
            f"weight_sync.transport: shared, but the trainer's buffers are on GPU {offer['uuid']} "
            f"of {offer['host']} and this engine on GPU {mine}: colocate them, or use broadcast"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    handles = offer["slots"]
    assert isinstance(handles, list)
    return SharedBuffers(tuple(rebuild_cuda_tensor(*_decode(h, index)) for h in handles))


def _encode(args: tuple[object, ...]) -> dict[str, object]:
    """Turn `rebuild_cuda_tensor`'s arguments for a flat byte tensor into JSON values.

    They are: tensor class, size, stride, offset, storage class, dtype, device, handle, storage
    bytes, storage offset, requires_grad, ref-counter handle, its offset, event handle, sync flag.
    """
    (_, size, _, offset, _, _, _, handle, nbytes, start, _, counter, at, event, sync) = args
    return {
        "size": list(size),  # type: ignore[call-overload]
        "offset": offset,
        "handle": _text(handle),
        "nbytes": nbytes,
        "start": start,
        "counter": _text(counter),
        "counter_offset": at,
        "event": _text(event),
        "sync": sync,
    }


def _decode(data: dict[str, object], index: int) -> tuple[object, ...]:
    return (
        torch.Tensor,
        torch.Size(data["size"]),  # type: ignore[call-overload]
        (1,),
        data["offset"],
        torch.UntypedStorage,
        torch.uint8,
        index,
        _bytes(data["handle"]),
        data["nbytes"],
        data["start"],
        False,
        _bytes(data["counter"]),
        data["counter_offset"],
        _bytes(data["event"]),
        data["sync"],
    )


def _text(value: object) -> str | None:
    return None if value is None else base64.b64encode(bytes(value)).decode()  # type: ignore[call-overload]


def _bytes(value: object) -> bytes | None:
    return None if value is None else base64.b64decode(str(value))
