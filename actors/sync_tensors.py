"""Tensors as bytes: views, dtypes and checksums. torch only."""

from functools import lru_cache

import torch


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of a manifest's name, such as `bfloat16`."""
    return getattr(torch, name)


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """View a contiguous tensor as its bytes [nbytes], without a copy."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def checksum(tensor: torch.Tensor) -> int:
    """Return a position-weighted sum of the tensor's bytes as 64-bit words, modulo 2^64.

    The same on every device. Weights are odd, so that a change of any one word shows.
    """
    flat = flat_bytes(tensor.contiguous())
    if flat.numel() % 8 or flat.storage_offset() % 8:
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).clone()
    words = flat.view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for part in words.split(_CHECKSUM_WORDS):
        weights = _odd_numbers(str(part.device))[: part.numel()]
        total = total * 1_000_003 + (part * weights).sum()
    return int(total)


_CHECKSUM_WORDS = 1 << 16


@lru_cache(maxsize=8)
def _odd_numbers(device: str) -> torch.Tensor:
    return torch.arange(1, 2 * _CHECKSUM_WORDS, 2, dtype=torch.int64, device=device)
