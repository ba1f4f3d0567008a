"""Turn a trainer checkpoint into a Hugging Face folder.

`python -m trainer.export CHECKPOINT_TRAINER_DIR MODEL_PATH OUT [--dtype float32|bfloat16]`
`... --adapter` writes the LoRA adapter instead of the merged model, `... --reward-model` the
sequence classifier that was trained.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import cast

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from configs.errors import ConfigError, Problem
from configs.schema import ModelConfig
from trainer.checkpoint import TAG, TrainerCard, read_card
from trainer.lora import merge_state, save_adapter
from trainer.model import DTYPES, check_tokenizer, load_hf_config
from trainer.reward_trainer import score_config
from trainer.safe_load import only_tensors

_PREFIX = "network."
"""Where PolicyModel holds the Hugging Face network."""
_TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "generation_config.json",
)


def export(
    checkpoint: Path,
    model_path: str,
    out: Path,
    *,
    dtype: str | None = None,
    adapter_only: bool = False,
    reward_model: bool = False,
) -> None:
    """Write safetensors, config and tokenizer to the new folder `out`; adapters are merged.

    Args:
        checkpoint: The `trainer` folder of a checkpoint, of any ZeRO stage and rank count.
        model_path: The model that the run started from; gives config and tokenizer.
        dtype: `float32` or `bfloat16`; None keeps the one trained in.
        adapter_only: write the adapter alone, as peft and vLLM load it.
        reward_model: what was trained is a sequence classifier of one output.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            Problem(where=str(out), what="exists already", fix="name a new folder for the export.")
        )
    card = read_card(checkpoint)
    torch_dtype = DTYPES[dtype or card.dtype]
    # Write beside, then rename: a killed export leaves no folder that looks complete.
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    if adapter_only:
        _write_adapter(checkpoint, card, model_path, partial, torch_dtype)
    else:
        _write_model(checkpoint, card, model_path, partial, torch_dtype, reward_model=reward_model)
    if out.exists():
        out.rmdir()
    partial.rename(out)


def _write_model(
    checkpoint: Path,
    card: TrainerCard,
    model_path: str,
    folder: Path,
    dtype: torch.dtype,
    *,
    reward_model: bool,
) -> None:
    cfg = ModelConfig(path=model_path)
    check_tokenizer(cfg)
    config = score_config(cfg) if reward_model else load_hf_config(cfg)
    kind = AutoModelForSequenceClassification if reward_model else AutoModelForCausalLM
    saved = _trained_weights(checkpoint, card)
    if card.lora is None:
        network = kind.from_config(config, dtype=dtype)
        weights = saved
    else:
        base = kind.from_pretrained(
            model_path, config=config, dtype=DTYPES[card.dtype], use_safetensors=True
        )
        weights = merge_state(base.state_dict(), saved, base, card.lora)
        network = base
    cast(nn.Module, network).to(dtype)
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    names = set(network.state_dict())
    if set(weights) != names:
        raise ConfigError(
            Problem(
                where=str(checkpoint),
                what=f"does not hold the weights of {model_path}: "
                f"{sorted(set(weights) ^ names)[:5]} differ",
                fix="give the model that the run started from.",
            )
        )
    network.load_state_dict(weights)
    network.save_pretrained(folder)
    _copy_tokenizer(model_path, folder)


def _write_adapter(
    checkpoint: Path, card: TrainerCard, model_path: str, folder: Path, dtype: torch.dtype
) -> None:
    if card.lora is None:
        raise ConfigError(
            Problem(
                where=str(checkpoint),
                what="holds no adapter: all weights were trained",
                fix="export the whole model, without --adapter.",
            )
        )
    saved = _trained_weights(checkpoint, card)
    weights = {name: tensor.to(dtype) for name, tensor in saved.items()}
    save_adapter(weights, card.lora, model_path, folder)


def _copy_tokenizer(model_path: str, out: Path) -> None:
    """Copy the tokenizer's own files: loading and saving again may change what it does."""
    source = Path(model_path)
    if not source.is_dir():
        AutoTokenizer.from_pretrained(model_path).save_pretrained(out)
        return
    for pattern in _TOKENIZER_FILES:
        for file in source.glob(pattern):
            shutil.copyfile(file, out / file.name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, out / templates.name)


def _trained_weights(checkpoint: Path, card: TrainerCard) -> dict[str, Tensor]:
    """Return the saved weights by the network's names: all, or the adapter's."""
    full = _full_weights(checkpoint, card)
    named = {name.removeprefix(_PREFIX): tensor for name, tensor in full.items()}
    return {n: t for n, t in named.items() if card.lora is None or ".lora_" in n}


def _full_weights(checkpoint: Path, card: TrainerCard) -> dict[str, Tensor]:
    """Return every weight in full: fp32 masters where DeepSpeed can put them together.

    It cannot for stage 0, which has no partitions, nor for stage 1 in bfloat16, whose optimizer
    (BF16_Optimizer) its converter rejects; both keep the whole model in one file.
    """
    bf16_optimizer = card.zero_stage == 1 and card.dtype == "bfloat16"
    with only_tensors():
        if card.zero_stage > 0 and not bf16_optimizer:
            weights = get_fp32_state_dict_from_zero_checkpoint(
                str(checkpoint), tag=TAG, exclude_frozen_parameters=card.lora is not None
            )
            return dict(weights or {})
        whole = checkpoint / TAG / "mp_rank_00_model_states.pt"
        saved = torch.load(whole, map_location="cpu", weights_only=True)
    module: dict[str, Tensor] = saved["module"]
    return module


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m trainer.export")
    parser.add_argument("checkpoint", type=Path, help="trainer folder of a checkpoint")
    parser.add_argument("model_path", help="model that the run started from")
    parser.add_argument("out", type=Path, help="new folder to write")
    parser.add_argument("--adapter", action="store_true", help="write the LoRA adapter alone")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: the one trained in")
    parser.add_argument("--reward-model", action="store_true", help="it is a reward model's")
    args = parser.parse_args(argv)
    try:
        export(
            args.checkpoint,
            args.model_path,
            args.out,
            dtype=args.dtype,
            adapter_only=args.adapter,
            reward_model=args.reward_model,
        )
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    size = sum(f.stat().st_size for f in args.out.glob("*.safetensors"))
    sys.stdout.write(f"exported to {args.out}: {size / 1e6:.1f} MB of weights\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
