"""Sequence parallelism: ranks that share each packed row (DeepSpeed Ulysses, arXiv:2309.14509).

Each of N peers runs 1/N of the row's tokens; inside attention they exchange tokens for heads, so
that each attends over the whole row with 1/N of the heads. Logprobs are then shared, and every
peer computes the same loss on all of them. Its backward reaches the parameters through its own
tokens alone: summed over the peers, as ZeRO does over all ranks, gradients are whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from configs.errors import ConfigError, Problem
from trainer.attention import Attention
from trainer.logprobs import score_tokens
from trainer.model import PolicyModel
from trainer.packing_check import agree, probe

_ULYSSES = "braid_ulysses"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peers:
    """The ranks that share a row, and this one's place among them."""

    group: dist.ProcessGroup
    rank: int
    size: int


def share_rows(model: nn.Module, policy: PolicyModel, size: int, device: torch.device) -> None:
    """Make every `size` neighbouring ranks share their rows. A collective of all ranks.

    Args:
        model: what is called, once DeepSpeed is initialised.

    Raises:
        ConfigError: the model's attention cannot be split.
    """
    alone = probe(model, policy, device)
    peers = _exchange(policy, size)
    policy.score_row = lambda *row: _score_row(policy, peers, *row)
    if not agree(alone, probe(model, policy, device), next(policy.network.parameters()).dtype):
        raise _impossible(
            f"{policy.network.config.model_type} models give other logprobs over shared rows"
        )


def _exchange(policy: PolicyModel, size: int) -> Peers:
    """Put the exchange of tokens for heads around the attention."""
    config = policy.network.config.get_text_config()
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    what = None
    if policy.attention == "sdpa":
        what = f"{config.model_type} models need transformers' mask, which spans the whole row"
    elif heads % size or (kv_heads % size and size % kv_heads):
        what = f"{heads} heads and {kv_heads} key-value heads cannot be split into {size}"
    if what is not None:
        raise ConfigError(Problem(where="trainer.sequence_parallel", what=what, fix="set it to 1."))
    mine: Any = None  # DeepSpeed's hints know no group but their own
    for start in range(0, dist.get_world_size(), size):
        group = dist.new_group(list(range(start, start + size)))
        if start <= dist.get_rank() < start + size:
            mine = group
    assert mine is not None
    exchange = UlyssesSPAttentionHF(
        attn=_inner(policy.attention),
        batch_size=1,
        attn_head_count=heads,
        attn_head_size=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        kv_head_count=kv_heads,
        num_hidden_layers=int(config.num_hidden_layers),
        process_group=mine,
        seq_length_is_variable=True,
    )
    AttentionInterface.register(_ULYSSES, exchange.forward)
    policy.network.set_attn_implementation(_ULYSSES)
    return Peers(group=mine, rank=dist.get_rank() % size, size=size)


def _inner(attention: Attention) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Return the attention that runs between the exchanges."""
    chosen: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS[attention]
    if attention != "flash_attention_2":
        return chosen
    return lambda module, *tensors, **terms: chosen(_WithFlash(module), *tensors, **terms)


class _WithFlash:
    """A module as flash-attn's caller wants it: transformers reads in its config which library is
    to be loaded, and there our own name stands."""

    config = SimpleNamespace(_attn_implementation="flash_attention_2")

    def __init__(self, module: nn.Module):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _impossible(what: str) -> ConfigError:
    return ConfigError(Problem(where="trainer.sequence_parallel", what=what, fix="set it to 1."))


def _score_row(
    policy: PolicyModel,
    peers: Peers,
    token_ids: Tensor,
    positions: Tensor,
    cu_seqlens: Tensor,
    temperature: Tensor,
    wanted: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Score a row as `PolicyModel.forward` does, running this rank's tokens of it alone."""
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).tolist()
    missing = -len(token_ids) % peers.size
    if missing:  # a segment that nothing looks at
        lengths.append(missing)
    share = (len(token_ids) + missing) // peers.size
    start = peers.rank * share
    mine = slice(start, start + share)
    rest = torch.arange(missing, device=positions.device)
    hidden = policy.hidden_states(
        pad(token_ids, (0, missing))[mine], torch.cat([positions, rest])[mine], lengths
    )
    scored = score_tokens(
        policy.head, hidden, token_ids, cu_seqlens, temperature, wanted, first=start
    )
    logprobs, entropies = _SumOverPeers.apply(torch.stack(scored), peers.group)
    return logprobs, entropies


class _SumOverPeers(torch.autograd.Function):
    """Sum over peers; each then computes the same loss, so the gradient is passed on as it is."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad, None
