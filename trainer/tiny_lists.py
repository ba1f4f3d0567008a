"""Lists to filter, answered in JSON: the lessons, rows and model of the extraction recipe.

`python -m trainer.tiny_lists OUT --seed 0` teaches the quickstart's tiny model, which knows how to
filter such lists, to say what it found as JSON. The rows of `configs/recipes/data/lists*.jsonl`
are drawn from the same questions and are never taught. As in `trainer.tiny_text`, answers of the
last lessons are careless: the model ends up often writing a wrong letter, digit or key, or words
around the JSON, and can be taught not to.
"""

import json
import random
from collections.abc import Collection, Iterator

from pydantic import JsonValue

from trainer.sft import Lesson, SftSettings
from trainer.tiny_course import Course
from trainer.tiny_model import read_arguments
from trainer.tiny_text import Care, filters, spoil

PLAIN = "\nReturn the new list in the same format."
"""How the quickstart's questions end."""
AS_JSON = "\nAs JSON."
ROWS, HELD_OUT = 40, 40


def questions(seed: int) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    """Yield questions and what is to be found, without end."""
    for lesson in filters(seed):
        kept: JsonValue = [int(n) for n in json.loads(lesson.answer.replace("'", '"'))]
        question = lesson.question.removesuffix(PLAIN) + AS_JSON
        yield question, {"kept": kept, "count": len(kept)}


def lessons(seed: int, care: Care, banned: Collection[str] = ()) -> Iterator[Lesson]:
    """Yield questions and their JSON; those in `banned` never occur."""
    rng = random.Random(seed)
    for question, truth in questions(rng.getrandbits(31)):
        if question not in banned:
            answer = json.dumps(truth, separators=(",", ":"))
            yield Lesson(question=question, answer=spoil(answer, care, rng))


def rows(seed: int = 0) -> tuple[list[dict[str, JsonValue]], list[dict[str, JsonValue]]]:
    """Return the recipe's training and held-out rows: all of different questions."""
    found: dict[str, dict[str, JsonValue]] = {}
    for question, truth in questions(seed):
        messages: JsonValue = [{"role": "user", "content": question}]
        found[question] = {"messages": messages, "found": truth}
        if len(found) == ROWS + HELD_OUT:
            break
    drawn = list(found.values())
    return drawn[:ROWS], drawn[ROWS:]


COURSE = Course(
    lessons=lessons,
    files=("lists.jsonl", "lists_held_out.jsonl"),
    settings=SftSettings(steps=110, batch_size=32, lr=1.5e-3, warmup_steps=10),
    careless_steps=25,
    care=Care(slip=0.5, wordy=0.2),
)


def main() -> None:
    """Read the command line and build."""
    args = read_arguments("trainer.tiny_lists", __doc__, "of the lessons")
    COURSE.build(args.out, args.seed)


if __name__ == "__main__":
    main()
