"""A micro-batch as torch tensors on one device."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rollouts.types import MicroBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBatch:
    """Torch twin of `MicroBatch`, same shapes. Index tensors are int64."""

    token_ids: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    loss_mask: Tensor
    rollout_logprobs: Tensor
    advantages: Tensor
    loss_weight: Tensor
    kl_coef: Tensor
    clip_low: Tensor
    clip_high: Tensor
    temperature: Tensor
    ref_logprobs: Tensor | None


def to_device(batch: MicroBatch, device: torch.device) -> DeviceBatch:
    """Copy a micro-batch to `device`; an empty one becomes one dummy token outside the loss.

    The dummy makes a rank without tokens run the same forward and backward as the others, so
    that it joins every collective of ZeRO-3, with gradients of exactly zero.
    """
    if len(batch.token_ids) == 0:
        batch = _dummy(with_reference=batch.ref_logprobs is not None)

    def index(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(device)

    def stream(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.float32)).to(device)

    return DeviceBatch(
        token_ids=index(batch.token_ids),
        positions=index(batch.positions),
        cu_seqlens=index(batch.cu_seqlens),
        loss_mask=torch.from_numpy(batch.loss_mask.astype(np.bool_)).to(device),
        rollout_logprobs=stream(batch.rollout_logprobs),
        advantages=stream(batch.advantages),
        loss_weight=stream(batch.loss_weight),
        kl_coef=stream(batch.kl_coef),
        clip_low=stream(batch.clip_low),
        clip_high=stream(batch.clip_high),
        temperature=stream(batch.temperature),
        ref_logprobs=None if batch.ref_logprobs is None else stream(batch.ref_logprobs),
    )


def segments(cu_seqlens: Tensor) -> Tensor:
    """Return the place of each token's sample in the micro-batch, [T] int64."""
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]
    places = torch.arange(len(lengths), device=cu_seqlens.device)
    return torch.repeat_interleave(places, lengths)


def _dummy(*, with_reference: bool) -> MicroBatch:
    zero = np.zeros(1, np.float32)
    return MicroBatch(
        token_ids=np.zeros(1, np.int32),
        positions=np.zeros(1, np.int32),
        cu_seqlens=np.array([0, 1], np.int32),
        loss_mask=np.zeros(1, np.bool_),
        rollout_logprobs=zero,
        advantages=zero,
        loss_weight=zero,
        kl_coef=zero,
        clip_low=zero,
        clip_high=zero,
        temperature=np.ones(1, np.float32),
        ref_logprobs=zero if with_reference else None,
    )
