"""Metrics that reduce correctly: each carries what it must be divided by.

A mean of means over micro-batches or ranks is wrong as soon as their token counts differ; so a
loss returns `Mean`, `Sum` and `Max` objects, these merge over micro-batches, and one pair of
collectives reduces them over ranks.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True, init=False)
class Mean:
    """Mean of `values` [T] where `mask` [T] is true."""

    numerator: Tensor
    denominator: Tensor

    def __init__(self, values: Tensor, mask: Tensor):
        kept = torch.where(mask, values.detach().double(), 0.0)
        object.__setattr__(self, "numerator", kept.sum())
        object.__setattr__(self, "denominator", mask.sum().double())


@dataclass(frozen=True, slots=True, init=False)
class Sum:
    """Sum of `values` [T] where `mask` [T] is true."""

    value: Tensor

    def __init__(self, values: Tensor, mask: Tensor):
        object.__setattr__(self, "value", torch.where(mask, values.detach().double(), 0.0).sum())


@dataclass(frozen=True, slots=True, init=False)
class Max:
    """Largest of `values` [T] where `mask` [T] is true; no value where it never is."""

    value: Tensor

    def __init__(self, values: Tensor, mask: Tensor):
        kept = torch.where(mask, values.detach().double(), -math.inf)
        least = torch.full((1,), -math.inf, dtype=torch.float64, device=kept.device)
        object.__setattr__(self, "value", torch.cat([kept, least]).max())


Metric: TypeAlias = Mean | Sum | Max


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """One metric over many micro-batches and all ranks, still mergeable over minibatches."""

    kind: type[Metric]
    value: float
    """Numerator of a Mean, else the value."""
    weight: float
    """Denominator of a Mean, else 1."""

    def merge(self, other: "Reduced") -> "Reduced":
        """Combine with the same metric of another minibatch."""
        if self.kind is not other.kind:
            raise TypeError(f"cannot merge {self.kind.__name__} with {other.kind.__name__}")
        if self.kind is Max:
            return Reduced(kind=Max, value=max(self.value, other.value), weight=1)
        weight = self.weight + other.weight if self.kind is Mean else 1
        return Reduced(kind=self.kind, value=self.value + other.value, weight=weight)

    @property
    def result(self) -> float | None:
        """The number to log; None where no token counted."""
        if self.kind is Mean:
            return self.value / self.weight if self.weight > 0 else None
        return None if self.value == -math.inf else self.value


def reduce_metrics(
    parts: Iterable[Mapping[str, Metric]], device: torch.device, *, copies: int = 1
) -> dict[str, Reduced]:
    """Merge metrics over this rank's micro-batches, then over all ranks. A collective.

    Every rank and micro-batch must give the same names and kinds.

    Args:
        copies: ranks that hold the same micro-batches, which count once.
    """
    kinds: dict[str, type[Metric]] = {}
    totals: dict[str, list[Tensor]] = {}
    for part in parts:
        if kinds and part.keys() != kinds.keys():
            raise ValueError(f"metrics differ between micro-batches: {set(part) ^ set(kinds)}")
        for name, metric in part.items():
            if kinds.setdefault(name, type(metric)) is not type(metric):
                raise TypeError(f"metric {name} changes its kind between micro-batches")
            new = _numbers(metric)
            old = totals.get(name)
            if old is None:
                totals[name] = new
            elif isinstance(metric, Max):
                totals[name] = [torch.maximum(old[0], new[0])]
            else:
                totals[name] = [a + b for a, b in zip(old, new, strict=True)]
    names = sorted(kinds)
    summed = [t for n in names if kinds[n] is not Max for t in totals[n]]
    largest = [totals[n][0] for n in names if kinds[n] is Max]
    sums = [s / copies for s in _all_reduce(summed, dist.ReduceOp.SUM, device)]
    maxima = _all_reduce(largest, dist.ReduceOp.MAX, device)
    reduced: dict[str, Reduced] = {}
    for name in names:
        kind = kinds[name]
        value = maxima.pop(0) if kind is Max else sums.pop(0)
        weight = sums.pop(0) if kind is Mean else 1.0
        reduced[name] = Reduced(kind=kind, value=value, weight=weight)
    return reduced


def _numbers(metric: Metric) -> list[Tensor]:
    if isinstance(metric, Mean):
        return [metric.numerator, metric.denominator]
    return [metric.value]


def _all_reduce(
    numbers: list[Tensor], op: dist.ReduceOp.RedOpType, device: torch.device
) -> list[float]:
    if not numbers:
        return []
    packed = torch.stack([n.to(device) for n in numbers])
    dist.all_reduce(packed, op=op)
    result: list[float] = packed.tolist()
    return result
