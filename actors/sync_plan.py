"""What travels in a weight sync, and between whom: manifest, buckets, a peer's place.

Both ends derive the same plan from the same manifest, so that a sync sends bytes alone. Plain
values: the driver, which has no torch, reads this module too.
"""

import hashlib
import json
import math
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal

ALIGN = 16
"""Bytes to which a tensor's place in a bucket is rounded up, so that it can be viewed there."""

DIRECT_SHARE = 4
"""A tensor of at least a bucket's 1/DIRECT_SHARE travels alone, which spares copies."""


class WeightSyncError(RuntimeError):
    """A weight sync that failed; the group is of no more use and is built anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncInit:
    """One peer's place in a generation; plain values, ready for JSON."""

    generation: int
    store_host: str
    store_port: int
    rank: int
    """0 sends. For an engine with several workers: the rank of its first one."""
    world_size: int
    backend: Literal["gloo", "nccl"]
    transport: Literal["broadcast", "shared"]
    timeout_s: float
    name: str
    """For messages: `trainer[0]`, `rollout[1]`."""

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "SyncInit":
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


def stamp_key(generation: int, rank: int) -> str:
    """Key under which a peer stamps that it lives."""
    return f"braid/{generation}/stamp/{rank}"


_ITEM_BYTES = {
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "uint8", "int8", "bool"), 1),
    **dict.fromkeys(("bfloat16", "float16", "int16"), 2),
    **dict.fromkeys(("float32", "int32"), 4),
    **dict.fromkeys(("float64", "int64"), 8),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One full tensor under its Hugging Face name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As in torch, without the package: `bfloat16`."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All tensors of a sync, in the order in which they travel."""

    tensors: tuple[TensorSpec, ...]
    bucket_bytes: int

    @classmethod
    def from_specs(
        cls,
        specs: Iterable[tuple[str, tuple[int, ...], str]],
        *,
        bucket_bytes: int,
    ) -> "Manifest":
        """Build from (name, full shape, dtype as `bfloat16`).

        Raises:
            ValueError: no tensor, a name twice, or a bucket too small to be of use.
        """
        tensors = tuple(TensorSpec(name=n, shape=tuple(s), dtype=d) for n, s, d in specs)
        names = {t.name for t in tensors}
        if not tensors or len(names) != len(tensors):
            raise ValueError(f"a manifest needs distinct tensors; got {len(tensors)}, {len(names)}")
        if bucket_bytes < ALIGN:
            raise ValueError(f"weight_sync.bucket_mib: {bucket_bytes} bytes hold no tensor")
        return cls(tensors=tensors, bucket_bytes=bucket_bytes - bucket_bytes % ALIGN)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(t.name for t in self.tensors)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def hash(self) -> str:
        """16 hex digits over names, shapes, dtypes and the bucket size."""
        return _hash(self)

    def to_json(self) -> str:
        """Return the manifest as text."""
        return json.dumps(
            {"bucket_bytes": self.bucket_bytes, "tensors": [asdict(t) for t in self.tensors]}
        )

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read what `to_json` wrote."""
        data = json.loads(text)
        tensors = tuple(
            TensorSpec(name=t["name"], shape=tuple(t["shape"]), dtype=t["dtype"])
            for t in data["tensors"]
        )
        return cls(tensors=tensors, bucket_bytes=data["bucket_bytes"])


@lru_cache(maxsize=8)
def _hash(manifest: Manifest) -> str:
    return hashlib.blake2b(manifest.to_json().encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes [start, start + nbytes) of one tensor at `offset` of a bucket."""

    tensor: int
    """Index into the manifest."""
    start: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One message."""

    index: int
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes up to the end of the last piece."""
        return self.pieces[-1].offset + self.pieces[-1].nbytes

    @property
    def direct(self) -> bool:
        """Whether it holds bytes of one tensor alone, which need not be packed."""
        return len(self.pieces) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Tensors gathered together, and the buckets that carry them."""

    names: tuple[str, ...]
    buckets: tuple[Bucket, ...]


@lru_cache(maxsize=8)
def plan_units(manifest: Manifest) -> tuple[Unit, ...]:
    """Cut a manifest into units: small tensors packed to a bucket, a large one in chunks."""
    size = manifest.bucket_bytes
    units: list[Unit] = []
    count = 0
    packed: list[Piece] = []

    def close(pieces_of_buckets: list[tuple[Piece, ...]]) -> None:
        nonlocal count
        buckets = tuple(Bucket(index=count + i, pieces=p) for i, p in enumerate(pieces_of_buckets))
        held = dict.fromkeys(p.tensor for b in buckets for p in b.pieces)
        names = tuple(manifest.tensors[t].name for t in held)
        units.append(Unit(names=names, buckets=buckets))
        count += len(buckets)

    for index, spec in enumerate(manifest.tensors):
        if spec.nbytes * DIRECT_SHARE >= size:
            if packed:
                close([tuple(packed)])
                packed = []
            starts = range(0, spec.nbytes, size)
            close(
                [
                    (Piece(tensor=index, start=s, offset=0, nbytes=min(size, spec.nbytes - s)),)
                    for s in starts
                ]
            )
            continue
        offset = _aligned(packed[-1].offset + packed[-1].nbytes) if packed else 0
        if packed and offset + spec.nbytes > size:
            close([tuple(packed)])
            packed, offset = [], 0
        packed.append(Piece(tensor=index, start=0, offset=offset, nbytes=spec.nbytes))
    if packed:
        close([tuple(packed)])
    return tuple(units)


def plan_buckets(manifest: Manifest) -> tuple[Bucket, ...]:
    """Return the buckets of all units, in order."""
    return tuple(b for u in plan_units(manifest) for b in u.buckets)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGN) * ALIGN


def sampled(manifest: Manifest, version: int, count: int) -> tuple[int, ...]:
    """Draw the tensors whose checksums sync `version` compares; the same on every peer."""
    total = len(manifest.tensors)
    drawn = random.Random(f"checksum {version}").sample(range(total), min(count, total))
    return tuple(sorted(drawn))


@dataclass(frozen=True, slots=True, kw_only=True)
class SendReport:
    """One sync, as its sender saw it."""

    version: int
    gather_s: float
    """Gathering and packing."""
    send_s: float
    """Waiting for the wire and for the engines' answers."""
    total_bytes: int
    checksums: dict[str, int]
    """Of the sampled tensors."""
