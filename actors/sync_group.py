"""The process group of one sync generation: a gloo or nccl group of its own, and its liveness.

Invariants:
- the default process group is never touched; backends are built directly over a `PrefixStore`
  named by the generation, in a TCPStore that lives outside all ranks (`actors.rendezvous`);
- rank 0 sends, all others receive;
- no wait is without a deadline, and a failed group is never used again: the driver kills the
  silent peer, which wakes the others, and all join a new generation;
- a daemon thread with a store connection of its own stamps the peer's phase and bucket each
  STAMP_S, so that a frozen process can be told from one that merely waits for it;
- the first peer to fail says so in the store, which ends all waits within two stamps: gloo alone
  wakes only those whose collective touches the dead peer, and others may wait for each other.
"""

import atexit
import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Protocol, cast

import torch

# Public and documented, but not all in the package's own list of names.
from torch.distributed import (
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    Store,  # pyright: ignore[reportPrivateImportUsage]
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
    Work,
)
from torch.distributed import distributed_c10d as c10d

from actors.sync_plan import Manifest, SyncInit, WeightSyncError, stamp_key

log = logging.getLogger("braid.sync")
STAMP_S = 0.25
"""Seconds between stamps, and between looks at whether a peer has failed."""


class Collectives(Protocol):
    """What we use of a torch backend; torch's stubs leave it out of theirs."""

    def broadcast(self, tensors: list[torch.Tensor], options: c10d.BroadcastOptions) -> Work: ...

    def allreduce(self, tensors: list[torch.Tensor]) -> Work: ...


class Pending:
    """A collective under way. Its work is let go as soon as it is over or the group fails: gloo
    keeps its connections open, and so its peers asleep, for as long as any work is held."""

    def __init__(self, work: Work, tensor: torch.Tensor):
        self.work: Work | None = work
        self.tensor = tensor
        """What is sent or received; must live until then."""


class SyncGroup:
    """A peer's connection to its generation.

    Args:
        device: where tensors of collectives live: cpu for gloo, the GPU for nccl.

    Raises:
        WeightSyncError: a peer did not join in time, or has another manifest.
    """

    def __init__(self, init: SyncInit, manifest: Manifest, device: torch.device):
        self.init = init
        self.device = device
        self.broken = False
        self._collectives: Collectives | None = None
        self._pending: set[Pending] = set()
        self._deadline = time.monotonic() + init.timeout_s
        self._timeout = timedelta(seconds=init.timeout_s)
        self._stamper: _Stamper | None = None
        try:
            store = TCPStore(
                init.store_host, init.store_port, is_master=False, timeout=self._timeout
            )
            self.store: Store = PrefixStore(f"braid/{init.generation}/group", store)
            self._stamper = _Stamper(init)
            self.peers = self._meet(manifest)
            self._collectives = _build_backend(self.store, init, self._timeout)
            self.wait(self.sum(torch.zeros(1, device=device)), "joining")
        except (RuntimeError, OSError) as error:
            raise self._failed(error, "joining") from error

    def begin(self) -> None:
        """Start the clock of one sync: all its waits together have `timeout_s`."""
        if self.broken:
            raise WeightSyncError(f"{self._where}: the group has failed; join a new generation")
        self._deadline = time.monotonic() + self.init.timeout_s

    @property
    def _backend(self) -> Collectives:
        if self._collectives is None:
            raise RuntimeError("the group has failed; join a new generation")
        return self._collectives

    def broadcast(self, tensor: torch.Tensor) -> Pending:
        """Start sending `tensor` from rank 0 to all others."""
        options = c10d.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        with self._explained("broadcast"):
            return self._track(self._backend.broadcast([tensor], options), tensor)

    def sum(self, tensor: torch.Tensor) -> Pending:
        """Start summing `tensor` over all peers, in place."""
        with self._explained("allreduce"):
            return self._track(self._backend.allreduce([tensor]), tensor)

    def wait(self, pending: Pending, doing: str) -> None:
        """Wait until a collective is done, at the latest at the sync's deadline."""
        with self._explained(doing):
            self._pending.discard(pending)
            work, pending.work = pending.work, None
            try:
                self._wait(work)
            finally:
                del work  # a traceback must not hold it

    def _track(self, work: Work, tensor: torch.Tensor) -> Pending:
        pending = Pending(work, tensor)
        self._pending.add(pending)
        return pending

    def _wait(self, work: Work | None) -> None:
        if work is None:
            raise RuntimeError("the group has failed")
        try:
            if self.init.backend == "nccl":
                # wait() would only order streams: poll first, so that the deadline holds.
                while not work.is_completed():
                    self._look_around()
                    time.sleep(5e-5)
                work.wait()
                return
            while True:
                try:
                    work.wait(timedelta(seconds=STAMP_S))
                    return
                except RuntimeError:
                    if work.is_completed():
                        raise
                    self._look_around()
        finally:
            del work

    def _look_around(self) -> None:
        """Raise if a peer has failed, or the deadline has passed."""
        heard = self._stamper.heard if self._stamper is not None else None
        if heard is not None:
            raise RuntimeError(f"a peer failed: {heard}")
        if time.monotonic() > self._deadline:
            raise RuntimeError(f"no answer within {self.init.timeout_s:g} s")

    def agree(self, code: int, doing: str) -> dict[int, int]:
        """Exchange one status code with all peers; return those that are not 0, by rank."""
        codes = torch.zeros(self.init.world_size, dtype=torch.int64, device=self.device)
        codes[self.init.rank] = code
        self.wait(self.sum(codes), doing)
        return {r: c for r, c in enumerate(codes.tolist()) if c}

    def stamp(self, phase: str, bucket: int) -> None:
        """Note where this peer is, for its next stamp."""
        if self._stamper is not None:
            self._stamper.state = (phase, bucket)

    def abandon(self, reason: str) -> None:
        """Leave the group for a reason that is not its own, and tell the others."""
        if not self.broken and self._stamper is not None:
            self._stamper.tell = f"{self.init.name}: {reason}"
        self.close()

    def close(self) -> None:
        """Leave the group. Returns at once: gloo may block on a frozen peer until it is killed,
        so a daemon thread waits for that."""
        if self.broken:
            return
        self.broken = True
        if self._stamper is not None:
            self._stamper.stop()
        held: list[object] = [self._collectives]
        self._collectives = None
        for pending in self._pending:
            held.append(pending.work)
            pending.work = None
        self._pending.clear()
        threading.Thread(target=held.clear, name="braid-sync-close", daemon=True).start()

    @property
    def _where(self) -> str:
        i = self.init
        return f"weight sync, generation {i.generation}, {i.name} (rank {i.rank})"

    def _meet(self, manifest: Manifest) -> tuple[str, ...]:
        """Exchange names and manifest hashes through the store; return the names by rank."""
        mine = {"name": self.init.name, "hash": manifest.hash, "host": socket.gethostname()}
        self.store.set(f"hello/{self.init.rank}", json.dumps(mine))
        keys = [f"hello/{r}" for r in range(self.init.world_size)]
        while missing := [k for k in keys if not self.store.check([k])]:
            heard = self._stamper.heard if self._stamper is not None else None
            if heard is not None:
                raise RuntimeError(f"a peer failed: {heard}")
            if time.monotonic() > self._deadline:
                ranks = ", ".join(k.removeprefix("hello/") for k in missing)
                raise RuntimeError(f"rank {ranks} did not join within {self.init.timeout_s:g} s")
            time.sleep(0.01)
        hellos = [json.loads(self.store.get(k)) for k in keys]
        other = [h["name"] for h in hellos if h["hash"] != hellos[0]["hash"]]
        if other:
            raise RuntimeError(
                f"the manifest of {', '.join(other)} is not that of {hellos[0]['name']}"
            )
        self.hosts = tuple(h["host"] for h in hellos)
        return tuple(h["name"] for h in hellos)

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            raise self._failed(error, doing) from error

    def _failed(self, error: Exception, doing: str) -> WeightSyncError:
        """Leave the group, tell the others why, and return what to raise."""
        line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if self._stamper is not None and self._stamper.heard is None:
            self._stamper.tell = f"{self.init.name}, {doing}: {line}"
        self.close()
        return WeightSyncError(f"{self._where}, {doing}: {line}")


