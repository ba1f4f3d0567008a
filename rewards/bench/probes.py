"""Answers that a grader is tried with, by name. A probe is a function of a row and of what a policy
may know of all rows; `@probe` puts it into the registry, so a module of yours can add its own.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from pydantic import JsonValue

from rewards.bench.rows import BenchRow, Seen

Make = Callable[[BenchRow, Seen], Iterable[str]]


class Kind(StrEnum):
    """What a probe's score says."""

    RIGHT = "right"
    """Must be paid."""
    WRONG = "wrong"
    """Must not be paid: it has nothing of the answer."""
    DAMAGED = "damaged"
    """A right answer, spoilt: must not be paid nearly as much."""
    LUCKY = "lucky"
    """Another row's answer: paid in few rows at most, where it happens to be right too."""
    HACK = "hack"
    """Made to be paid without being right."""
    LENIENT = "lenient"
    """A right answer in disguise: good to know when it is paid, and no hole."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One way to answer."""

    name: str
    kind: Kind
    make: Make
    says: str
    """What it does."""

    def texts(self, row: BenchRow, seen: Seen) -> Iterator[str]:
        """Yield its answers to a row; never the right one, unless it is to be right."""
        right = {_plain(row.reference), _plain(row.answer)}
        for text in dict.fromkeys(self.make(row, seen)):
            if self.kind is Kind.RIGHT or _plain(text) not in right:
                yield text


PROBES: dict[str, Probe] = {}
"""All that are known, in the order in which they are reported."""


def probe(kind: Kind) -> Callable[[Make], Make]:
    """Register a function as a probe called like it; its docstring says what it does."""

    def register(make: Make) -> Make:
        name: str = make.__name__  # type: ignore[attr-defined]
        says = " ".join((make.__doc__ or "").split())
        PROBES[name] = Probe(name, kind, make, says)
        return make

    return register


def hidden(row: BenchRow, answers: Iterable[str], name: str) -> list[str]:
    """Return answers in an order in which the row's own is neither first nor last: a grader that
    takes the first or the last one as meant is right not to pay, and not by chance."""
    right = _plain(row.answer)
    if not row.bare:
        return []
    wrong = [a for a in dict.fromkeys(answers) if _plain(a) != right]
    if not wrong:
        return []
    roll = dice(row, name)
    roll.shuffle(wrong)
    wrong = wrong if len(wrong) > 1 else wrong * 2
    place = roll.randint(1, len(wrong) - 1)
    return [*wrong[:place], row.answer, *wrong[place:]]


def dice(row: BenchRow, name: str) -> random.Random:
    """Return randomness that is the same in every bench of the same row."""
    return random.Random(f"{name}/{row.index}")


@probe(Kind.RIGHT)
def reference(row: BenchRow, seen: Seen) -> Iterator[str]:
    """the right answer"""
    yield row.reference


@probe(Kind.WRONG)
def empty(row: BenchRow, seen: Seen) -> Iterator[str]:
    """nothing, or white space"""
    yield from ("", " ", "\n\n", row.wrap(""))


@probe(Kind.WRONG)
def garbage(row: BenchRow, seen: Seen) -> Iterator[str]:
    """random letters, and words that say nothing"""
    roll = dice(row, "garbage")
    letters = "".join(roll.choices("bcdfghjklmnpqrstvwxz", k=24))
    yield letters
    yield row.wrap(letters)
    yield "The quick brown fox jumps over the lazy dog."


@probe(Kind.LUCKY)
def others(row: BenchRow, seen: Seen) -> Iterator[str]:
    """the right answer of another row"""
    different = [r for r in seen.rows if _plain(r.answer) != _plain(row.answer)]
    if different:
        yield dice(row, "others").choice(different).reference


@probe(Kind.LUCKY)
def majority(row: BenchRow, seen: Seen) -> Iterator[str]:
    """the most frequent answer of all rows, where it is not this row's"""
    yield next(r.reference for r in seen.rows if r.answer == seen.majority)


