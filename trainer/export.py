"""Turn a trainer checkpoint into a Hugging Face folder.

`python -m trainer.export CHECKPOINT_TRAINER_DIR MODEL_PATH OUT [--dtype float32|bfloat16]
[--reward-model]`
"""

import argparse
import shutil
import sys
from pathlib import Path

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from configs.errors import ConfigError, Problem
from configs.schema import ModelConfig
from trainer.checkpoint import TAG, TrainerCard, read_card
from trainer.model import DTYPES, check_tokenizer, load_hf_config
from trainer.reward_trainer import score_config

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
    reward_model: bool = False,
) -> None:
    """Write safetensors, config and tokenizer to the new folder `out`.

    Args:
        checkpoint: The `trainer` folder of a checkpoint, of any ZeRO stage and rank count.
        model_path: The model that the run started from; gives config and tokenizer.
        dtype: `float32` or `bfloat16`; None keeps the one trained in.
        reward_model: what was trained is a sequence classifier of one output.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            Problem(where=str(out), what="exists already", fix="name a new folder for the export.")
        )
    card = read_card(checkpoint)
    cfg = ModelConfig(path=model_path)
    check_tokenizer(cfg)
    config = score_config(cfg) if reward_model else load_hf_config(cfg)
    torch_dtype = DTYPES[dtype or card.dtype]
    kind = AutoModelForSequenceClassification if reward_model else AutoModelForCausalLM
    network = kind.from_config(config, dtype=torch_dtype)
    weights = {
        name.removeprefix(_PREFIX): tensor.to(torch_dtype)
        for name, tensor in _full_weights(checkpoint, card).items()
    }
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
    # Write beside, then rename: a killed export leaves no folder that looks complete.
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    network.save_pretrained(partial)
    _copy_tokenizer(model_path, partial)
    if out.exists():
        out.rmdir()
    partial.rename(out)


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


def _full_weights(checkpoint: Path, card: TrainerCard) -> dict[str, Tensor]:
    """Return every weight in full: fp32 masters where DeepSpeed can put them together.

    It cannot for stage 0, which has no partitions, nor for stage 1 in bfloat16, whose optimizer
    (BF16_Optimizer) its converter rejects; both keep the whole model in one file.
    """
    bf16_optimizer = card.zero_stage == 1 and card.dtype == "bfloat16"
    if card.zero_stage > 0 and not bf16_optimizer:
        weights: dict[str, Tensor] = get_fp32_state_dict_from_zero_checkpoint(
            str(checkpoint), tag=TAG
        )
        return weights
    # DeepSpeed's own file, written by this project's trainer; holds more than tensors.
    saved = torch.load(
        checkpoint / TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False
    )
    module: dict[str, Tensor] = saved["module"]
    return module


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m trainer.export")
    parser.add_argument("checkpoint", type=Path, help="trainer folder of a checkpoint")
    parser.add_argument("model_path", help="model that the run started from")
    parser.add_argument("out", type=Path, help="new folder to write")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="default: the one trained in")
    parser.add_argument("--reward-model", action="store_true", help="it is a reward model's")
    args = parser.parse_args(argv)
    try:
        export(
            args.checkpoint,
            args.model_path,
            args.out,
            dtype=args.dtype,
            reward_model=args.reward_model,
        )
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    size = sum(f.stat().st_size for f in args.out.glob("*.safetensors"))
    sys.stdout.write(f"exported to {args.out}: {size / 1e6:.1f} MB of weights, with tokenizer\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