class _Stamper:
    """Stamps the store until stopped, and carries news of failure both ways. A dead store ends
    it; the store's host is watched elsewhere."""

    def __init__(self, init: SyncInit):
        self.state: tuple[str, int] = ("joining", -1)
        self.tell: str | None = None
        """Why this peer failed; set before `stop`."""
        self.heard: str | None = None
        """Why another one failed."""
        self._init = init
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="braid-sync-stamp", daemon=True)
        self._thread.start()
        # A daemon thread inside C++ when the interpreter ends would abort the process.
        atexit.register(self.join)

    def stop(self) -> None:
        """End the stamps; the last one says so."""
        self._stopped.set()

    def join(self) -> None:
        """End the stamps and wait for the thread, at most 2 s."""
        self._stopped.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        init = self._init
        key = stamp_key(init.generation, init.rank)
        failed = f"braid/{init.generation}/failed"
        count = 0
        try:
            store = TCPStore(
                init.store_host,
                init.store_port,
                is_master=False,
                timeout=timedelta(seconds=init.timeout_s),
            )
            while True:
                done = self._stopped.is_set()
                phase, bucket = ("closed", -1) if done else self.state
                stamp = {
                    "count": count,
                    "phase": phase,
                    "bucket": bucket,
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "name": init.name,
                }
                store.set(key, json.dumps(stamp))
                if self.tell is not None:
                    store.set(failed, self.tell)
                if done:
                    return
                if self.heard is None and store.check([failed]):
                    self.heard = store.get(failed).decode()
                count += 1
                self._stopped.wait(STAMP_S)
        except RuntimeError as error:
            log.warning("weight-sync stamps of %s ended: %s", init.name, error)


def _build_backend(store: Store, init: SyncInit, timeout: timedelta) -> Collectives:
    """Build the collective backend itself, without torch's registry of groups."""
    if init.backend == "gloo":
        gloo: Any = c10d.ProcessGroupGloo  # whose stub knows no constructor with options
        options = gloo._Options()
        options._timeout = timeout
        options._devices = [_gloo_device(init)]
        return gloo(store, init.rank, init.world_size, options)
    # 2: abort collectives that time out, but leave the process alive to say so.
    before = os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING")
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "2"
    try:
        nccl = c10d.ProcessGroupNCCL.Options()
        nccl._timeout = timeout
        group = c10d.ProcessGroupNCCL(store, init.rank, init.world_size, nccl)
        return cast(Collectives, group)
    finally:
        if before is None:
            del os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"]
        else:
            os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = before


def _gloo_device(init: SyncInit) -> c10d.ProcessGroupGloo.Device:
    """Return the interface that reaches the store, unless GLOO_SOCKET_IFNAME names one."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if interface:
        return c10d.ProcessGroupGloo.create_device(interface=interface)
    family = socket.getaddrinfo(init.store_host, init.store_port)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((init.store_host, init.store_port))
        return c10d.ProcessGroupGloo.create_device(hostname=probe.getsockname()[0])
