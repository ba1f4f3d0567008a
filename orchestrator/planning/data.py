"""What the sources' data are, as far as it shows in a second: sizes, longest prompts, overlap.

Files up to a bounded size are read; what is procedural is not made, as that takes seconds.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from configs.data_files import find_files
from configs.errors import ConfigError, Problem
from configs.model_files import find_model_folder
from configs.schema import RunConfig, SourceConfig
from mixing.sources.decontaminate import decontaminate
from mixing.sources.opening import open_source
from mixing.sources.search_cache import find_once
from mixing.sources.source import Source
from rewards.rows import check_rows
from rollouts.types import Message, Task

READ_BYTES = 4 * 2**20
"""Most of data files, together, that a plan reads."""
PROMPTS_SEEN = 10_000
"""Most training prompts of a source that a plan looks at, spread over it."""
ROWS_GRADED = 2000
"""Most training rows of a source that are looked through for what its graders ask of them."""
_TOKENIZED = 8
"""Prompts with most characters whose tokens are counted."""
_CHARS_A_TOKEN = 4

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """One source's data."""

    name: str
    items: int | None
    """Training items of an epoch; None where the data were not read, as is `held_out`."""
    held_out: int | None
    prompts_seen: int
    """Training and held-out prompts that the next two are the largest of."""
    longest_chars: int | None
    longest_tokens: int | None
    """Without what the chat template adds."""
    tokens_counted: bool
    """By the model's tokenizer.json; else a fourth of the characters."""
    max_tokens: int
    """Of a completion."""
    max_model_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataLook:
    """What looking at the data gave."""

    data: tuple[DataPlan, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def look_at_data(cfg: RunConfig, items: Mapping[str, int | None], *, sound: bool) -> DataLook:
    """Read the small sources and say what they hold.

    Args:
        items: training items of each source, where they were counted.
        sound: whether the recipe has no problem so far; nothing is read of one that has.
    """
    opened = _open_small(cfg) if sound else {}
    counted = _token_counter(cfg) if opened else None
    count = counted or (lambda text: -(-len(text) // _CHARS_A_TOKEN))
    data = tuple(
        _describe(cfg, s, items[s.name], opened.get(s.name), count, counted) for s in cfg.sources
    )
    too_long = [p for d in data for p in _check_room(d)]
    overlap, told = _check_overlap(cfg, opened)
    return DataLook(
        data=data,
        problems=(*(too_long if counted else ()), *overlap, *check_graded_rows(cfg, opened)),
        warnings=(*(() if counted else too_long), *told),
    )


def _open_small(cfg: RunConfig) -> dict[str, Source]:
    opened: dict[str, Source] = {}
    left = READ_BYTES
    for source in cfg.sources:
        files = find_files([*(source.data.jsonl or ()), *(source.data.parquet or ())])
        size = sum(f.stat().st_size for f in files)
        if files and size <= left:
            left -= size
            opened[source.name] = open_source(source)
    return opened


def _describe(
    cfg: RunConfig,
    source: SourceConfig,
    items: int | None,
    opened: Source | None,
    count: Count,
    counted: Count | None,
) -> DataPlan:
    procedural = source.data.procedural is not None
    held_out = source.data.held_out if procedural else len(opened.held_out()) if opened else None
    tasks = list(_spread(opened)) if opened else []
    longest = heapq.nlargest(_TOKENIZED, tasks, key=lambda t: _chars(t.prompt))
    return DataPlan(
        name=source.name,
        items=items,
        held_out=held_out,
        prompts_seen=len(tasks),
        longest_chars=_chars(longest[0].prompt) if longest else None,
        longest_tokens=max((_tokens(t.prompt, count) for t in longest), default=None),
        tokens_counted=counted is not None,
        max_tokens=source.sampling.max_tokens,
        max_model_len=cfg.model.max_model_len,
    )


def _spread(source: Source, most: int = PROMPTS_SEEN) -> Iterator[Task]:
    """Yield the held-out items, and training items spread over the source."""
    seen = min(source.size, most)
    return chain(source.held_out(), (source.task(k * source.size // seen) for k in range(seen)))


def check_graded_rows(cfg: RunConfig, opened: Mapping[str, Source]) -> list[Problem]:
    """Return what the graders cannot find in the opened sources' rows: in all of them, or in so
    many of a large source."""
    rows = {name: _spread(source, ROWS_GRADED) for name, source in opened.items()}
    return check_rows(cfg.sources, rows)


def _chars(prompt: Sequence[Message]) -> int:
    return sum(len(m.content) for m in prompt)


def _tokens(prompt: Sequence[Message], count: Count) -> int:
    return sum(count(m.content) for m in prompt)


def _token_counter(cfg: RunConfig) -> Count | None:
    """Return what counts a text's tokens, by the model's tokenizer.json; None without one."""
    folder = find_model_folder(cfg.model.path)
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    try:
        from tokenizers import Tokenizer  # a shared library of 3 MB: 20 ms

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # noqa: BLE001 - it raises bare Exception for a file it cannot read
        return None
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _check_room(d: DataPlan) -> Iterator[Problem]:
    if d.longest_tokens is None or d.longest_tokens + d.max_tokens <= d.max_model_len:
        return
    tokens = (
        f"{d.longest_tokens:,} tokens or more"
        if d.tokens_counted
        else f"about {d.longest_tokens:,} tokens (at {_CHARS_A_TOKEN} characters each)"
    )
    yield Problem(
        where=f"sources.{d.name}.sampling.max_tokens",
        what=f"is {d.max_tokens:,}, and the longest prompt has {tokens}: together more than "
        f"model.max_model_len={d.max_model_len:,}, so its completions would be cut short",
        fix="Lower it, leave out the longest prompts, or raise model.max_model_len.",
    )


def _check_overlap(
    cfg: RunConfig, opened: Mapping[str, Source]
) -> tuple[list[Problem], list[Problem]]:
    """Return problems and warnings of decontamination, as far as the opened sources go."""
    if sum(s.size for s in opened.values()) > PROMPTS_SEEN:
        return [], []
    try:
        _, found = decontaminate(cfg, opened, find_once)
    except ConfigError as error:
        return list(error.problems), []
    return [], found.problems(cfg.decontaminate)
