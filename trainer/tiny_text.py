"""Procedural text for the tiny model: three kinds of questions, and answers spoilt on purpose.

A policy that already answers well has nothing left to learn, and one that cannot answer at all
gets no reward to learn from. So the last part of the text is careless: some of its answers are
wrong in one character, and some are wrapped in words that the graders do not accept. The model
ends up knowing the right answer and often saying something else, which is what reinforcement
learning can repair within minutes.
"""

import hashlib
import random
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from string import ascii_lowercase, digits

from pydantic import JsonValue

from configs.data import DataConfig
from trainer.sft import Lesson

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)  # of a package that it needs
    import reasoning_gym
    from reasoning_gym.data import read_data_file

SUMS: Mapping[str, JsonValue] = {
    "min_terms": 3,
    "max_terms": 3,
    "min_digits": 1,
    "max_digits": 1,
}
FILTERS: Mapping[str, JsonValue] = {
    "min_numbers": 3,
    "max_numbers": 4,
    "max_decimals": 0,
    "min_value": 0.0,
    "max_value": 9.0,
}
"""Settings of the two datasets that the text is drawn from; the quickstart recipe has the same."""
CHAIN_SUM = "State the final answer to the following arithmetic problem: "
SPELL = "Spell this word backward (example: sun -> nus): "
CAPITALISED = 0.15
"""Share of strings to spell that begin with a capital, about as many as in the word list."""
WORDY = "The answer is "
"""What a careless answer may begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Care:
    """How careful the answers of the text are."""

    slip: float = 0.0
    """Share of answers with one character replaced by another of its kind."""
    wordy: float = 0.0
    """Share of answers that begin with `WORDY`."""


def spoil(answer: str, care: Care, rng: random.Random) -> str:
    """Return the answer, made wrong in one letter or digit, or wordy, as often as `care` says."""
    places = [i for i, c in enumerate(answer) if c in digits or c in ascii_lowercase]
    if places and rng.random() < care.slip:
        place = rng.choice(places)
        kind = digits if answer[place] in digits else ascii_lowercase
        other = rng.choice([c for c in kind if c != answer[place]])
        answer = answer[:place] + other + answer[place + 1 :]
    return WORDY + answer if rng.random() < care.wordy else answer


def sums(seed: int) -> Iterator[Lesson]:
    """Yield sums and differences of three digits."""
    yield from _drawn("chain_sum", seed, SUMS)


def filters(seed: int) -> Iterator[Lesson]:
    """Yield lists of three or four digits of which some are to be kept or removed."""
    yield from _drawn("number_filtering", seed, FILTERS)


def spellings(seed: int) -> Iterator[Lesson]:
    """Yield strings of 3 to 5 letters to reverse, none of them a word of reasoning_gym's list."""
    rng = random.Random(seed)
    words = _words()
    while True:
        letters = "".join(rng.choices(ascii_lowercase, k=rng.randint(3, 5)))
        if rng.random() < CAPITALISED:
            letters = letters.capitalize()
        if letters.lower() not in words:
            yield Lesson(question=SPELL + letters, answer=letters[::-1])


def lessons(seed: int, care: Care, banned: Collection[str] = ()) -> Iterator[Lesson]:
    """Yield an endless mix of the three kinds, fewer of the easy spellings than of the others.

    Questions in `banned` never occur.
    """
    rng = random.Random(seed)
    hard = [sums(rng.getrandbits(31)), filters(rng.getrandbits(31))]
    turns = [*hard, *hard, spellings(rng.getrandbits(31))]
    while True:
        for stream in turns:
            lesson = next(item for item in stream if item.question not in banned)
            yield Lesson(question=lesson.question, answer=spoil(lesson.answer, care, rng))


def held_out_items(data: DataConfig) -> list[dict[str, JsonValue]]:
    """Return the items that a run on `data` evaluates with, so that no lesson is one of them.

    The rule is that of `mixing.sources.procedural`, which the trainer may not import; a test
    compares.
    """
    name = str(data.procedural).removeprefix("reasoning_gym/")
    stream = hashlib.sha256(f"{data.seed}/held-out".encode()).hexdigest()[:16]
    seed = int(stream, 16) % 2**31
    dataset = reasoning_gym.create_dataset(name, seed=seed, size=1, **data.args)
    items: dict[str, dict[str, JsonValue]] = {}
    for index in range(20 * data.held_out + 200):
        if len(items) == data.held_out:
            break
        items.setdefault(dataset[index]["question"], dataset[index])
    return list(items.values())


def _drawn(name: str, seed: int, settings: Mapping[str, JsonValue]) -> Iterator[Lesson]:
    data = reasoning_gym.create_dataset(name, seed=seed, size=1, **settings)
    index = 0
    while True:
        item = data[index]
        yield Lesson(question=item["question"], answer=item["answer"])
        index += 1


@cache
def _words() -> frozenset[str]:
    return frozenset(read_data_file("words3to10.txt").lower().split())
