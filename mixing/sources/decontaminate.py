"""Training prompts that evaluation asks too: found by the n-grams of words that they share.

Only the held-out side is kept, as 64-bit hashes; training prompts stream by. The overlap of a
pair is the share of the held-out prompt's n-grams that the one training prompt has too. What many
held-out prompts of a source have in common is the words of its template and counts for no pair,
so that two items made from one template do not look alike.
"""

import re
import unicodedata
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from configs.errors import ConfigError, Problem
from configs.schema import DecontaminateConfig, RunConfig
from mixing.sources.source import Source, digest
from rollouts.types import Message, Task

TEMPLATE_PROMPTS = 10
"""An n-gram in more held-out prompts of a source than this, or in more than half of them, is of
the source's template (GPT-3, arXiv:2005.14165, passes over 13-grams seen over ten times)."""
_SHOWN = 5
"""Matches that a message names, of each source."""
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
"""Scripts that write no spaces: each of their characters is a word."""
_SIGNS = r"\-+*/=<>^%&|~"
_PUNCTUATION = "\u00a0-\u00b0\u00b2-\u00bf\u2000-\u206f\u3000-\u303f\ufe00-\ufe6f\uff00-\uffef"
_WORD = re.compile(
    rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s\x00-\x7f{_PUNCTUATION}]"
    rf"|(?<![{_SIGNS}])[{_SIGNS}](?![{_SIGNS}])"
)
_EDGES = " \n.,;:?\"'`*_#"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One training item that asks what one held-out item asks."""

    source: str
    """Of the training item."""
    item: int
    """Its number in that source, before anything is dropped."""
    task_id: str
    """Of the training item."""
    held_out_source: str
    held_out_id: str
    """Task id of the held-out item."""
    overlap: float
    """Share of the held-out prompt's n-grams; 1 where the whole prompts are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contamination:
    """What a search found."""

    searched: Mapping[str, int]
    """Training items looked at, by source; a source that was not searched is not there."""
    held_out: int
    """Held-out prompts that they were compared with."""
    matches: tuple[Match, ...]
    """Per training item the held-out item with which it overlaps most."""

    def problems(self, cfg: DecontaminateConfig) -> list[Problem]:
        """Return one problem for each source with matches: how many, and which."""
        by_source: dict[str, list[Match]] = {}
        for match in self.matches:
            by_source.setdefault(match.source, []).append(match)
        dropped = cfg.action == "drop"
        return [
            Problem(
                where=f"sources.{source}.data",
                what=f"{len(found):,} of {self.searched[source]:,} training prompts ask what "
                f"evaluation asks (over {cfg.max_overlap:.0%} of a held-out prompt's "
                f"{cfg.ngram}-grams, or all of its text): "
                + ", ".join(_shown(m) for m in found[:_SHOWN])
                + (f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else "")
                + ("; they are not trained on" if dropped else ""),
                fix=""
                if dropped
                else "Remove them; or set decontaminate.action to drop, to train "
                "without them, or to warn.",
            )
            for source, found in by_source.items()
        ]


NOT_SEARCHED = Contamination(searched={}, held_out=0, matches=())


def _shown(match: Match) -> str:
    return f"{match.task_id} = {match.held_out_id} ({match.overlap:.0%})"


def asked_text(prompt: Sequence[Message]) -> str:
    """Return what a prompt asks: its text in one case, one Unicode form (NFKC) and single spaces.

    System messages are left out, unless there is nothing else: a source puts the same one before
    all its prompts.
    """
    asked = [m.content for m in prompt if m.role != "system"] or [m.content for m in prompt]
    text = "\n".join(asked)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """Return the words of an asked text: letters and digits; signs and symbols that stand alone,
    as `4 - 1` is not `4 + 1`; no punctuation."""
    return _WORD.findall(text)


