"""How buckets get across: broadcast from double buffers, or handshakes over shared ones.

Both ends issue the group's collectives in the same order; two buckets at most are under way.
"""

import torch

from actors.sync_group import Pending, SyncGroup
from actors.sync_plan import Bucket
from actors.sync_shared import SLOTS, SharedBuffers


class BroadcastSender:
    """Sends each bucket with one broadcast."""

    packs_all = False
    """A bucket that holds one tensor alone may be sent from where it lies."""

    def __init__(self, group: SyncGroup, nbytes: int):
        self._group = group
        self._slots = [
            torch.empty(nbytes, dtype=torch.uint8, device=group.device) for _ in range(SLOTS)
        ]
        self._works: dict[int, Pending] = {}

    def slot(self, index: int) -> torch.Tensor:
        """Return the buffer [bucket_bytes] of bucket `index`, once its last use is over."""
        self._finish(index - SLOTS)
        return self._slots[index % SLOTS]

    def post(self, index: int, payload: torch.Tensor) -> None:
        """Start to send a bucket's bytes; `payload` must not change until `drain`."""
        self._finish(index - SLOTS)
        self._works[index] = self._group.broadcast(payload)

    def flush(self) -> None:
        """Nothing is left to post."""

    def drain(self) -> None:
        """Wait until all that was posted is across."""
        for index in sorted(self._works):
            self._finish(index)

    def _finish(self, index: int) -> None:
        if (pending := self._works.pop(index, None)) is not None:
            self._group.wait(pending, f"sending bucket {index}")


class SharedSender:
    """Packs into shared buffers; says `ready` of each bucket and hears `taken`."""

    packs_all = True

    def __init__(self, group: SyncGroup, nbytes: int, device: torch.device):
        self._group = group
        self._device = device
        self._buffers = SharedBuffers.create(group, nbytes, device)
        group.agree(0, "opening shared buffers")
        self._buffers.unlink()
        self._taken: dict[int, Pending] = {}
        self._ready: dict[int, Pending] = {}
        self._last = -1

    def slot(self, index: int) -> torch.Tensor:
        """Return the shared buffer of bucket `index`, once receivers have taken its last use."""
        self._finish(index - SLOTS)
        return self._buffers.slots[index % SLOTS]

    def post(self, index: int, payload: torch.Tensor) -> None:
        """Say that bucket `index` lies in its slot; `payload` is that slot."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self._ready[index] = self._group.broadcast(torch.tensor([index]))
        if index > 0:
            self._taken[index - 1] = self._group.sum(torch.zeros(1))
        self._last = index

    def flush(self) -> None:
        """Ask whether the last bucket was taken."""
        if self._last >= 0:
            self._taken[self._last] = self._group.sum(torch.zeros(1))

    def drain(self) -> None:
        """Wait until receivers have taken all buckets."""
        for index in sorted(self._taken):
            self._finish(index)
        self._last = -1

    def _finish(self, index: int) -> None:
        for works in (self._ready, self._taken):
            if (pending := works.pop(index, None)) is not None:
                self._group.wait(pending, f"sending bucket {index}")


class BroadcastReceiver:
    """Receives each bucket with one broadcast, into a buffer or where its tensor lies."""

    def __init__(self, group: SyncGroup, nbytes: int):
        self._group = group
        self._slots = [
            torch.empty(nbytes, dtype=torch.uint8, device=group.device) for _ in range(SLOTS)
        ]
        self._works: dict[int, Pending] = {}

    def expect(self, bucket: Bucket, place: torch.Tensor | None) -> None:
        """Start to receive a bucket: into `place` [nbytes] if it is direct, else a buffer."""
        slot = self._slots[bucket.index % SLOTS][: bucket.nbytes]
        into = slot if place is None else place
        self._works[bucket.index] = self._group.broadcast(into)

    def take(self, bucket: Bucket) -> torch.Tensor:
        """Wait for a bucket; return its bytes [nbytes]."""
        pending = self._works.pop(bucket.index)
        self._group.wait(pending, f"receiving bucket {bucket.index}")
        return pending.tensor

    def release(self, bucket: Bucket) -> None:
        """Say that the bucket's bytes were copied."""

    def drain(self) -> None:
        """Nothing is left under way."""


class SharedReceiver:
    """Reads buckets where the sender packed them."""

    def __init__(self, group: SyncGroup, device: torch.device):
        self._group = group
        self._device = device
        self._buffers = SharedBuffers.open(group, device)
        group.agree(0, "opening shared buffers")
        self._ready: dict[int, Pending] = {}
        self._taken: list[Pending] = []

    def expect(self, bucket: Bucket, place: torch.Tensor | None) -> None:
        """Listen for `ready` of a bucket."""
        word = torch.zeros(1, dtype=torch.int64)
        self._ready[bucket.index] = self._group.broadcast(word)

    def take(self, bucket: Bucket) -> torch.Tensor:
        """Wait until a bucket is ready; return its bytes in the sender's memory."""
        self._group.wait(self._ready.pop(bucket.index), f"receiving bucket {bucket.index}")
        return self._buffers.slots[bucket.index % SLOTS][: bucket.nbytes]

    def release(self, bucket: Bucket) -> None:
        """Say that the bucket's bytes were copied, so that its buffer is free."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        self._taken.append(self._group.sum(torch.zeros(1)))

    def drain(self) -> None:
        """Wait until all peers have taken all buckets."""
        taken, self._taken = self._taken, []
        for pending in taken:
            self._group.wait(pending, "finishing")


Sender = BroadcastSender | SharedSender
Receiver = BroadcastReceiver | SharedReceiver
