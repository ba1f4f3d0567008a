"""The meeting point of weight sync: a TCPStore outside all ranks, and who has fallen silent.

It lives in a process of its own (`ray.remote(Rendezvous).options(num_cpus=0)`), so that killing
any rank leaves the store standing. The store has no authentication: it holds names, manifest
hashes and stamps, nothing that is executed.
"""

import atexit
import json
import socket
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import ray

from actors.heartbeat import Heartbeat, beat
from actors.sync_plan import stamp_key

POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A member of a generation as its stamps show it."""

    rank: int
    name: str
    """As in its SyncInit; empty if it never stamped."""
    host: str
    pid: int
    """0 if it never stamped."""
    phase: str
    bucket: int
    """Bucket it is at; -1 outside the transfer."""
    silent_s: float
    """Seconds since its last stamp: large for a frozen process."""


@dataclass(slots=True, kw_only=True)
class _Seen:
    stamp: dict[str, object]
    changed: float


class Rendezvous:
    """Hosts the store. Ages are measured by this process's clock alone: stamps carry no time.

    Args:
        host: address under which ranks reach this process.
    """

    def __init__(self, host: str):
        # Public and documented, but not in the package's own list of names.
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        self._host = host
        listening = _listen_on(host)  # left to itself the store listens on every interface
        self._store = TCPStore(
            host,
            listening.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=30),
            master_listen_fd=listening.detach(),
        )
        self._generation = 0
        self._seen: dict[int, _Seen] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="braid-rendezvous", daemon=True)
        self._thread.start()
        # A daemon thread inside C++ when the interpreter ends would abort the process.
        atexit.register(self.close)

    def close(self) -> None:
        """End the watch; the store lives as long as the process."""
        self._stopped.set()
        self._thread.join(2.0)

    def address(self) -> tuple[str, int]:
        """Return host and port of the store."""
        return self._host, self._store.port

    def new_generation(self, world_size: int) -> int:
        """Begin a generation; stamps of older ones are no longer read."""
        now = time.monotonic()
        with self._lock:
            self._generation += 1
            self._seen = {r: _Seen(stamp={}, changed=now) for r in range(world_size)}
            return self._generation

    def peers(self) -> list[Peer]:
        """Return all members of the newest generation."""
        now = time.monotonic()
        with self._lock:
            return [
                Peer(
                    rank=rank,
                    name=str(seen.stamp.get("name", "")),
                    host=str(seen.stamp.get("host", "")),
                    pid=int(str(seen.stamp.get("pid", 0))),
                    phase=str(seen.stamp.get("phase", "not joined")),
                    bucket=int(str(seen.stamp.get("bucket", -1))),
                    silent_s=now - seen.changed,
                )
                for rank, seen in self._seen.items()
            ]

    def silent_peers(self, generation: int, older_than_s: float) -> list[Peer]:
        """Return members whose last stamp is older than `older_than_s` seconds, longest first.

        Those that left on purpose are not silent. A generation that is over has none.
        """
        if generation != self._generation:
            return []
        silent = [p for p in self.peers() if p.silent_s > older_than_s and p.phase != "closed"]
        return sorted(silent, key=lambda p: -p.silent_s)

    def _poll(self) -> None:
        while not self._stopped.wait(POLL_S):
            with self._lock:
                generation, ranks = self._generation, tuple(self._seen)
            for rank in ranks:
                key = stamp_key(generation, rank)
                if self._store.check([key]):
                    self._note(generation, rank, json.loads(self._store.get(key)))

    def _note(self, generation: int, rank: int, stamp: dict[str, object]) -> None:
        now = time.monotonic()
        with self._lock:
            if generation != self._generation:
                return
            seen = self._seen[rank]
            if stamp.get("count") == seen.stamp.get("count") and stamp == seen.stamp:
                return
            seen.changed, seen.stamp = now, stamp


def _listen_on(host: str) -> socket.socket:
    family, kind, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    listening = socket.socket(family, kind)
    listening.bind(address)
    listening.listen(1024)
    return listening


class RendezvousActor(Rendezvous):
    """The Ray actor: hosts the store on its own node's address."""

    def __init__(self) -> None:
        super().__init__(ray.util.get_node_ip_address())

    @ray.method(concurrency_group="control")
    def heartbeat(self) -> Heartbeat:
        """Answer that the actor lives."""
        return beat(self._generation)
