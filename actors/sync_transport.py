"""Weights from the trainer to every engine worker, a bucket at a time. torch only.

A sync is: header (version, manifest hash), buckets, checksums of sampled tensors, and at the end
everybody's yes: one round trip in all. A receiver that refuses the header still takes the bytes,
whose sizes were agreed at join, and says no at the end. While bucket k is on the wire, k+1 is
gathered and packed. Any failure breaks the group for good: all join a new generation.

The sender's peers in training gather with it: they walk the same plan and send nothing. If the
wire fails, the sender still walks the plan to its end, so that no rank is left in a gather.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch

from actors.sync_group import Pending, SyncGroup
from actors.sync_plan import (
    Bucket,
    Manifest,
    SendReport,
    SyncInit,
    Unit,
    WeightSyncError,
    plan_buckets,
    plan_units,
    sampled,
)
from actors.sync_tensors import checksum, flat_bytes, torch_dtype
from actors.sync_wires import (
    BroadcastReceiver,
    BroadcastSender,
    Receiver,
    Sender,
    SharedReceiver,
    SharedSender,
)

Wire = TypeVar("Wire", bound=Sender | Receiver)
Gather = Callable[[Sequence[str]], AbstractContextManager[Mapping[str, torch.Tensor]]]
"""Names -> a context in which those tensors are whole; a collective among trainer ranks."""

_OTHER_VERSION, _OTHER_MANIFEST, _OTHER_CONTENT = 1, 2, 3
_REFUSALS = {
    _OTHER_VERSION: "was asked for another version",
    _OTHER_MANIFEST: "was told another manifest hash",
    _OTHER_CONTENT: "received tensors whose checksums differ from the sender's",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveStats:
    """One sync, as one receiver saw it."""

    version: int
    load_s: float
    """Copying out of buckets and handing tensors over."""
    checksums: dict[str, int]
    """Of the sampled tensors; equal to the sender's."""


class WeightSender:
    """A trainer rank's end.

    Args:
        gather: makes tensors whole; entered by all trainer ranks in the same order.
        init: place in the group; None for a rank that only gathers.
        device: of the shared buffers, or of the nccl group; empty takes the current one.
        in_place: tensors of `gather` stay valid and unchanged until `send` returns, also outside
            its context, so that large ones are sent from where they lie (not so under ZeRO-3).
    """

    def __init__(
        self,
        manifest: Manifest,
        gather: Gather,
        init: SyncInit | None,
        *,
        device: torch.device | None = None,
        in_place: bool = False,
    ):
        self._manifest, self._gather, self._in_place = manifest, gather, in_place
        self._order = {n: i for i, n in enumerate(manifest.names)}
        self._group: SyncGroup | None = None
        self._wire: Sender | None = None
        self._header: Pending | None = None
        self.seconds = {"gather": 0.0, "send": 0.0}
        if init is None:
            return
        place = _device(init, device)
        self._group = SyncGroup(init, manifest, _collective_device(init, place))
        if init.transport == "shared":
            self._wire = _opened(
                self._group, lambda g: SharedSender(g, manifest.bucket_bytes, place)
            )
        else:
            self._wire = BroadcastSender(self._group, manifest.bucket_bytes)

    @torch.no_grad()
    def send(self, version: int, checksum_tensors: int) -> SendReport | None:
        """Send all tensors; None on a rank that only gathers.

        Raises:
            WeightSyncError: a peer refused, was lost, or the deadline passed.
        """
        try:
            return self._send(version, checksum_tensors)
        except Exception as error:
            if self._group is not None:
                self._group.abandon(f"{type(error).__name__}: {error}")
            raise

    def _send(self, version: int, checksum_tensors: int) -> SendReport | None:
        self.seconds = {"gather": 0.0, "send": 0.0}
        sums: dict[int, int] = {}
        failure: WeightSyncError | None = None
        wanted = sampled(self._manifest, version, checksum_tensors) if self._group else ()
        order = self._order
        if self._group is not None:
            try:
                self._open(version, checksum_tensors)
            except WeightSyncError as error:
                failure = error
        for unit in plan_units(self._manifest):
            with _Timed(self.seconds, "gather"), self._gather(unit.names) as tensors:
                self._check(unit, tensors)
                if self._group is None or failure is not None:
                    continue
                sums.update(
                    (i, checksum(tensors[n])) for n in unit.names if (i := order[n]) in wanted
                )
                try:
                    for bucket in unit.buckets:
                        self._post(bucket, tensors)
                except WeightSyncError as error:
                    failure = error
        if failure is not None:
            raise failure
        if self._group is None:
            return None
        self._finish([sums[i] for i in wanted])
        return SendReport(
            version=version,
            gather_s=self.seconds["gather"],
            send_s=self.seconds["send"],
            total_bytes=self._manifest.total_bytes,
            checksums={self._manifest.tensors[i].name: sums[i] for i in wanted},
        )

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None:
            self._group.close()
        self._wire = None

    def _open(self, version: int, count: int) -> None:
        group = self._group
        assert group is not None
        with _Timed(self.seconds, "send"):
            group.begin()
            group.stamp("header", -1)
            words = [version, int(self._manifest.hash, 16) >> 1, count]
            self._header = group.broadcast(torch.tensor(words, device=group.device))

    def _post(self, bucket: Bucket, tensors: Mapping[str, torch.Tensor]) -> None:
        """Pack one bucket and start to send it."""
        group, wire = self._group, self._wire
        assert group is not None and wire is not None
        group.stamp("sending", bucket.index)
        specs = self._manifest.tensors
        if bucket.direct and self._in_place and not wire.packs_all:
            piece = bucket.pieces[0]
            tensor = tensors[specs[piece.tensor].name]
            if tensor.device == group.device and tensor.is_contiguous():
                payload = flat_bytes(tensor)[piece.start : piece.start + piece.nbytes]
                with _Timed(self.seconds, "send", "gather"):
                    wire.post(bucket.index, payload)
                return
        with _Timed(self.seconds, "send", "gather"):
            slot = wire.slot(bucket.index)
        for piece in bucket.pieces:
            flat = flat_bytes(tensors[specs[piece.tensor].name].contiguous())
            into = slot[piece.offset : piece.offset + piece.nbytes]
            into.copy_(flat[piece.start : piece.start + piece.nbytes], non_blocking=False)
        with _Timed(self.seconds, "send", "gather"):
            wire.post(bucket.index, slot[: bucket.nbytes])

    def _finish(self, sums: Sequence[int]) -> None:
        group, wire = self._group, self._wire
        assert group is not None and wire is not None
        with _Timed(self.seconds, "send"):
            wire.flush()
            group.stamp("verifying", -1)
            small = [] if self._header is None else [self._header]
            if sums:
                mine = torch.tensor(sums, dtype=torch.int64, device=group.device)
                small.append(group.broadcast(mine))
            wire.drain()
            for pending in small:
                group.wait(pending, "checksums")
            _agreed(group, 0, "verifying")
            group.stamp("idle", -1)

    def _check(self, unit: Unit, tensors: Mapping[str, torch.Tensor]) -> None:
        for name in unit.names:
            spec, tensor = self._manifest.tensors[self._order[name]], tensors[name]
            if tuple(tensor.shape) != spec.shape or tensor.dtype != torch_dtype(spec.dtype):
                raise ValueError(
                    f"{name} was gathered as {tuple(tensor.shape)} {tensor.dtype}, but the "
                    f"manifest says {spec.shape} {spec.dtype}"
                )


