"""Weight transport between real processes over gloo: bytes, refusals, frozen and killed peers."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch

from actors.rendezvous import Rendezvous
from actors.sync_plan import Manifest, SyncInit, WeightSyncError
from actors.sync_tensors import flat_bytes
from actors.sync_transport import WeightSender

PEER = Path(__file__).with_name("weight_sync_peer.py")
Transport = Literal["broadcast", "shared"]


class Peer:
    """A receiver process; its answers are read by a thread, so that no wait is unbounded."""

    def __init__(self) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
        self.process = subprocess.Popen(
            [sys.executable, str(PEER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._arrived = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._arrived:
                self._lines.append(line)
                self._arrived.notify_all()

    def order(self, **what: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def answer(self, timeout_s: float = 60) -> dict:
        with self._arrived:
            assert self._arrived.wait_for(lambda: self._lines, timeout_s), "the peer is silent"
            return json.loads(self._lines.pop(0))

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@contextlib.contextmanager
def started(count: int) -> Iterator[list[Peer]]:
    peers = [Peer() for _ in range(count)]
    try:
        for peer in peers:
            assert peer.answer()["pid"] == peer.process.pid
        yield peers
    finally:
        for peer in peers:
            peer.kill()


@pytest.fixture(scope="module")
def peers() -> Iterator[list[Peer]]:
    with started(2) as running:
        yield running


@pytest.fixture(scope="module")
def rendezvous() -> Rendezvous:
    return Rendezvous("127.0.0.1")


def weights(seed: int) -> dict[str, torch.Tensor]:
    """Odd shapes and sizes, scalars, empty ones, several dtypes, one far larger than a bucket."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    return {
        "embed": rand(301, 67),
        "norm": rand(67),
        "q": rand(67, 31, dtype=torch.bfloat16),
        "k": rand(7, 3, dtype=torch.bfloat16),
        "scale": torch.tensor(float(seed)),
        "bool": torch.rand(13, generator=g) > 0.5,
        "empty": torch.zeros(0, 5),
        "ids": torch.randint(0, 1 << 40, (5, 2), generator=g),
        "half": rand(129, dtype=torch.float16),
        "f8": rand(33).to(torch.float8_e4m3fn),
        "head": rand(301, 67, dtype=torch.bfloat16),
        "tail": rand(1),
    }


