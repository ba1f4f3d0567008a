"""Hugging Face tensor names against vLLM's parameters: which are expected, and where each lies.

vLLM stacks some tensors (q, k, v in `qkv_proj`), shares tied ones, pads vocabularies, and on CPU
keeps linear weights only in a packed copy. Experts are matched by prefix alone.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from actors.sync_plan import Manifest, TensorSpec
from actors.sync_tensors import torch_dtype


class NameMap:
    """Where the tensors of a manifest go in one worker's model.

    Args:
        model: vLLM's model, loaded.
        tied: whether the config ties the output head to the embedding.
    """

    def __init__(self, model: nn.Module, *, tied: bool):
        self._model = model
        self._tied = tied
        self._packed: Mapping[str, list[str]] = getattr(model, "packed_modules_mapping", {})
        self._mapper = getattr(model, "hf_to_vllm_mapper", None)
        if self._mapper is not None and hasattr(self._mapper, "orig_to_new_stacked"):
            self._mapper = dataclasses.replace(self._mapper, orig_to_new_stacked={})

    def check(self, manifest: Manifest) -> None:
        """Compare the manifest's names with those that the model expects.

        Raises:
            ValueError: naming what is missing and what is unexpected.
        """
        given = {m: n for n in manifest.names if (m := self._to_vllm(n)) is not None}
        parameters = dict(self._model.named_parameters())
        missing: list[str] = []
        known: set[str] = set()
        for name in parameters:
            if name in given:
                known.add(name)
                continue
            sources = self._sources(name)
            known.update(sources)
            if self._tied and name.startswith("lm_head."):
                continue
            if ".experts." in name:
                prefix = name.partition(".experts.")[0] + ".experts."
                sources = [n for n in given if n.startswith(prefix)]
                known.update(sources)
                missing.extend([] if sources else [name])
                continue
            missing.extend(s for s in sources if s not in given)
        unexpected = [n for m, n in given.items() if m not in known and not self._elsewhere(m)]
        if missing or unexpected:
            kind = type(self._model).__name__
            hint = (
                " (the embeddings are tied: the output head must not be sent on its own)"
                if self._tied and any("lm_head" in n for n in unexpected)
                else ""
            )
            raise ValueError(
                f"the trainer's tensors do not fit vLLM's {kind}: "
                f"missing {_listed(missing)}, unexpected {_listed(unexpected)}{hint}"
            )

    def loaded_view(self, spec: TensorSpec, manifest: Manifest) -> torch.Tensor | None:
        """Return a sent tensor as it lies in the model, or None where it cannot be read back:
        packed on CPU, sharded over tensor-parallel ranks, in another dtype, or transformed."""
        name = self._to_vllm(spec.name)
        parameters = dict(self._model.named_parameters())
        if name is None:
            return None
        if name in parameters:
            return _matching(parameters[name], spec, spec.shape[0] if spec.shape else 0, 0)
        shapes = {self._to_vllm(t.name): t.shape for t in manifest.tensors}
        for target, parameter in parameters.items():
            sources = self._sources(target)
            if name not in sources or any(not shapes.get(s) for s in sources):
                continue
            rows = [shapes[s][0] for s in sources]
            if sum(rows) != (parameter.shape[0] if parameter.ndim else 0):
                return None
            return _matching(parameter, spec, sum(rows), sum(rows[: sources.index(name)]))
        return None

    def _to_vllm(self, name: str) -> str | None:
        """Rename a tensor, without stacking; None if the model ignores it."""
        if self._mapper is None:
            return name
        # `map_name` is public from vLLM 0.32 on.
        rename = getattr(self._mapper, "map_name", None) or self._mapper._map_name
        return rename(name)

    def _sources(self, parameter: str) -> list[str]:
        """Return the unstacked names that fill a parameter, in the order in which they lie."""
        parts = parameter.split(".")
        for i, part in enumerate(parts):
            if part in self._packed:
                return [".".join([*parts[:i], s, *parts[i + 1 :]]) for s in self._packed[part]]
        return [parameter]

    def _elsewhere(self, name: str) -> bool:
        """Whether another pipeline stage holds it."""
        from vllm.model_executor.models.utils import is_pp_missing_parameter

        return is_pp_missing_parameter(name, self._model)


def _matching(
    parameter: torch.Tensor, spec: TensorSpec, rows: int, start: int
) -> torch.Tensor | None:
    """Return rows [start, start + spec rows) of a parameter if they are the tensor's plain copy."""
    loader = getattr(getattr(parameter, "weight_loader", None), "__name__", "")
    if parameter.dtype != torch_dtype(spec.dtype) or loader == "composed_loader":
        return None
    if not spec.shape:
        return parameter.data if parameter.ndim == 0 else None
    padded = hasattr(parameter, "output_dim") and parameter.shape[:1] > (rows,)
    if parameter.ndim != len(spec.shape) or parameter.shape[1:] != spec.shape[1:]:
        return None
    if parameter.shape[0] != rows and not (padded and start == 0 and rows == spec.shape[0]):
        return None
    return parameter.data[start : start + spec.shape[0]]


def _listed(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:8])
    return f"{shown or 'nothing'}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"
