"""End-to-end weight transfer against a raw broadcast of the same bytes, in one run.

    python benchmarks/weight_sync.py [--mb 64] [--rounds 10] [--transport broadcast|shared]

The ratio is raw time / transfer time (1 is perfect): medians over interleaved rounds between two
processes on this machine, over gloo. The transfer includes header, packing, copying out of
buckets, checksums and the final agreement; both are warmed up. Prints one JSON object.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from actors.rendezvous import Rendezvous
from actors.sync_group import SyncGroup
from actors.sync_plan import Manifest, SyncInit
from actors.sync_transport import WeightReceiver, WeightSender

TIMEOUT_S = 60.0
RAW_CHUNK = 16 << 20
"""Bytes of one raw broadcast; larger ones are no faster over loopback."""


def tensors(megabytes: float) -> dict[str, torch.Tensor]:
    """Return weights with a transformer's mix of sizes: 50 small ones for 0, else about that."""
    if megabytes == 0:
        sizes = [(48, 240) if i % 2 else (240,) for i in range(50)]
    else:
        hidden = 512
        layer = [(hidden,), (hidden, hidden), (hidden, hidden), (4 * hidden, hidden), (hidden,)]
        per_layer = sum(torch.Size(s).numel() for s in layer) * 4
        sizes = layer * max(1, round(megabytes * 1e6 / per_layer))
    return {f"t{i}": torch.randn(s) for i, s in enumerate(sizes)}


def manifest_of(weights: dict[str, torch.Tensor], bucket_mib: float) -> Manifest:
    """Describe fp32 weights."""
    specs = [(n, tuple(t.shape), "float32") for n, t in weights.items()]
    return Manifest.from_specs(specs, bucket_bytes=int(bucket_mib * 2**20))


def raw_broadcast(group: SyncGroup, buffer: torch.Tensor) -> float:
    """Broadcast a flat buffer in chunks, as a program without names or checks would."""
    group.begin()
    began = time.perf_counter()
    works = [group.broadcast(c) for c in buffer.split(RAW_CHUNK)]
    for work in works:
        group.wait(work, "raw")
    group.agree(0, "raw")
    return time.perf_counter() - began


def child(args: argparse.Namespace) -> None:
    """Receive what the parent sends."""
    weights = tensors(args.mb)
    manifest = manifest_of(weights, args.bucket_mib)
    raw_init, init = (SyncInit.from_json(t) for t in json.loads(args.child))
    raw = SyncGroup(raw_init, manifest, torch.device("cpu"))
    receiver = WeightReceiver(manifest, init)
    buffer = torch.zeros(manifest.total_bytes, dtype=torch.uint8)
    for version in range(1 - args.warmup, args.rounds + 1):
        raw_broadcast(raw, buffer)
        receiver.receive(version, manifest.hash, lambda _: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of each round, warm-up left out."""

    raw: list[float]
    sync: list[float]
    gather: list[float]
    """Part of `sync`, as is `send`."""
    send: list[float]


def place(address: tuple[str, int], generation: int, rank: int, transport: str) -> SyncInit:
    """Return the place of one of two peers in a generation."""
    return SyncInit(
        generation=generation,
        store_host=address[0],
        store_port=address[1],
        rank=rank,
        world_size=2,
        backend="gloo",
        transport="shared" if transport == "shared" else "broadcast",
        timeout_s=TIMEOUT_S,
        name="engine" if rank else "trainer",
    )


def time_rounds(
    args: argparse.Namespace, weights: dict[str, torch.Tensor], manifest: Manifest
) -> Timings:
    """Start the child; broadcast and send to it in turn."""
    rendezvous = Rendezvous("127.0.0.1")
    address = rendezvous.address()
    first, second = rendezvous.new_generation(2), rendezvous.new_generation(2)
    theirs = [place(address, first, 1, "broadcast"), place(address, second, 1, args.transport)]
    child_args = json.dumps([init.to_json() for init in theirs])
    command = [sys.executable, __file__, *sys.argv[1:], "--child", child_args]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})

    @contextlib.contextmanager
    def gather(names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
        yield {n: weights[n] for n in names}

    timings = Timings(raw=[], sync=[], gather=[], send=[])
    try:
        ours = [place(address, first, 0, "broadcast"), place(address, second, 0, args.transport)]
        raw = SyncGroup(ours[0], manifest, torch.device("cpu"))
        sender = WeightSender(manifest, gather, ours[1], in_place=args.in_place)
        buffer = torch.ones(manifest.total_bytes, dtype=torch.uint8)
        for version in range(1 - args.warmup, args.rounds + 1):
            raw_s = raw_broadcast(raw, buffer)
            began = time.perf_counter()
            report = sender.send(version, args.checksums)
            sync_s = time.perf_counter() - began
            assert report is not None
            if version > 0:
                timings.raw.append(raw_s)
                timings.sync.append(sync_s)
                timings.gather.append(report.gather_s)
                timings.send.append(report.send_s)
        process.wait(TIMEOUT_S)
    finally:
        process.kill()
    return timings


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Return what was measured and its medians."""
    weights = tensors(args.mb)
    manifest = manifest_of(weights, args.bucket_mib)
    timings = time_rounds(args, weights, manifest)
    raw_median, sync_median = statistics.median(timings.raw), statistics.median(timings.sync)
    return {
        "tensors": len(manifest.tensors),
        "megabytes": manifest.total_bytes / 1e6,
        "bucket_mib": args.bucket_mib,
        "transport": args.transport,
        "in_place": args.in_place,
        "checksums": args.checksums,
        "rounds": args.rounds,
        "raw_ms": 1e3 * raw_median,
        "transfer_ms": 1e3 * sync_median,
        "gather_ms": 1e3 * statistics.median(timings.gather),
        "send_ms": 1e3 * statistics.median(timings.send),
        "ratio": raw_median / sync_median,
        "gigabytes_per_s": manifest.total_bytes / sync_median / 1e9,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mb", type=float, default=64, help="megabytes; 0: 50 tiny tensors")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--bucket-mib", type=float, default=16)
    parser.add_argument("--checksums", type=int, default=8)
    parser.add_argument("--transport", choices=["broadcast", "shared"], default="broadcast")
    parser.add_argument("--in-place", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        child(args)
    else:
        print(json.dumps(measure(args)))


if __name__ == "__main__":
    main()
