"""What attention runs between the exchanges of shared rows."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import modeling_flash_attention_utils as flash

from trainer.attention import segment_attention
from trainer.sequence import _inner


class Layer(nn.Module):
    """As a transformers attention whose config names our exchange."""

    is_causal, layer_idx = True, 3

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="braid_ulysses")


def test_flash_attn_loads_its_own_library_under_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    seen: dict[str, Any] = {}

    def varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **terms: Any) -> torch.Tensor:
        seen.update(terms, shape=tuple(q.shape))
        return q + 0.0 * v

    def lazy(implementation: str) -> tuple[Any, Any]:
        loaded.append(implementation)
        return (None, varlen, None, None, None), (named, named)

    def named(**terms: Any) -> dict[str, Any]:
        return {"causal": terms["is_causal"], "scale": terms["softmax_scale"]}

    monkeypatch.setattr(flash, "lazy_import_flash_attention", lazy)
    query = torch.randn(1, 2, 8, 4, dtype=torch.bfloat16)
    bounds = torch.tensor([0, 5, 8], dtype=torch.int32)
    terms: dict[str, Any] = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}
    terms |= {"max_length_q": 5, "max_length_k": 5}
    out, _ = _inner("flash_attention_2")(Layer(), query, query, query, None, scaling=0.5, **terms)
    assert loaded == ["flash_attention_2"]
    assert torch.equal(out, query.transpose(1, 2))
    assert seen["cu_seqlens_q"] is bounds and seen["shape"] == (8, 2, 4)
    assert (seen["causal"], seen["scale"]) == (True, 0.5)


def test_segments_run_as_they_are() -> None:
    assert _inner("braid_segments") is segment_attention
