"""Which characters of a decoded text each token wrote, found with the tokenizer's decoder alone."""

from collections.abc import Callable, Sequence

import numpy as np

from rollouts.types import I32

_LOOK_BACK = 4
"""Tokens before the new ones that a window decodes again, so that a decoder which treats the
start of a text in its own way does so outside of what is compared."""
_INCOMPLETE = "\ufffd"
_LONGEST = 4
"""Bytes of the longest character, and so the tokens that it can be split over."""


def token_ends(ids: Sequence[int], text: str, decode: Callable[[Sequence[int]], str]) -> I32:
    """Return, for each token, how many characters of `text` stand once it is there [C].

    A token that writes nothing (a special one) ends where the one before it does; a character
    split over several tokens belongs to the last of them. The ends never fall, and the last one is
    `len(text)`.

    Args:
        text: `decode(ids)`.
        decode: may decode special tokens to nothing; a decoder that rewrites earlier text as more
            comes (spaces before punctuation) is followed by decoding whole prefixes.
    """
    ends = _by_windows(ids, text, decode)
    if ends is None:
        ends = _by_prefixes(ids, text, decode)
    if len(ends):
        ends[-1] = len(text)
    return ends


def _by_windows(
    ids: Sequence[int], text: str, decode: Callable[[Sequence[int]], str]
) -> I32 | None:
    """Add up what tokens add to a short window; None where that does not come to `text`."""
    ends = np.zeros(len(ids), np.int32)
    done = written = 0  # tokens whose characters stand, and how many characters that is
    before = ""
    for i in range(len(ids)):
        start = max(0, done - _LOOK_BACK)
        whole = i + 1  # tokens that end with a whole character
        now = decode(ids[start:whole])
        if now.endswith(_INCOMPLETE) and whole < len(ids):
            # nothing that far back can still be waiting for bytes: it is broken in the text too
            whole = whole - _LONGEST if whole - done > 2 * _LONGEST else done
            now = decode(ids[start:whole])
        piece = now[len(before) :]
        if not now.startswith(before) or text[written : written + len(piece)] != piece:
            return None
        written += len(piece)
        if whole > done:
            done = whole
            before = decode(ids[max(0, done - _LOOK_BACK) : done])
        ends[i] = written
    return ends if written == len(text) else None


def _by_prefixes(ids: Sequence[int], text: str, decode: Callable[[Sequence[int]], str]) -> I32:
    """Compare `text` with each prefix decoded: exact for any decoder, and quadratic."""
    ends = np.zeros(len(ids), np.int32)
    for i in range(len(ids)):
        prefix = decode(ids[: i + 1])
        ends[i] = _common(prefix, text)
    return np.maximum.accumulate(ends) if len(ends) else ends


def _common(a: str, b: str) -> int:
    """Return the length of the longest common prefix."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    return next(i for i in range(size) if a[i] != b[i])
