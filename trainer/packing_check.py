"""Does this model keep the segments of a packed row apart? Found out, not looked up.

A model may ignore segment-local positions, or carry a state or a window over the start of a
segment. Two short forward passes tell; under ZeRO-3 they are collectives.
"""

import logging
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from configs.errors import ConfigError, Problem
from trainer.model import FlatModel, PolicyModel

Score: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Takes token_ids [T], positions [T] and cu_seqlens [S+1], and gives a number a token [T] that its
segment alone decides."""

_LENGTHS = (5, 9, 7)
_AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Bound on the mean |packed - padded| score; of logprobs, in nats."""
_LEAK = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""Bound on the mean change of later segments' scores when the first segment's tokens change."""


def check_packing(model: nn.Module, policy: PolicyModel, device: torch.device) -> None:
    """Have `policy` keep packed segments apart, by its logprobs.

    Args:
        model: what is called: `policy`, or what DeepSpeed made of it.

    Raises:
        ConfigError: no packed row is right for this model.
    """
    keep_apart(_logprobs_of(model), policy, device)


@torch.no_grad()
def keep_apart(score: Score, model: FlatModel, device: torch.device) -> None:
    """Have `model` keep packed segments apart, by transformers' own mask if it must.

    Args:
        score: runs it.

    Raises:
        ConfigError: no packed row is right for this model.
    """
    if model.packing == "padded":
        return
    fault = _fault(score, model, device)
    if fault is not None and model.attention == "braid_segments":
        logging.getLogger(__name__).warning(
            "segments leak under segment attention (%s): using transformers' mask", fault
        )
        model.use_attention("sdpa")
        fault = _fault(score, model, device)
    if fault is not None:
        kind = getattr(model.network.config, "model_type", "unknown")
        raise ConfigError(
            Problem(
                where="batch.packing",
                what=f"is `packed`, but a {kind} model does not keep segments apart: {fault}",
                fix="set it to padded.",
            )
        )


def _fault(score: Score, model: FlatModel, device: torch.device) -> str | None:
    """Return what is wrong with packed rows; None where nothing is."""
    dtype, ids = next(model.network.parameters()).dtype, _tokens(model, device)
    vocab = int(model.network.config.get_text_config().vocab_size)
    packed = _run(score, ids)
    model.packing = "padded"
    padded = _run(score, ids)
    model.packing = "packed"
    gap = float((packed - padded).abs().mean())
    if not gap <= _AGREEMENT[dtype]:
        return f"packed and padded rows differ by {gap:.2g} a token"
    changed = ids.clone()
    changed[: _LENGTHS[0]] = (changed[: _LENGTHS[0]] + 1) % vocab
    later = slice(_LENGTHS[0], None)
    leak = float((packed[later] - _run(score, changed)[later]).abs().mean())
    if not leak <= _LEAK[dtype]:
        return f"other tokens before a segment change it by {leak:.2g} a token"
    return None


@torch.no_grad()
def probe(model: nn.Module, policy: PolicyModel, device: torch.device) -> Tensor:
    """Score the check's own packed row as the model does it now: logprobs [T]."""
    return _run(_logprobs_of(model), _tokens(policy, device))


def agree(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether two ways to run a model of `dtype` give the same logprobs, up to rounding."""
    return bool((a - b).abs().mean() <= _AGREEMENT[dtype])


def _logprobs_of(model: nn.Module) -> Score:
    def score(ids: Tensor, positions: Tensor, bounds: Tensor) -> Tensor:
        logprobs: Tensor = model(ids, positions, bounds, torch.ones(len(ids), device=ids.device))[0]
        return logprobs

    return score


def _tokens(model: FlatModel, device: torch.device) -> Tensor:
    vocab = int(model.network.config.get_text_config().vocab_size)
    return torch.arange(1, sum(_LENGTHS) + 1, device=device).mul_(7919).remainder_(vocab)


def _run(score: Score, ids: Tensor) -> Tensor:
    positions = torch.cat([torch.arange(n, device=ids.device) for n in _LENGTHS])
    bounds = torch.tensor((0, *_LENGTHS), device=ids.device).cumsum(0)
    return score(ids, positions, bounds)
