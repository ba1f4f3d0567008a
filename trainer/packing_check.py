"""Does this model keep the segments of a packed row apart? Found out, not looked up.

A model may ignore segment-local positions, or carry a state or a window over the start of a
segment. Two short forward passes tell; under ZeRO-3 they are collectives.
"""

import logging

import torch
from torch import Tensor, nn

from configs.errors import ConfigError, Problem
from trainer.model import PolicyModel

_LENGTHS = (5, 9, 7)
_AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Bound on the mean |packed - padded| logprob, in nats."""
_LEAK = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""Bound on the mean change of later segments' logprobs when the first segment's tokens change."""


@torch.no_grad()
def check_packing(model: nn.Module, policy: PolicyModel, device: torch.device) -> None:
    """Have `policy` keep packed segments apart, by transformers' own mask if it must.

    Args:
        model: what is called: `policy`, or what DeepSpeed made of it.

    Raises:
        ConfigError: no packed row is right for this model.
    """
    if policy.packing == "padded":
        return
    fault = _fault(model, policy, device)
    if fault is not None and policy.attention == "braid_segments":
        logging.getLogger(__name__).warning(
            "segments leak under segment attention (%s): using transformers' mask", fault
        )
        policy.use_attention("sdpa")
        fault = _fault(model, policy, device)
    if fault is not None:
        kind = getattr(policy.network.config, "model_type", "unknown")
        raise ConfigError(
            Problem(
                where="batch.packing",
                what=f"is `packed`, but a {kind} model does not keep segments apart: {fault}",
                fix="set it to padded.",
            )
        )


def _fault(model: nn.Module, policy: PolicyModel, device: torch.device) -> str | None:
    """Return what is wrong with packed rows; None where nothing is."""
    dtype, ids = next(policy.network.parameters()).dtype, _tokens(policy, device)
    vocab = int(policy.network.config.get_text_config().vocab_size)
    packed = _score(model, ids)
    policy.packing = "padded"
    padded = _score(model, ids)
    policy.packing = "packed"
    gap = float((packed - padded).abs().mean())
    if not gap <= _AGREEMENT[dtype]:
        return f"packed and padded rows differ by {gap:.2g} nats a token"
    changed = ids.clone()
    changed[: _LENGTHS[0]] = (changed[: _LENGTHS[0]] + 1) % vocab
    later = slice(_LENGTHS[0], None)
    leak = float((packed[later] - _score(model, changed)[later]).abs().mean())
    if not leak <= _LEAK[dtype]:
        return f"other tokens before a segment change it by {leak:.2g} nats a token"
    return None


@torch.no_grad()
def probe(model: nn.Module, policy: PolicyModel, device: torch.device) -> Tensor:
    """Score the check's own packed row as the model does it now: logprobs [T]."""
    return _score(model, _tokens(policy, device))


def agree(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Whether two ways to run a model of `dtype` give the same logprobs, up to rounding."""
    return bool((a - b).abs().mean() <= _AGREEMENT[dtype])


def _tokens(policy: PolicyModel, device: torch.device) -> Tensor:
    vocab = int(policy.network.config.get_text_config().vocab_size)
    return torch.arange(1, sum(_LENGTHS) + 1, device=device).mul_(7919).remainder_(vocab)


def _score(model: nn.Module, ids: Tensor) -> Tensor:
    positions = torch.cat([torch.arange(n, device=ids.device) for n in _LENGTHS])
    bounds = torch.tensor((0, *_LENGTHS), device=ids.device).cumsum(0)
    logprobs: Tensor = model(ids, positions, bounds, torch.ones(len(ids), device=ids.device))[0]
    return logprobs
