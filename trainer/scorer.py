"""Logprobs without gradients: the shared pass, and the frozen reference model."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from configs.schema import ModelConfig
from rollouts.types import F32, MicroBatch
from trainer.batch import to_device
from trainer.model import load_policy
from trainer.packing_check import check_packing


@torch.no_grad()
def score_micro_batches(
    model: nn.Module, micro_batches: Sequence[MicroBatch], device: torch.device
) -> list[F32]:
    """Score the loss tokens of each micro-batch: [T] fp32, 0 at tokens outside the loss."""
    scores: list[F32] = []
    for batch in micro_batches:
        b = to_device(batch, device)
        logprobs, _ = model(b.token_ids, b.positions, b.cu_seqlens, b.temperature, b.loss_mask)
        scores.append(logprobs[: len(batch.token_ids)].cpu().numpy().astype(np.float32))
    return scores


class ReferenceModel:
    """A frozen policy on one device, with no optimizer."""

    def __init__(
        self,
        cfg: ModelConfig,
        *,
        packing: Literal["packed", "padded"] = "packed",
        logprob_chunk: int = 1024,
        device: torch.device | None = None,
    ):
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_policy(
            cfg, packing=packing, logprob_chunk=logprob_chunk, device=self.device
        ).requires_grad_(False)
        check_packing(self._model, self._model, self.device)

    @property
    def network(self) -> nn.Module:
        """The Hugging Face network, whose weights have the policy's names."""
        return self._model.network

    def token_logprobs(self, micro_batches: Sequence[MicroBatch]) -> list[F32]:
        """Score each micro-batch's loss tokens at their temperature: [T], 0 elsewhere."""
        return score_micro_batches(self._model, micro_batches, self.device)
