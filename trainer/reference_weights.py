"""A reference that follows the policy, through safetensors in the run directory.

The trainer writes the policy once, gathered shard by shard, with a digest of each tensor's bytes;
each reference actor reads it, compares the digests with what it read, and takes the weights over
as they are or into a moving average. All ends hold the same bytes, or the run ends.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_MANIFEST = "manifest.json"
_STATE = "weights.safetensors"
_SHARD_BYTES = 1 << 30


class Spec(Protocol):
    """Name and shape of a tensor; `trainer.engine.WeightSpec` is one."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class WeightsDiffer(RuntimeError):
    """What was read is not what was written."""


def write_policy(
    specs: Sequence[Spec],
    gathered: Callable[[Sequence[str]], AbstractContextManager[Mapping[str, Tensor]]],
    folder: Path,
    *,
    writes: bool,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write all weights into `folder`. Under ZeRO-3 a collective.

    Args:
        gathered: yields the named weights in full.
        writes: whether this rank writes; the others only gather.
    """
    digests: dict[str, str] = {}
    for number, names in enumerate(_shards(specs, shard_bytes)):
        with gathered(names) as full:
            if not writes:
                continue
            shard = {n: full[n].detach().to("cpu", copy=True).contiguous() for n in names}
        save_file(shard, folder / f"shard_{number:05d}.safetensors")
        digests.update((n, digest(t)) for n, t in shard.items())
    if writes:
        (folder / _MANIFEST).write_text(json.dumps(digests))


def _shards(specs: Sequence[Spec], limit: int) -> Iterator[list[str]]:
    """Cut the names into pieces of about `limit` bytes."""
    names: list[str] = []
    size = 0
    for spec in specs:
        count = 4
        for n in spec.shape:
            count *= n
        if names and size + count > limit:
            yield names
            names, size = [], 0
        names.append(spec.name)
        size += count
    if names:
        yield names


def digest(tensor: Tensor) -> str:
    """Return a hash of the tensor's dtype, shape and bytes."""
    found = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=16)
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    found.update(flat.numpy().data)
    return found.hexdigest()


class Follower:
    """The weights of one reference actor."""

    def __init__(self, network: nn.Module, *, average: bool):
        """Follow from where the network stands.

        Args:
            average: keep a moving average, in fp32 on the CPU beside the network.
        """
        self._parameters = dict(network.named_parameters())
        self._shadow: dict[str, Tensor] | None = None
        if average:
            self._shadow = {
                n: p.detach().to("cpu", torch.float32, copy=True)
                for n, p in self._parameters.items()
            }

    @torch.no_grad()
    def follow(self, folder: Path, *, decay: float) -> str:
        """Take over a policy that `write_policy` wrote; return a digest of the weights then.

        Args:
            decay: share of the average that stays; unread where none is kept.

        Raises:
            WeightsDiffer: a tensor is missing, or not what the trainer wrote.
        """
        wanted: dict[str, str] = json.loads((folder / _MANIFEST).read_text())
        if wanted.keys() != self._parameters.keys():
            odd = sorted(wanted.keys() ^ self._parameters.keys())[:5]
            raise WeightsDiffer(f"{folder}: policy and reference have other weights: {odd}")
        left = set(wanted)
        for path in sorted(folder.glob("shard_*.safetensors")):
            for name, tensor in load_file(path).items():
                if digest(tensor) != wanted[name]:
                    raise WeightsDiffer(f"{path}: {name} is not what the trainer wrote")
                self._take(name, tensor, decay)
                left.discard(name)
        if left:
            raise WeightsDiffer(f"{folder}: lacks {sorted(left)[:5]} ({len(left)} in all)")
        return self.digest()

    def _take(self, name: str, policy: Tensor, decay: float) -> None:
        if self._shadow is None:
            self._parameters[name].copy_(policy)
            return
        average = self._shadow[name]
        average.mul_(decay).add_(policy.float(), alpha=1 - decay)
        self._parameters[name].copy_(average)

    def digest(self) -> str:
        """Return a hash of all weights, and of the average."""
        states = [self._parameters, self._shadow or {}]
        found = hashlib.blake2b(digest_size=16)
        for state in states:
            for name in sorted(state):
                found.update(f"{name} {digest(state[name])}\n".encode())
        return found.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the weights, or the average, into a checkpoint's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        state = self._shadow or self._parameters
        save_file({n: t.detach().cpu().contiguous() for n, t in state.items()}, folder / _STATE)

    @torch.no_grad()
    def load(self, folder: Path) -> str:
        """Set what `save` wrote; return a digest of the weights then."""
        for name, tensor in load_file(folder / _STATE).items():
            self._parameters[name].copy_(tensor)
            if self._shadow is not None:
                self._shadow[name].copy_(tensor)
        return self.digest()