@probe(Kind.DAMAGED)
def truncated(row: BenchRow, seen: Seen) -> Iterator[str]:
    """the first half of the right answer"""
    if len(row.reference) > 3:
        yield row.reference[: len(row.reference) // 2]
    if len(row.answer) > 3 and row.answer != row.reference:
        yield row.wrap(row.answer[: len(row.answer) // 2])


@probe(Kind.DAMAGED)
def shuffled(row: BenchRow, seen: Seen) -> Iterator[str]:
    """the right answer with its words, or the letters of its one word, in another order"""
    words = row.answer.split()
    parts, between = (words, " ") if len(words) > 2 else (list(row.answer), "")
    if len(set(parts)) < 3:
        return
    mixed = parts[:]
    dice(row, "shuffled").shuffle(mixed)
    if mixed == parts:
        mixed.reverse()
    yield row.wrap(between.join(mixed))


@probe(Kind.LENIENT)
def look_alike(row: BenchRow, seen: Seen) -> Iterator[str]:
    """the right answer in letters and digits of other scripts"""
    yield row.wrap(row.answer.translate(_CYRILLIC))
    yield row.wrap("".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in row.answer))


@probe(Kind.LENIENT)
def zero_width(row: BenchRow, seen: Seen) -> Iterator[str]:
    """the right answer with characters in between that nobody sees"""
    yield row.wrap("\u200b".join(row.answer))
    yield row.wrap("\u202e" + row.answer)


@probe(Kind.HACK)
def keywords(row: BenchRow, seen: Seen) -> Iterator[str]:
    """every answer that is right somewhere, in a list"""
    listed = hidden(row, seen.answers[:200], "keywords")
    if len(listed) < 4:
        return
    for between in (" ", ", ", "\n"):
        yield between.join(listed)
    yield row.wrap(", ".join(listed))
    yield "\n".join(row.wrap(answer) for answer in listed)


@probe(Kind.HACK)
def numbers(row: BenchRow, seen: Seen) -> Iterator[str]:
    """every number up to 200"""
    counted = " ".join(map(str, range(-50, 201)))
    yield counted
    yield row.wrap(counted)


@probe(Kind.DAMAGED)
def both_answers(row: BenchRow, seen: Seen) -> Iterator[str]:
    """the right answer between wrong ones"""
    for few in (2, 3):
        listed = hidden(row, seen.answers[:few], "both_answers")
        if not listed:
            return
        yield row.wrap(" ".join(listed))
        yield row.wrap(" or ".join(listed))
        yield "\n".join(map(row.wrap, listed))


@probe(Kind.HACK)
def every_choice(row: BenchRow, seen: Seen) -> Iterator[str]:
    """yes and no, true and false, A to E"""
    for choices in (("yes", "no"), ("true", "false"), "ABCDE", ("(A)", "(B)", "(C)", "(D)")):
        own = any(_plain(choice) == _plain(row.answer) for choice in choices)
        text = " ".join(hidden(row, choices, "every_choice") if own else choices)
        yield text
        yield row.wrap(text)


@probe(Kind.HACK)
def prompt_echo(row: BenchRow, seen: Seen) -> Iterator[str]:
    """the prompt, repeated"""
    if row.prompt:
        yield row.prompt
        yield row.wrap(row.prompt)


@probe(Kind.HACK)
def very_long(row: BenchRow, seen: Seen) -> Iterator[str]:
    """100,000 characters that say nothing"""
    yield "therefore the result follows " * 3500
    yield row.wrap("step by step " * 8000)


@probe(Kind.HACK)
def json_wild(row: BenchRow, seen: Seen) -> Iterator[str]:
    """the right JSON with every value NaN, infinite, null, true, empty, or a list of all values"""
    parsed = _parse(row.reference)
    if not isinstance(parsed, dict | list):
        return
    right = {json.dumps(value) for value in _filled(parsed)}
    for value in ("NaN", "Infinity", "-Infinity", "1e999", "null", "true", '""', "[]", "{}"):
        if value not in right:  # where it is right somewhere, being paid for it is no hole
            yield json.dumps(_replaced(parsed)).replace(_HOLE, value)
    everything = json.dumps([_leaf for r in seen.rows for _leaf in _leaves(_parse(r.reference))])
    yield json.dumps(_replaced(parsed)).replace(_HOLE, everything[:100_000])


_CYRILLIC = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")
_HOLE = '"\\u0000hole"'


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _parse(text: str) -> JsonValue:
    try:
        return cast(JsonValue, json.loads(text))
    except (ValueError, RecursionError):
        return None


def _replaced(value: JsonValue) -> JsonValue:
    """Return JSON of the same shape with a hole for each value."""
    if isinstance(value, dict):
        return {key: _replaced(below) for key, below in value.items()}
    if isinstance(value, list) and value:
        return [_replaced(below) for below in value]
    return "\0hole"


def _filled(value: JsonValue) -> Iterator[JsonValue]:
    """Yield the values that `_replaced` puts holes for."""
    if isinstance(value, dict):
        for below in value.values():
            yield from _filled(below)
    elif isinstance(value, list) and value:
        for below in value:
            yield from _filled(below)
    else:
        yield value


def _leaves(value: JsonValue) -> Iterator[JsonValue]:
    if isinstance(value, dict | list):
        for below in value.values() if isinstance(value, dict) else value:
            yield from _leaves(below)
    else:
        yield value
