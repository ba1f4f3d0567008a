"""Build the quickstart's policy from nothing: `python -m trainer.tiny_model OUT --seed 0`."""

import argparse
import sys
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from trainer.sft import SftSettings, sft
from trainer.tiny_text import CHAIN_SUM, SPELL, WORDY, Care, lessons

PAD, END = "<|pad|>", "<|end|>"
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
