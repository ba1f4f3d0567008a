"""Which characters a token wrote, against decoding every prefix, for three kinds of tokenizer."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

import configs
from rollouts.token_ends import token_ends

TINY = Tokenizer.from_file(
    str(Path(configs.__file__).parent / "models" / "tiny" / "tokenizer.json")
)
LOST = "\ufffd"
Decode = Callable[[Sequence[int]], str]


def tiny(ids: Sequence[int]) -> str:
    return TINY.decode(list(ids), skip_special_tokens=True)


def sentencepiece() -> Tokenizer:
    """A leading space is dropped, unknown characters are bytes (as Llama 2 and Mistral have it)."""
    pieces = ["<unk>", "</s>", "▁", "▁the", "a", "b", "▁b", "é"]
    vocab = {p: i for i, p in enumerate([*pieces, *(f"<0x{b:02X}>" for b in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def wordpiece() -> Tokenizer:
    """Later tokens change earlier text: the space before punctuation goes."""
    pieces = ["[UNK]", "do", "n", "'", "t", "##ing", ".", "x", "##y", "!"]
    vocab = {p: i for i, p in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return tokenizer


LLAMA, BERT = sentencepiece(), wordpiece()


def check(ids: Sequence[int], decode: Decode) -> np.ndarray:
    """Assert what holds for any tokenizer; return the ends."""
    text = decode(ids)
    ends = token_ends(ids, text, decode)
    assert ends.dtype == np.int32 and ends.shape == (len(ids),)
    assert (np.diff(ends) >= 0).all() and (ends >= 0).all()
    if len(ids):
        assert ends[-1] == len(text)
    pieces = [text[a:b] for a, b in pairwise([0, *ends.tolist()])]
    assert "".join(pieces) == text
    for place, end in enumerate(ends.tolist()):
        seen = decode(ids[: place + 1]).rstrip(LOST)
        if LOST not in text and decode is tiny:
            assert text[:end] == seen  # exactly what a reader had seen by then
        elif LOST not in text and decode is llama:
            assert text[:end].startswith(seen)  # one broken byte hides the run that it ends
    return ends


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
@example("naïve 漢字 😀 State the final answer to the following arithmetic problem: 4 - 1 =")
def test_text_round_trips_through_the_tiny_tokenizer(text: str) -> None:
    ids = TINY.encode(text, add_special_tokens=False).ids
    check(ids, tiny)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, TINY.get_vocab_size() - 1), max_size=40))
def test_whatever_a_policy_may_sample(ids: list[int]) -> None:
    check(ids, tiny)


def test_a_long_run_of_broken_bytes_stays_cheap() -> None:
    broken = TINY.encode("é", add_special_tokens=False).ids[:1]
    decoded = 0

    def counting(ids: Sequence[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return tiny(ids)

    ids = broken * 2000
    text = tiny(ids)
    ends = token_ends(ids, text, counting)
    assert ends[-1] == len(text) == 2000
    assert decoded < 60 * len(ids)  # no window grows with the run


def test_specials_and_split_characters_by_hand() -> None:
    end = TINY.token_to_id("<|end|>")
    a, b = TINY.encode("a", add_special_tokens=False).ids, TINY.encode("b").ids
    face = TINY.encode("😀", add_special_tokens=False).ids
    assert len(face) == 4
    ends = check([*a, end, *face, *b, end], tiny)
    assert ends.tolist() == [1, 1, 1, 1, 1, 2, 3, 3]


def llama(ids: Sequence[int]) -> str:
    return LLAMA.decode(list(ids), skip_special_tokens=True)


def bert(ids: Sequence[int]) -> str:
    return BERT.decode(list(ids))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, LLAMA.get_vocab_size() - 1), max_size=25))
@example([3, 4, 6])  # "▁the a ▁b": the first space is dropped, the second is not
def test_a_tokenizer_that_drops_the_leading_space(ids: list[int]) -> None:
    check(ids, llama)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, BERT.get_vocab_size() - 1), max_size=25))
def test_a_decoder_that_rewrites_earlier_text(ids: list[int]) -> None:
    check(ids, bert)


@pytest.mark.parametrize("ids", [[], [TINY.token_to_id("<|end|>")]])
def test_nothing_written(ids: list[int]) -> None:
    assert check(ids, tiny).tolist() == [0] * len(ids)
