"""Adapters on the policy (peft), and what they make of its weights.

Weights leave the trainer merged, under their Hugging Face names, so that engines, exports and
checks need not know of adapters. Merging is done here alone: what is sent and what is exported
are the same bytes.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from configs.errors import ConfigError, Problem
from configs.lora import LoraConfig

_ADAPTER = "default"
_A, _B = f"lora_A.{_ADAPTER}.weight", f"lora_B.{_ADAPTER}.weight"


def add_adapter(network: PreTrainedModel, cfg: LoraConfig, *, seed: int) -> None:
    """Put adapters on `network` in place and freeze the rest; A is random, B is 0.

    Every rank draws the same A. Raises ConfigError where a target is not in the model.
    """
    from peft import inject_adapter_in_model  # takes seconds to import

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(_peft_config(cfg), network, adapter_name=_ADAPTER)
        except ValueError as error:
            raise ConfigError(
                Problem(
                    where="trainer.lora.target_modules",
                    what=f"cannot be adapted: {error}",
                    fix="name linear layers of the model, such as q_proj and v_proj, or "
                    "give all-linear.",
                )
            ) from error
    if network.is_gradient_checkpointing:
        network.enable_input_require_grads()  # recomputation skips what has no trained input


def merged(base: Tensor, a: Tensor, b: Tensor, *, scale: float, transposed: bool) -> Tensor:
    """Return base + scale * B A, summed in fp32, in the dtype of `base`.

    Args:
        base: [out, in], or [in, out] where `transposed` (GPT-2's layers).
        a: [rank, in]; b: [out, rank].
    """
    delta = (b.float() @ a.float()) * scale
    return (base.float() + (delta.t() if transposed else delta)).to(base.dtype)


def merge_state(
    base: Mapping[str, Tensor], adapter: Mapping[str, Tensor], network: nn.Module, cfg: LoraConfig
) -> dict[str, Tensor]:
    """Merge a saved adapter into the weights that it was trained on.

    Args:
        base: all weights, by Hugging Face name.
        adapter: names as `PolicyModel.network` gives them, `...q_proj.lora_A.default.weight`.
        network: the model, for which way round its layers lie.
    """
    out = dict(base)
    for name in (n.removesuffix(f".{_A}") for n in adapter if n.endswith(_A)):
        weight = base[f"{name}.weight"]
        a, b = (adapter[f"{name}.{end}"].to(weight.dtype) for end in (_A, _B))
        turned = type(network.get_submodule(name)).__name__ == "Conv1D"
        out[f"{name}.weight"] = merged(weight, a, b, scale=cfg.alpha / cfg.rank, transposed=turned)
    return out


def save_adapter(
    adapter: Mapping[str, Tensor], cfg: LoraConfig, model_path: str, folder: Path
) -> None:
    """Write a folder that peft and vLLM load: adapter_model.safetensors and adapter_config.json."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    renamed = {
        f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}": tensor.contiguous()
        for name, tensor in adapter.items()
    }
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = _peft_config(cfg)
    config.base_model_name_or_path = model_path
    config.inference_mode = True
    config.target_modules = {name.split(".lora_")[0].rpartition(".")[2] for name in adapter}
    config.save_pretrained(str(folder))


def adapted(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and module of each layer that has an adapter."""
    for name, module in network.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            yield name, module


def _peft_config(cfg: LoraConfig) -> Any:
    from peft import LoraConfig as PeftConfig

    targets, alpha = cfg.target_modules, cast(Any, cfg.alpha)  # peft divides it, nothing else
    return PeftConfig(
        r=cfg.rank,
        lora_alpha=alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
