"""The policy's weights as everybody else knows them: Hugging Face names, adapters merged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import deepspeed
from torch import Tensor, nn

from trainer.lora import adapted, merged


class WeightSpec(NamedTuple):
    """One tensor of the policy, under its Hugging Face name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """`float32` or `bfloat16`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Adapter:
    a: nn.Parameter
    b: nn.Parameter
    scale: float
    transposed: bool


class PublishedWeights:
    """The weights of a network, whole and merged, one group of names at a time."""

    def __init__(self, network: nn.Module, *, partitioned: bool):
        """
        Args:
            partitioned: whether parameters are gathered for use (ZeRO-3), a collective.
        """
        self._partitioned = partitioned
        self._gathering = False
        named = dict(network.named_parameters())
        self._adapters: dict[str, _Adapter] = {}
        for name, module in adapted(network):
            a, b = (dict(getattr(module, key).named_parameters()) for key in ("lora_A", "lora_B"))
            self._adapters[f"{name}.weight"] = _Adapter(
                a=a["default.weight"],
                b=b["default.weight"],
                scale=float(module.scaling["default"]),  # type: ignore[index,union-attr,arg-type]
                transposed=bool(module.fan_in_fan_out),
            )
            for own in [n for n in named if n.startswith(f"{name}.")]:
                parameter = named.pop(own)
                if ".lora_" not in own:
                    named[own.replace(f"{name}.base_layer.", f"{name}.")] = parameter
        self._named = named

    @property
    def adapted(self) -> bool:
        """Whether tensors are made by merging, and so live no longer than their context."""
        return bool(self._adapters)

    def specs(self) -> tuple[WeightSpec, ...]:
        """List all weights, a tied parameter once, in a fixed order."""
        return tuple(
            WeightSpec(
                name, tuple(getattr(p, "ds_shape", p.shape)), str(p.dtype).removeprefix("torch.")
            )
            for name, p in self._named.items()
        )

    @contextmanager
    def gathered(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Yield the named weights in full, in the model's dtype, on this rank's device.

        Under ZeRO-3 a collective; the tensors die with the context, which never nests.
        """
        if self._gathering:
            raise RuntimeError("gathered() contexts must not nest: leave the first one before")
        missing = [n for n in names if n not in self._named]
        if missing:
            raise KeyError(f"no such weights: {missing[:5]} ({len(missing)} in all)")
        adapters = [self._adapters[n] for n in names if n in self._adapters]
        chosen = [self._named[n] for n in names] + [p for x in adapters for p in (x.a, x.b)]
        self._gathering = True
        try:
            if self._partitioned:
                with deepspeed.zero.GatheredParameters(chosen):
                    yield {n: self._whole(n) for n in names}
            else:
                yield {n: self._whole(n) for n in names}
        finally:
            self._gathering = False

    def _whole(self, name: str) -> Tensor:
        base, x = self._named[name].data, self._adapters.get(name)
        if x is None:
            return base
        return merged(base, x.a.data, x.b.data, scale=x.scale, transposed=x.transposed)
