"""Log-probabilities of packed tokens: the next-token shift, and the chunked output head.

The shift happens in `score_tokens` and nowhere else: token t is predicted by the hidden state of
token t - 1, and the first token of a segment by nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn


class LogprobHead(nn.Module):
    """Output head that gives logprobs and entropies, never a [T, V] of logits.

    Holds the very Parameters of the head it replaces, so tied embeddings stay tied and ZeRO-3's
    module hooks gather them once a forward.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        chunk: int,
        *,
        bias: nn.Parameter | None = None,
        fp32: bool = False,
    ):
        """
        Args:
            fp32: multiply in fp32 whatever the weights are in.
        """
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", bias)
        self.chunk = chunk
        self.fp32 = fp32

    def forward(self, hidden: Tensor, targets: Tensor, temperature: Tensor) -> Tensor:
        """Score `targets` [N] from `hidden` [N, H]: fp32 [2, N], logprobs and entropies."""
        scored: Tensor = _ChunkedLogprob.apply(
            hidden, self.weight, self.bias, targets, temperature, self.chunk, self.fp32
        )
        return scored


def score_tokens(
    head: nn.Module,
    hidden: Tensor,
    token_ids: Tensor,
    cu_seqlens: Tensor,
    temperature: Tensor,
    wanted: Tensor | None,
    *,
    first: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return logprobs and entropies [T] fp32 such that position t describes token t.

    Args:
        hidden: [T, H], the last hidden states; or [n, H], those of n tokens from `first` on, and
            then only what these predict is scored.
        temperature: [T], of each token's own sampling.
        wanted: [T] bool, tokens to score, or None for all; the rest get 0, as do first tokens.
    """
    total = token_ids.shape[0]
    predicted = torch.ones(total, dtype=torch.bool, device=token_ids.device)
    predicted[cu_seqlens[:-1]] = False
    if wanted is not None:
        predicted &= wanted
    at = predicted.nonzero().squeeze(1)
    at = at[(at > first) & (at <= first + len(hidden))]
    scored = head(hidden.index_select(0, at - 1 - first), token_ids[at], temperature[at])
    placed = torch.zeros(2, total, dtype=torch.float32, device=scored.device)
    placed = placed.index_copy(1, at, scored)
    return placed[0], placed[1]


def _chunk_log_softmax(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: Tensor
) -> Tensor:
    """fp32 log-softmax of one chunk's logits over its temperatures: [chunk, V]."""
    bias = None if bias is None else bias.to(weight.dtype)
    logits = torch.nn.functional.linear(hidden.to(weight.dtype), weight, bias).float()
    return torch.log_softmax(logits.div_(temperature.unsqueeze(1)), dim=-1)


class _ChunkedLogprob(torch.autograd.Function):
    """log softmax((h W^T + b) / temperature) at the targets, and its entropy, a chunk at a time.

    Only hidden states are kept; the backward pass computes each chunk's logits again.
    With p the softmax: d logprob / d z = onehot - p, d entropy / d z = -p (log p + entropy).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: Tensor,
        chunk: int,
        fp32: bool,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets, temperature)
        ctx.chunk, ctx.fp32 = chunk, fp32
        weight = weight.float() if fp32 else weight
        count = hidden.shape[0]
        out = torch.zeros(2, count, dtype=torch.float32, device=hidden.device)
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            logp = _chunk_log_softmax(hidden[part], weight, bias, temperature[part])
            out[0, part] = logp.gather(1, targets[part].unsqueeze(1)).squeeze(1)
            out[1, part] = -logp.exp().mul_(logp).sum(-1)
            del logp  # before the next one is made
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, bias, targets, temperature = ctx.saved_tensors
        of_weight, of_bias = ctx.needs_input_grad[1:3]  # neither where the head is frozen
        grad_hidden = torch.empty_like(hidden)
        grad_weight = grad_bias = None
        if of_weight:
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        if of_bias:
            grad_bias = torch.zeros(bias.shape, dtype=torch.float32, device=weight.device)
        with_entropy = bool(grad[1].any())
        own, weight = weight.dtype, weight.float() if ctx.fp32 else weight
        for start in range(0, hidden.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logp = _chunk_log_softmax(hidden[part], weight, bias, temperature[part])
            grad_logits = _grad_logits(logp, targets[part], grad[:, part], with_entropy)
            grad_logits.div_(temperature[part].unsqueeze(1))
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            low = grad_logits.to(weight.dtype)
            grad_hidden[part] = low @ weight
            if grad_weight is not None:
                _accumulate(grad_weight, low, hidden[part].to(weight.dtype))
            del logp, grad_logits, low  # before the next ones are made
        if grad_weight is not None:
            grad_weight = grad_weight.to(own)
        if grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _grad_logits(logp: Tensor, targets: Tensor, grad: Tensor, with_entropy: bool) -> Tensor:
    """Gradient by a chunk's tempered logits [chunk, V], from that of (logprobs, entropies).

    Overwrites `logp` where it can.
    """
    if not with_entropy:
        out = logp.exp_().mul_(-grad[0].unsqueeze(1))
    else:
        prob = logp.exp()
        out = prob * -grad[0].unsqueeze(1)
        plogp = prob * logp
        entropy = -plogp.sum(-1, keepdim=True)
        out -= grad[1].unsqueeze(1) * (plogp + prob * entropy)
    return out.scatter_add_(1, targets.unsqueeze(1), grad[0].unsqueeze(1).to(out.dtype))


def _accumulate(total: Tensor, low: Tensor, hidden: Tensor) -> None:
    """Add low^T hidden to the fp32 `total` [V, H]."""
    if low.dtype == total.dtype:
        total.addmm_(low.t(), hidden)
    else:
        total += low.t() @ hidden
