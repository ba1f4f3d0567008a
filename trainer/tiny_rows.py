"""Rows to learn from for the tiny model: `python -m trainer.tiny_rows FOLDER`.

Writes `right_answers.jsonl`, questions of the quickstart's three kinds with their right answers,
and `preferences.jsonl`, others with a right and a spoilt one. No held-out question of the
quickstart is among them.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from pydantic import JsonValue

from configs.load import load_recipe
from trainer.tiny_model import RECIPE
from trainer.tiny_text import Care, held_out_items, lessons, spoil

ROWS = 400
SEED = 20
"""Unlike the seeds of the model's own text."""


def right_answers(count: int = ROWS, seed: int = SEED) -> list[dict[str, JsonValue]]:
    """Return conversations of one question and its right answer."""
    return [
        {"messages": [_said("user", question), _said("assistant", answer)]}
        for question, answer in islice(_different(seed), count)
    ]


def preferences(count: int = ROWS, seed: int = SEED + 1) -> list[dict[str, JsonValue]]:
    """Return questions with a right answer and one that is spoilt, as careless lessons are."""
    rng, care = random.Random(seed), Care(slip=0.7, wordy=0.4)
    rows: list[dict[str, JsonValue]] = []
    for question, answer in _different(seed):
        worse = spoil(answer, care, rng)
        if worse != answer:
            rows.append({"prompt": question, "chosen": answer, "rejected": worse})
        if len(rows) == count:
            break
    return rows


def _different(seed: int) -> Iterator[tuple[str, str]]:
    """Yield questions, each once, with their right answers."""
    sources = load_recipe(RECIPE).sources
    seen = {str(item["question"]) for s in sources for item in held_out_items(s.data)}
    for lesson in lessons(seed, Care(), frozenset(seen)):
        if lesson.question not in seen:
            seen.add(lesson.question)
            yield lesson.question, lesson.answer


def _said(role: str, content: str) -> JsonValue:
    return {"role": role, "content": content}


def write(path: Path, rows: Sequence[dict[str, JsonValue]]) -> None:
    """Write one row a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main() -> None:
    """Read the command line and write both files."""
    parser = argparse.ArgumentParser(prog="trainer.tiny_rows", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder to write to")
    folder: Path = parser.parse_args().folder
    write(folder / "right_answers.jsonl", right_answers())
    write(folder / "preferences.jsonl", preferences())


if __name__ == "__main__":
    main()