def manifest_of(tensors: dict[str, torch.Tensor], bucket_bytes: int) -> Manifest:
    specs = [(n, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()]
    return Manifest.from_specs(specs, bucket_bytes=bucket_bytes)


def fingerprints(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    def digest(t: torch.Tensor) -> str:
        return hashlib.sha256(flat_bytes(t).numpy().tobytes()).hexdigest()

    return {n: f"{tuple(t.shape)} {t.dtype} {digest(t)}" for n, t in tensors.items()}


def join(
    rendezvous: Rendezvous,
    peers: Sequence[Peer],
    manifest: Manifest,
    source: dict[str, torch.Tensor],
    *,
    transport: Transport = "broadcast",
    timeout_s: float = 30.0,
    in_place: bool = False,
) -> tuple[int, WeightSender]:
    world = len(peers) + 1
    generation = rendezvous.new_generation(world)
    host, port = rendezvous.address()

    def init(rank: int, name: str) -> SyncInit:
        return SyncInit(
            generation=generation,
            store_host=host,
            store_port=port,
            rank=rank,
            world_size=world,
            backend="gloo",
            transport=transport,
            timeout_s=timeout_s,
            name=name,
        )

    for rank, peer in enumerate(peers, start=1):
        text = init(rank, f"rollout[{rank - 1}]").to_json()
        peer.order(do="join", init=text, manifest=manifest.to_json())

    @contextlib.contextmanager
    def gather(names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
        whole = {n: source[n].clone() for n in names}
        yield whole if not in_place else {n: source[n] for n in names}
        for tensor in whole.values():  # what ZeRO-3 does: gathered tensors vanish
            tensor.zero_()

    sender = WeightSender(manifest, gather, init(0, "trainer[0]"), in_place=in_place)
    for peer in peers:
        assert peer.answer() == {}
    return generation, sender


@pytest.mark.parametrize("transport", ["broadcast", "shared"])
@pytest.mark.parametrize("bucket_bytes", [1024, 20_000, 1 << 20])
@pytest.mark.parametrize("in_place", [False, True])
def test_bytes_arrive_unchanged(
    rendezvous: Rendezvous,
    peers: list[Peer],
    transport: Transport,
    bucket_bytes: int,
    in_place: bool,
) -> None:
    source = weights(0)
    manifest = manifest_of(source, bucket_bytes)
    _, sender = join(rendezvous, peers, manifest, source, transport=transport, in_place=in_place)
    for version in (1, 2, 3):
        source.update(weights(version))
        for peer in peers:
            peer.order(do="receive", version=version, hash=manifest.hash)
        report = sender.send(version, 4)
        assert report is not None and len(report.checksums) == 4
        assert report.total_bytes == manifest.total_bytes
        for peer in peers:
            answer = peer.answer()
            assert answer["got"] == fingerprints(source)
            assert list(answer["got"]) == list(source), "order of the manifest"
            assert answer["checksums"] == report.checksums
    sender.close()


def test_a_rank_that_only_gathers_walks_the_same_plan() -> None:
    source = weights(0)
    manifest = manifest_of(source, 20_000)
    entered: list[str] = []

    @contextlib.contextmanager
    def gather(names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
        entered.extend(names)
        yield {n: source[n] for n in names}

    assert WeightSender(manifest, gather, None).send(1, 4) is None
    assert entered == list(source)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ({"version": 6, "right_hash": False}, "another manifest hash"),
        ({"version": 7, "right_hash": True}, "another version"),
    ],
)
def test_a_refusal_is_named_to_all(
    rendezvous: Rendezvous, peers: list[Peer], order: dict, reason: str
) -> None:
    source = weights(0)
    manifest = manifest_of(source, 20_000)
    _, sender = join(rendezvous, peers, manifest, source)
    peers[0].order(do="receive", version=6, hash=manifest.hash)
    peers[1].order(
        do="receive",
        version=order["version"],
        hash="0" * 16 if "hash" not in order else manifest.hash,
    )
    with pytest.raises(WeightSyncError, match=rf"rollout\[1\] was (told|asked for) {reason}"):
        sender.send(6, 2)
    for peer in peers:
        assert "rollout[1] was" in peer.answer()["error"]
    with pytest.raises(WeightSyncError, match="join a new generation"):
        sender.send(7, 2)


def test_another_manifest_is_refused_at_join(rendezvous: Rendezvous, peers: list[Peer]) -> None:
    source = weights(0)
    mine = manifest_of(source, 20_000)
    generation = rendezvous.new_generation(2)
    host, port = rendezvous.address()
    common = {
        "generation": generation,
        "store_host": host,
        "store_port": port,
        "world_size": 2,
        "backend": "gloo",
        "transport": "broadcast",
        "timeout_s": 20.0,
    }
    other = manifest_of({n: t for n, t in source.items() if n != "norm"}, 20_000)
    theirs = json.dumps(common | {"rank": 1, "name": "rollout[0]"})
    peers[0].order(do="join", init=theirs, manifest=other.to_json())
    with pytest.raises(WeightSyncError, match=r"manifest of rollout\[0\] is not that of trainer"):
        WeightSender(
            mine,
            lambda n: contextlib.nullcontext({}),
            SyncInit(**common, rank=0, name="trainer[0]"),
        )
    assert "is not that of trainer[0]" in peers[0].answer()["error"]


def test_a_peer_that_never_joins_is_named(rendezvous: Rendezvous) -> None:
    generation = rendezvous.new_generation(3)
    host, port = rendezvous.address()
    init = SyncInit(
        generation=generation,
        store_host=host,
        store_port=port,
        rank=0,
        world_size=3,
        backend="gloo",
        transport="broadcast",
        timeout_s=3.0,
        name="trainer[0]",
    )
    manifest = manifest_of(weights(0), 20_000)
    with pytest.raises(WeightSyncError, match="rank 1, 2 did not join within 3 s"):
        WeightSender(manifest, lambda n: contextlib.nullcontext({}), init)


@pytest.mark.parametrize("transport", ["broadcast", "shared"])
def test_frozen_peer_is_named_killed_and_replaced(
    rendezvous: Rendezvous, transport: Transport
) -> None:
    source = {"big": torch.randn(4 << 20), "small": torch.randn(3)}
    manifest = manifest_of(source, 1 << 20)
    with started(2) as peers:
        generation, sender = join(
            rendezvous, peers, manifest, source, transport=transport, timeout_s=60
        )
        os.kill(peers[1].process.pid, signal.SIGSTOP)
        for peer in peers:
            peer.order(do="receive", version=1, hash=manifest.hash)
        failed: list[WeightSyncError] = []

        def send() -> None:
            try:
                sender.send(1, 2)
            except WeightSyncError as error:
                failed.append(error)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        silent = []
        until = time.monotonic() + 20
        while [p.rank for p in silent] != [2] and time.monotonic() < until:
            time.sleep(0.1)
            silent = rendezvous.silent_peers(generation, 2.0)
        assert [(p.rank, p.name, p.pid) for p in silent] == [
            (2, "rollout[1]", peers[1].process.pid)
        ]
        assert thread.is_alive() and not failed, "nobody else has given up"
        peers[1].kill()
        thread.join(20)
        assert failed, "the sender wakes long before its 60 s"
        assert "error" in peers[0].answer(20)
        with started(1) as replacement:
            peers[1] = replacement[0]
            newer, sender = join(rendezvous, peers, manifest, source, transport=transport)
            assert newer == generation + 1
            assert rendezvous.silent_peers(generation, 0.0) == []
            for peer in peers:
                peer.order(do="receive", version=2, hash=manifest.hash)
            assert sender.send(2, 2) is not None
            for peer in peers:
                assert peer.answer()["got"] == fingerprints(source)
            sender.close()


def test_a_lost_engine_leaves_no_trainer_rank_in_a_gather(rendezvous: Rendezvous) -> None:
    """The sender walks its gathers to the end although the wire failed."""
    source = weights(0)
    manifest = manifest_of(source, 1024)
    with started(1) as peers:
        _, sender = join(rendezvous, peers, manifest, source)
        entered: list[str] = []
        inner = sender._gather

        @contextlib.contextmanager
        def counted(names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
            entered.extend(names)
            with inner(names) as tensors:
                yield tensors

        sender._gather = counted
        peers[0].kill()
        with pytest.raises(WeightSyncError):
            sender.send(1, 2)
    assert entered == list(source)


def test_a_failing_gather_wakes_the_receivers(rendezvous: Rendezvous, peers: list[Peer]) -> None:
    source = weights(0)
    manifest = manifest_of(source, 1024)
    _, sender = join(rendezvous, peers, manifest, source)
    source["head"] = source["head"].float()  # not what the manifest says
    for peer in peers:
        peer.order(do="receive", version=1, hash=manifest.hash)
    with pytest.raises(ValueError, match="head was gathered as"):
        sender.send(1, 2)
    for peer in peers:
        assert "rollout[" in peer.answer(20)["error"], "long before the 30 s of the group"


def test_shared_buffers_leave_no_file_behind(rendezvous: Rendezvous, peers: list[Peer]) -> None:
    source = weights(0)
    generation, sender = join(
        rendezvous, peers, manifest_of(source, 20_000), source, transport="shared"
    )
    assert not list(Path("/dev/shm").glob(f"braid-{generation}-*"))
    sender.close()