class WeightReceiver:
    """An engine worker's end.

    Args:
        device: where the received tensors are wanted.
    """

    def __init__(self, manifest: Manifest, init: SyncInit, *, device: torch.device | None = None):
        self._manifest = manifest
        self._device = _device(init, device)
        self._group = SyncGroup(init, manifest, _collective_device(init, self._device))
        self._wire: Receiver
        if init.transport == "shared":
            self._wire = _opened(self._group, lambda g: SharedReceiver(g, self._device))
        else:
            self._wire = BroadcastReceiver(self._group, manifest.bucket_bytes)
        self._partial: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def receive(
        self,
        version: int,
        manifest_hash: str,
        load: Callable[[Sequence[tuple[str, torch.Tensor]]], None],
    ) -> ReceiveStats:
        """Receive one sync, handing whole tensors to `load` in manifest order.

        Args:
            load: may keep the tensors; they are never written again.

        Raises:
            WeightSyncError: refused by any peer, a peer lost, or the deadline passed.
        """
        try:
            return self._receive(version, manifest_hash, load)
        except Exception as error:
            self._group.abandon(f"{type(error).__name__}: {error}")
            raise

    def _receive(
        self,
        version: int,
        manifest_hash: str,
        load: Callable[[Sequence[tuple[str, torch.Tensor]]], None],
    ) -> ReceiveStats:
        seconds = {"load": 0.0}
        code, count = self._open(version, manifest_hash)
        wanted = sampled(self._manifest, version, count)
        sums: dict[int, int] = {}
        buckets = plan_buckets(self._manifest)
        self._expect(buckets[0])
        for bucket in buckets:
            self._group.stamp("receiving", bucket.index)
            data = self._wire.take(bucket)
            if bucket.index + 1 < len(buckets):
                self._expect(buckets[bucket.index + 1])
            with _Timed(seconds, "load"):
                whole = list(self._unpack(bucket, data))
                self._wire.release(bucket)
                if code == 0:
                    sums.update((i, checksum(t)) for i, t in whole if i in wanted)
                    load([(self._manifest.tensors[i].name, t) for i, t in whole])
        self._wire.drain()
        self._close(code, count, [sums[i] for i in wanted if code == 0])
        return ReceiveStats(
            version=version,
            load_s=seconds["load"],
            checksums={self._manifest.tensors[i].name: sums[i] for i in wanted},
        )

    def close(self) -> None:
        """Leave the group."""
        self._group.close()
        self._partial.clear()

    def _open(self, version: int, manifest_hash: str) -> tuple[int, int]:
        """Hear the header; return why it is refused (0: it is not), and how many checksums come."""
        group = self._group
        group.begin()
        group.stamp("header", -1)
        self._partial.clear()
        header = torch.zeros(3, dtype=torch.int64, device=group.device)
        group.wait(group.broadcast(header), "header")
        sent_version, sent_hash, count = header.tolist()
        code = 0
        if sent_version != version:
            code = _OTHER_VERSION
        elif manifest_hash != self._manifest.hash or sent_hash != int(manifest_hash, 16) >> 1:
            code = _OTHER_MANIFEST
        return code, count

    def _expect(self, bucket: Bucket) -> None:
        """Start to receive a bucket, making room for tensors that begin in it."""
        place: torch.Tensor | None = None
        if bucket.direct and isinstance(self._wire, BroadcastReceiver):
            piece = bucket.pieces[0]
            tensor = self._room(piece.tensor, self._group.device)
            place = flat_bytes(tensor)[piece.start : piece.start + piece.nbytes]
        self._wire.expect(bucket, place)

    def _room(self, index: int, device: torch.device) -> torch.Tensor:
        if index not in self._partial:
            spec = self._manifest.tensors[index]
            dtype = torch_dtype(spec.dtype)
            self._partial[index] = torch.empty(spec.shape, dtype=dtype, device=device)
        return self._partial[index]

    def _unpack(self, bucket: Bucket, data: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield the tensors that are whole after this bucket, as copies of their own: engines
        keep them until their layer is complete, longer than the bucket lives."""
        for piece in bucket.pieces:
            spec = self._manifest.tensors[piece.tensor]
            tensor = self._room(
                piece.tensor, self._group.device if self._is_direct(bucket) else self._device
            )
            if not self._is_direct(bucket):
                into = flat_bytes(tensor)[piece.start : piece.start + piece.nbytes]
                into.copy_(data[piece.offset : piece.offset + piece.nbytes])
            if piece.start + piece.nbytes == spec.nbytes:
                yield piece.tensor, self._partial.pop(piece.tensor).to(self._device)

    def _is_direct(self, bucket: Bucket) -> bool:
        return bucket.direct and isinstance(self._wire, BroadcastReceiver)

    def _close(self, code: int, count: int, sums: Sequence[int]) -> None:
        group = self._group
        group.stamp("checksums", -1)
        if count:
            expected = min(count, len(self._manifest.tensors))
            theirs = torch.zeros(expected, dtype=torch.int64, device=group.device)
            group.wait(group.broadcast(theirs), "checksums")
            if code == 0 and theirs.tolist() != list(sums):
                code = _OTHER_CONTENT
        _agreed(group, code, "verifying")
        group.stamp("idle", -1)


def _agreed(group: SyncGroup, code: int, doing: str) -> None:
    """Exchange codes; raise on all peers if any is not 0, naming who refused and why."""
    refusals = group.agree(code, doing)
    if refusals:
        who = "; ".join(f"{group.peers[r]} {_REFUSALS[c]}" for r, c in refusals.items())
        group.close()
        raise WeightSyncError(
            f"weight sync, generation {group.init.generation}, {group.init.name}, {doing}: {who}"
        )


def _opened(group: SyncGroup, make: Callable[[SyncGroup], Wire]) -> Wire:
    """Open shared buffers; leave the group if that fails, which tells the others."""
    try:
        return make(group)
    except (WeightSyncError, RuntimeError, OSError) as error:
        group.close()
        if isinstance(error, WeightSyncError):
            raise
        raise WeightSyncError(f"{group.init.name}, opening shared buffers: {error}") from error


def _device(init: SyncInit, device: torch.device | None) -> torch.device:
    if device is not None:
        return device
    if torch.cuda.is_available() and (init.backend == "nccl" or init.transport == "shared"):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _collective_device(init: SyncInit, device: torch.device) -> torch.device:
    """Where tensors of collectives live; the handshakes of shared buffers run over gloo."""
    if init.transport == "shared" and init.backend != "gloo":
        raise ValueError("weight sync over shared buffers needs backend gloo for its handshakes")
    return device if init.backend == "nccl" else torch.device("cpu")


class _Timed:
    """Add a block's seconds to a total, and take them from the total that encloses it."""

    def __init__(self, totals: dict[str, float], name: str, outer: str | None = None):
        self._totals, self._name, self._outer = totals, name, outer

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._began
        self._totals[self._name] += spent
        if self._outer is not None:
            self._totals[self._outer] -= spent
