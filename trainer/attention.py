"""Attention inside the segments of a packed row, without a [T, T] mask.

transformers' own mask for packed rows is right but dense: its time and memory grow with the square
of the row. Here each segment is a causal attention of its own, as in flash-attn's variable-length
kernel, which is used instead where it is installed.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

SEGMENTS = "braid_segments"
"""Name under which transformers finds `segment_attention`; no mask is registered for it, so
that models build none."""

Attention: TypeAlias = Literal["flash_attention_2", "braid_segments", "sdpa"]
_UNKNOWN_TERMS = ("softcap", "s_aux", "position_bias")
"""Arguments by which a model asks for more than softmax attention."""


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    segment_lengths: tuple[int, ...] | None = None,
    **terms: object,
) -> tuple[Tensor, None]:
    """Attend causally inside each segment; without segments, inside each (right-padded) row.

    Args:
        query: [B, heads, T, D]; key and value may have fewer heads.
        sliding_window: tokens that each one sees, itself included.
        segment_lengths: of the one row, summing to T; None for rows of a single segment.
    Returns the output [B, T, heads, D].
    """
    asked = [name for name in _UNKNOWN_TERMS if terms.get(name) is not None]
    if asked or attention_mask is not None or dropout:
        raise NotImplementedError(f"{type(module).__name__} asks attention for {asked or 'a mask'}")
    lengths = [query.shape[2]] if segment_lengths is None else list(segment_lengths)
    grouped = key.shape[1] != query.shape[1]
    out: list[Tensor] = []
    for q, k, v in zip(*(t.split(lengths, dim=2) for t in (query, key, value)), strict=True):
        band = _band(q, sliding_window)
        out.append(
            scaled_dot_product_attention(
                q, k, v, band, is_causal=band is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(out, dim=2).transpose(1, 2), None


def _band(query: Tensor, window: int | None) -> Tensor | None:
    """Mask of a segment that is longer than the window: [L, L]; None where causality is all."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return ones.tril().triu(1 - window)


AttentionInterface.register(SEGMENTS, segment_attention)


def choose_attention(network: PreTrainedModel, *, on_cuda: bool) -> Attention:
    """Return the best attention that is right for this model: flash-attn, segments, or sdpa under
    the mask that transformers builds for packed rows.

    A model that supports flash-attn tells its attention all that it needs without a mask, the
    sliding window too; that is what segments need.
    """
    if not (network._supports_flash_attn and network.is_backend_compatible()):
        return "sdpa"
    half = network.dtype in (torch.bfloat16, torch.float16)
    if on_cuda and half and is_flash_attn_2_available():
        return "flash_attention_2"
    return SEGMENTS if _is_plain(network.config) else "sdpa"


def _is_plain(config: PretrainedConfig) -> bool:
    """Whether every layer is causal softmax attention, whole or in a sliding window."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    terms = ("attn_logit_softcapping", "attention_chunk_size", "alibi")
    return kinds <= {"full_attention", "sliding_attention"} and not any(
        getattr(config, name, None) for name in terms
    )
