"""What the monitors need of a text: few numbers and a hash, in time linear in its length.

No regular expression here can backtrack, as these run in the reward actor's event loop.
"""

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Mapping

from pydantic import JsonValue

from rollouts.types import Rollout, RolloutStatus, TextTraits

ANSWER_CHARS = 256
"""An answer is known by its last characters up to here."""
TAIL_BYTES = 1024
"""End of a text that must not compress to almost nothing."""
LOOPING = 0.2
"""Compressed size over size below which a tail loops; prose of TAIL_BYTES has about 0.5."""
_WORDS = 4096
_TAIL_CHARS = 8 * _WORDS
_NGRAM = 3
_WORD = re.compile(r"\w+")


def text_traits(rollout: Rollout) -> TextTraits | None:
    """Return the traits of the rollout's last text; None for a rollout without a completion."""
    if not rollout.turns:
        return None
    text = rollout.last_text
    ended = rollout.status is not RolloutStatus.TRUNCATED
    return TextTraits(
        answer=answer_hash(text),
        repeated=repeated_share(text),
        looping=is_looping(text),
        well_formed=ended and _is_clean(text),
    )


def answer_hash(text: str) -> int:
    """Return 64 bits of the hash of the answer that a text gives, white space and case apart."""
    answer = " ".join(find_answer(text).split()).casefold().rstrip(".")
    return int.from_bytes(
        hashlib.blake2b(answer.encode("utf-8", "replace"), digest_size=8).digest()
    )


def find_answer(text: str) -> str:
    r"""Return what a text gives as its answer: the last <answer> tag, else the last \boxed{...},
    else what follows the last ####, else its last line."""
    _, opened, rest = text.rpartition("<answer>")
    if opened:
        return rest.partition("</answer>")[0][-ANSWER_CHARS:]
    _, opened, rest = text.rpartition("\\boxed{")
    if opened:
        return _braced(rest)[-ANSWER_CHARS:]
    _, opened, rest = text.rpartition("####")
    if opened:
        return rest.strip().partition("\n")[0][-ANSWER_CHARS:]
    return text.rstrip().rpartition("\n")[2][-ANSWER_CHARS:]


def _braced(text: str) -> str:
    """Return a text up to the brace that closes one before it."""
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:place]
    return text


def repeated_share(text: str) -> float:
    """Return the share of word triples that came before in the text; 0 for fewer than two."""
    words = _WORD.findall(text[-_TAIL_CHARS:])[-_WORDS:]
    triples = len(words) - _NGRAM + 1
    if triples < 2:
        return 0.0
    return 1 - len(set(zip(words, words[1:], words[2:], strict=False))) / triples


def is_looping(text: str) -> bool:
    """Return whether the end of a text says the same again and again, in any script."""
    tail = text.encode("utf-8", "replace")[-TAIL_BYTES:]
    return len(tail) >= TAIL_BYTES // 4 and len(zlib.compress(tail, 1)) < LOOPING * len(tail)


def _is_clean(text: str) -> bool:
    """Return whether a text has something, and no broken, private or control characters."""
    if text.isascii() and text.isprintable():
        return bool(text.strip())
    odd = (c for c in set(text) if c not in "\n\r\t" and not c.isprintable())
    broken = "\ufffd" in text or any(unicodedata.category(c) in ("Cc", "Co", "Cn") for c in odd)
    return bool(text.strip()) and not broken


def count_noted(notes: Mapping[str, JsonValue], name: str) -> int:
    """Return what graders counted under `name`, at any depth of their notes."""
    return sum(_counted(value, name, at) for at, value in notes.items())


def _counted(value: JsonValue, name: str, at: str) -> int:
    if isinstance(value, Mapping):
        return count_noted(value, name)
    if at != name:
        return sum(_counted(v, name, "") for v in value) if isinstance(value, list) else 0
    if isinstance(value, list):
        return len(value)
    return int(value) if isinstance(value, int | float) else int(bool(value))


def in_slice(key: str, fraction: float) -> bool:
    """Return whether a rollout is of the slice; the same key always is, or never."""
    drawn = int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest())
    return drawn < fraction * 2**64
