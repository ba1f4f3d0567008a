"""How alike two texts are, 0 to 1, by the metrics that RFT graders name.

All run without network and data files; docs/graders.md says where one differs from its namesake
elsewhere: `cosine` is of word counts and not of embeddings, `meteor` has no synonyms.
"""

import functools
import importlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from rewards.score import FailureKind, GradeFailed

_WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|\w+")
_TOKEN = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|\w+|[^\w\s]")
_ORDER = 4
"""Longest n-grams of BLEU and GLEU."""


def similarity(metric: str, text: str, reference: str) -> float:
    """Return how alike a text is to the reference.

    An empty reference is matched by an empty text alone.

    Raises:
        GradeFailed: the reference is too short for the metric, whatever the text.
    """
    if not reference.strip():
        return float(not text.strip())
    return min(1.0, max(0.0, _METRICS[metric](text, reference)))


def _words(text: str) -> list[str]:
    """Words in lower case; each Chinese or Japanese character is one."""
    return _WORD.findall(text.lower())


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _fuzzy(text: str, reference: str) -> float:
    from rapidfuzz import fuzz

    return fuzz.ratio(text, reference) / 100


def _bleu(text: str, reference: str) -> float:
    """Sentence BLEU of order 4, or of the shorter text's length; an order without a match counts
    as half a match, then a fourth, ... (Chen and Cherry 2014, method 3)."""
    given, true = _TOKEN.findall(text), _TOKEN.findall(reference)
    order = min(_ORDER, len(given), len(true))
    if order == 0 or not _overlap(given, true, 1):
        return 0.0
    logs, halvings = 0.0, 0
    for n in range(1, order + 1):
        matched = float(_overlap(given, true, n))
        if not matched:
            halvings += 1
            matched = 0.5**halvings
        logs += math.log(matched / (len(given) - n + 1))
    brevity = min(0.0, 1 - len(true) / len(given))
    return math.exp(brevity + logs / order)


def _gleu(text: str, reference: str) -> float:
    """The smaller of precision and recall of all n-grams up to 4 (arXiv:1609.08144)."""
    given, true = _TOKEN.findall(text), _TOKEN.findall(reference)
    matched = sum(_overlap(given, true, n) for n in range(1, _ORDER + 1))
    most = max(_count(given), _count(true))
    return matched / most if most else 0.0


def _count(tokens: Sequence[str]) -> int:
    return sum(max(0, len(tokens) - n + 1) for n in range(1, _ORDER + 1))


def _overlap(given: Sequence[str], true: Sequence[str], n: int) -> int:
    return (_ngrams(given, n) & _ngrams(true, n)).total()


def _meteor(text: str, reference: str) -> float:
    """METEOR with exact and stem matches (Porter), alpha 0.9, beta 3, gamma 0.5."""
    given, true = _words(text), _words(reference)
    pairs = _align(given, true)
    if not pairs:
        return 0.0
    precision, recall = len(pairs) / len(given), len(pairs) / len(true)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    chunks = 1 + sum((i + 1, j + 1) != after for (i, j), after in itertools.pairwise(pairs))
    return mean * (1 - 0.5 * (chunks / len(pairs)) ** 3)


def _align(given: Sequence[str], true: Sequence[str]) -> list[tuple[int, int]]:
    """Match words one to one: equal ones first, then those of one stem; each to the place that
    goes on from the match before it where it can."""
    found: dict[int, int] = {}
    for read in (str, _stem):
        free: dict[str, list[int]] = {}
        used = set(found.values())
        for j, word in enumerate(true):
            if j not in used:
                free.setdefault(read(word), []).append(j)
        for i, word in enumerate(given):
            places = free.get(read(word))
            if i in found or not places:
                continue
            follows = found.get(i - 1, -2) + 1
            found[i] = places.pop(places.index(follows) if follows in places else 0)
    return sorted(found.items())


@functools.cache
def _stemmer() -> Callable[[str], str]:
    library = importlib.import_module("snowballstemmer")
    return cast("Callable[[str], str]", library.stemmer("porter").stemWord)


def _stem(word: str) -> str:
    return _stemmer()(word)


def _cosine(text: str, reference: str) -> float:
    given, true = Counter(_words(text)), Counter(_words(reference))
    if not given or not true:
        return 0.0
    dot = sum(n * true[word] for word, n in given.items())
    return dot / (_norm(given) * _norm(true))


def _norm(counts: Counter[str]) -> float:
    return math.sqrt(sum(n * n for n in counts.values()))


def _rouge_n(text: str, reference: str, *, n: int) -> float:
    given, true = _ngrams(_words(text), n), _ngrams(_words(reference), n)
    if not true:
        why = f"rouge_{n} needs a reference of {n} words or more: {reference[:80]!r}"
        raise GradeFailed(FailureKind.OTHER, why)
    return 2 * (given & true).total() / (given.total() + true.total())


def _rouge_l(text: str, reference: str) -> float:
    from rapidfuzz.distance import LCSseq

    given, true = _words(text), _words(reference)
    if not true:
        raise GradeFailed(FailureKind.OTHER, f"rouge_l needs words: {reference[:80]!r}")
    return 2 * LCSseq.similarity(given, true) / (len(given) + len(true))


_METRICS: Mapping[str, Callable[[str, str], float]] = {
    "fuzzy_match": _fuzzy,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    "cosine": _cosine,
    **{f"rouge_{n}": functools.partial(_rouge_n, n=n) for n in range(1, 6)},
    "rouge_l": _rouge_l,
}
