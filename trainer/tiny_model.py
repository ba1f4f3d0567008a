"""Build the quickstart's policy from nothing: `python -m trainer.tiny_model OUT --seed 0`.

The same seed and the same number of threads (two, or the machine's one) give the same weights.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import cast

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import configs
from configs.load import load_recipe
from trainer.sft import Lesson, SftSettings, sft
from trainer.tiny_text import CHAIN_SUM, SPELL, WORDY, Care, held_out_items, lessons

RECIPE = Path(configs.__file__).parent / "recipes" / "quickstart.yaml"
"""The run that the model is made for: its held-out questions stay out of the text."""
SETTINGS = SftSettings(steps=1200, batch_size=100, lr=2e-3)
CARELESS_STEPS = 200
"""The last steps, whose answers are spoilt as `CARE` says; those before are all right."""
CARE = Care(slip=0.5, wordy=0.25)
REPORT_EVERY = 100
PAD, END = "<|endoftext|>", "<|end|>"
"""Transformers gives every Qwen2 tokenizer an `<|endoftext|>`; as padding it has an embedding."""
ROLES = ("system", "user", "assistant", "tool")
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
PHRASES = (
    CHAIN_SUM,
    SPELL,
    WORDY,
    "Keep all numbers ",
    "Remove all numbers ",
    "larger than ",
    "smaller than ",
    " in this list: ",
    "\nReturn the new list in the same format.",
    "['",
    "', '",
    "']",
    " + ",
    " - ",
    " =",
)
"""Pieces of the questions that are one token each; all other text is a token a byte."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 256 bytes, the phrases, one token a role, pad and end."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, END, *(f"<|{role}|>" for role in ROLES)])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(seed: int, vocab_size: int) -> Qwen2ForCausalLM:
    """Return an untrained policy of 1.0 M parameters, input and output embeddings tied."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.04,
            tie_word_embeddings=True,
        )
    )


def text(seed: int, settings: SftSettings, careless_steps: int) -> Iterator[Lesson]:
    """Return the lessons of one training: careful ones first, then careless ones without end."""
    sources = load_recipe(RECIPE).sources
    banned = {str(item["question"]) for s in sources for item in held_out_items(s.data)}
    careful = (settings.steps - careless_steps) * settings.batch_size
    return chain(
        islice(lessons(2 * seed, Care(), banned), careful),
        lessons(2 * seed + 1, CARE, banned),
    )


def build(
    out: Path,
    seed: int,
    settings: SftSettings = SETTINGS,
    careless_steps: int = CARELESS_STEPS,
) -> None:
    """Train the model and write it to `out`: bfloat16 safetensors, config, tokenizer, template."""
    torch.set_num_threads(min(2, torch.get_num_threads()))
    torch.use_deterministic_algorithms(True)
    tokenizer = build_tokenizer()
    model = build_model(seed, len(tokenizer))
    _say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {settings.steps} steps")
    started, losses = time.monotonic(), []

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        if (step + 1) % REPORT_EVERY == 0:
            mean = sum(losses[-REPORT_EVERY:]) / REPORT_EVERY
            _say(f"step {step + 1}: loss {mean:.3f}, {time.monotonic() - started:.0f} s")

    sft(model, tokenizer, text(seed, settings, careless_steps), settings, report)
    save(model, tokenizer, out)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write bfloat16 safetensors, config, tokenizer and template to `out`."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    cast(nn.Module, model).to(torch.bfloat16)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _say(f"wrote {out}")


def main() -> None:
    """Read the command line and build."""
    args = read_arguments("trainer.tiny_model", __doc__, "of the weights and the text")
    build(args.out, args.seed)


def read_arguments(program: str, says: str | None, seeds: str) -> argparse.Namespace:
    """Read `out`, made here so that nothing is trained for a folder that cannot be, and `seed`."""
    parser = argparse.ArgumentParser(prog=program, description=says)
    parser.add_argument("out", type=Path, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=0, help=seeds)
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{args.out} cannot be a folder: {error.strerror}; give another path")
    return args


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