class HeldOutIndex:
    """The held-out prompts of all sources, by the hashes of their n-grams.

    Hashes are Python's own, of 64 bits: they differ from process to process, what is found with
    them does not.
    """

    def __init__(self, held_out: Mapping[str, Iterable[Task]], cfg: DecontaminateConfig):
        self._n, self._max_overlap = cfg.ngram, cfg.max_overlap
        self._seed = max(1, self._n // 3)
        """Words of a seed. Any n words in a row hold exactly one seed that starts at a multiple of
        n - seed + 1, so only n-grams around a known one need to be looked up."""
        self._tasks: list[tuple[str, str]] = []
        """(source, task id) of each held-out prompt; the first of those that ask the same."""
        self._whole: dict[int, int] = {}
        self._grams: dict[int, tuple[int, ...]] = {}
        self._sizes: dict[int, int] = {}
        self._seeds: set[int] = set()
        for source, tasks in held_out.items():
            self._add(source, tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def _add(self, source: str, tasks: Iterable[Task]) -> None:
        own: dict[int, set[int]] = {}
        """Distinct n-grams of each new prompt of the source."""
        for task in tasks:
            text = asked_text(task.prompt)
            whole = _hash_whole(text)
            if whole in self._whole:
                continue
            self._whole[whole] = number = len(self._tasks)
            self._tasks.append((source, task.task_id))
            asked = words(text)
            own[number] = set(_windows(asked, self._n))
            if own[number]:
                self._seeds.update(_windows(asked, self._seed))
        spread = Counter(gram for grams in own.values() for gram in grams)
        most = max(1.0, min(TEMPLATE_PROMPTS, len(own) / 2))
        for number, grams in own.items():
            alone = (number,)
            telling = [gram for gram in grams if spread[gram] <= most]
            self._sizes[number] = len(telling)
            for gram in telling:
                others = self._grams.get(gram)
                self._grams[gram] = alone if others is None else others + alone

    def closest(self, prompt: Sequence[Message]) -> tuple[str, str, float] | None:
        """Return source, task id and overlap of the held-out prompt that overlaps most with this
        one, beyond what is allowed; None if there is none."""
        text = asked_text(prompt)
        same = self._whole.get(_hash_whole(text))
        if same is not None:
            return *self._tasks[same], 1.0
        shared: Counter[int] = Counter()
        for gram in set(self._may_be_known(words(text))):
            shared.update(self._grams.get(gram, ()))
        best = min(shared, key=lambda k: (-shared[k] / self._sizes[k], k), default=None)
        if best is None or shared[best] / self._sizes[best] <= self._max_overlap:
            return None
        return *self._tasks[best], shared[best] / self._sizes[best]

    def _may_be_known(self, asked: Sequence[str]) -> Iterator[int]:
        """Yield the hashes of the n-grams whose one seed at a multiple of the stride is known."""
        n, seed = self._n, self._seed
        stride = n - seed + 1
        for at in range(0, len(asked) - seed + 1, stride):
            if hash(tuple(asked[at : at + seed])) in self._seeds:
                yield from _windows(asked[max(0, at - stride + 1) : at + n], n)


def _windows(asked: Sequence[str], length: int) -> Iterator[int]:
    """Yield the hashes of `length` words in a row."""
    return (hash(tuple(asked[at : at + length])) for at in range(len(asked) - length + 1))


def _hash_whole(text: str) -> int:
    """Hash a whole asked text; a full stop or quotes around it make no difference."""
    return hash(text.strip(_EDGES) or text)


class ThinnedSource:
    """A source without some of its training items; the others keep their order and their ids."""

    def __init__(self, source: Source, dropped: Iterable[int]):
        self._source = source
        self._dropped = sorted(set(dropped))
        self._kept_before = array("q", (d - k for k, d in enumerate(self._dropped)))
        """How many items are kept before each dropped one."""

    @property
    def size(self) -> int:
        """Training items of an epoch."""
        return self._source.size - len(self._dropped)

    @property
    def fingerprint(self) -> str:
        """Hash of the source and of what was dropped."""
        return digest(f"{self._source.fingerprint}/{self._dropped}")

    def task(self, item: int) -> Task:
        """Return training item `item` of those kept."""
        if not 0 <= item < self.size:
            raise IndexError(f"no item {item}; {self.size} are left")
        return self._source.task(item + bisect_right(self._kept_before, item))

    def offline_rates(self) -> NDArray[np.float64] | None:
        """Return the pass rates of the items kept, where the source has some."""
        rates = self._source.offline_rates()
        return None if rates is None else np.delete(rates, self._dropped)

    def held_out(self) -> tuple[Task, ...]:
        """Return the evaluation items."""
        return self._source.held_out()


def find_contamination(cfg: RunConfig, sources: Mapping[str, Source]) -> Contamination:
    """Compare the training prompts of all sources with the held-out prompts of all sources."""
    searched = searched_sources(cfg, sources)
    if not searched:
        return NOT_SEARCHED
    held_out = {name: source.held_out() for name, source in sources.items()}
    index = HeldOutIndex(held_out, cfg.decontaminate)
    matches: list[Match] = []
    for name in searched:
        source = sources[name]
        for item in range(source.size):
            task = source.task(item)
            closest = index.closest(task.prompt)
            if closest is not None:
                matches.append(
                    Match(
                        source=name,
                        item=item,
                        task_id=task.task_id,
                        held_out_source=closest[0],
                        held_out_id=closest[1],
                        overlap=closest[2],
                    )
                )
    return Contamination(
        searched={name: sources[name].size for name in searched},
        held_out=len(index),
        matches=tuple(matches),
    )


Search: TypeAlias = Callable[[RunConfig, Mapping[str, Source]], Contamination]


def searched_sources(cfg: RunConfig, sources: Iterable[str]) -> list[str]:
    """Return the sources whose training prompts are looked at."""
    how = cfg.decontaminate
    if how.action == "off":
        return []
    return [n for n in sources if how.procedural or cfg.source(n).data.procedural is None]


def decontaminate(
    cfg: RunConfig, sources: Mapping[str, Source], search: Search = find_contamination
) -> tuple[dict[str, Source], Contamination]:
    """Return the sources to train on, and what was found in them.

    Args:
        search: `find_contamination`, or what returns the same from a cache.

    Raises:
        ConfigError: `refuse`, and something was found; or `drop` would leave a source empty.
    """
    found = search(cfg, sources)
    how = cfg.decontaminate
    if how.action == "refuse" and found.matches:
        raise ConfigError(found.problems(how))
    if how.action != "drop" or not found.matches:
        return dict(sources), found
    thinned = dict(sources)
    problems: list[Problem] = []
    for name in dict.fromkeys(m.source for m in found.matches):
        dropped = {m.item for m in found.matches if m.source == name}
        thinned[name] = ThinnedSource(sources[name], dropped)
        if len(dropped) == sources[name].size:
            problems.append(
                Problem(
                    where=f"sources.{name}.data",
                    what=f"all of its {len(dropped):,} training prompts are asked by evaluation "
                    "too, so decontaminate.action=drop leaves none",
                    fix="Give it other data, or hold other items out.",
                )
            )
    if problems:
        raise ConfigError(problems)
    return thinned, found
