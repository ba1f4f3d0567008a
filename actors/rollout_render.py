"""Between messages and token ids, by the model's own tokenizer and chat template."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from configs.errors import ConfigError, Problem
from configs.model_code import code_options
from configs.schema import ModelConfig
from rollouts.token_ends import token_ends
from rollouts.types import I32, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(model: ModelConfig, where: str = "model.path") -> "PreTrainedTokenizerBase":
    """Return the tokenizer of `model.path`.

    Args:
        where: field path of the model, for the error message.

    Raises:
        ConfigError: there is none, or it has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model.path, **code_options(model))
    except (OSError, ValueError) as error:
        what = f"{model.path} has no tokenizer that transformers can load: {error}"
        fix = "Save the tokenizer beside the model (tokenizer.save_pretrained)."
        raise ConfigError(Problem(where=where, what=what, fix=fix)) from error
    if tokenizer.chat_template is None:
        what = f"the tokenizer of {model.path} has no chat template"
        fix = "Set tokenizer.chat_template and save it, or start from an instruct model."
        raise ConfigError(Problem(where=where, what=what, fix=fix))
    return tokenizer


class ChatRenderer:
    """Renders with the tokenizer of `model.path`; see `load_tokenizer`."""

    def __init__(self, model: ModelConfig, where: str = "model.path"):
        tokenizer = load_tokenizer(model, where)
        self._tokenizer: PreTrainedTokenizerBase = tokenizer
        added = (t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
        marks = sorted({*tokenizer.all_special_tokens, *added} - {""}, key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, marks)) or r"(?!)")

    def render(self, messages: Sequence[Message]) -> I32:
        """Return the conversation's ids, ending where the assistant's reply begins."""
        plain = [{"role": m.role, "content": m.content} for m in messages]
        ids = self._tokenizer.apply_chat_template(
            plain, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return np.asarray(ids, dtype=np.int32)

    def break_up(self, text: str) -> str:
        """Return the text with a space inside every special token: it cannot end its message."""
        return self._marks.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def decode(self, ids: I32) -> str:
        """Return the text of sampled ids, special tokens left out."""
        text = self._tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def token_ends(self, ids: I32, text: str) -> I32:
        """Return how many characters of `text` (`ids` decoded) stand after each token [C]."""
        return token_ends(ids.tolist(), text, self._decode)

    def pieces(self, ids: I32) -> list[str]:
        """Return the text of each token, special ones spelt out; together they are the whole."""

        def spelt(some: Sequence[int]) -> str:
            text = self._tokenizer.decode(list(some), skip_special_tokens=False)
            assert isinstance(text, str)
            return text

        text = spelt(ids.tolist())
        ends = [0, *token_ends(ids.tolist(), text, spelt).tolist()]
        return [text[a:b] for a, b in pairwise(ends)]

    def _decode(self, ids: Sequence[int]) -> str:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None:  # four times as fast as through transformers
            return backend.decode(list(ids), skip_special_tokens=True)
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text
