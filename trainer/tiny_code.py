"""Functions of one line: the lessons, rows and model of the recipe of code tests.

`python -m trainer.tiny_code OUT --seed 0` teaches the quickstart's tiny model to write such ones.
The rows of `configs/recipes/data/oneliners*.jsonl` are drawn from the same questions and are never
taught. Careless answers have another operation, another operand, or words around the code.
"""

import random
from collections.abc import Collection, Iterator, Mapping

from pydantic import JsonValue

from trainer.sft import Lesson, SftSettings
from trainer.tiny_course import Course
from trainer.tiny_model import read_arguments
from trainer.tiny_text import WORDY, Care

OPERATIONS: Mapping[str, str] = {
    "{x} plus {y}": "{x}+{y}",
    "{x} minus {y}": "{x}-{y}",
    "{x} times {y}": "{x}*{y}",
    "{x} plus twice {y}": "{x}+2*{y}",
    "the larger of {x} and {y}": "max({x},{y})",
    "the smaller of {x} and {y}": "min({x},{y})",
    "the distance of {x} and {y}": "abs({x}-{y})",
}
"""What a function is to give, and its Python."""
DIGITS = "3456789"
ARGUMENTS = ((1, 9), (8, 2), (5, 5), (-4, 7))
"""Of the calls that test a function."""
ROWS, HELD_OUT = 40, 40


def all_questions() -> list[tuple[str, str, str]]:
    """Return every operation with every two operands: at least one an argument, never twice one."""
    operands = ["a", "b", *DIGITS]
    return [
        (operation, x, y)
        for operation in OPERATIONS
        for x in operands
        for y in operands
        if x != y and not (x in DIGITS and y in DIGITS)
    ]


def ask(operation: str, x: str, y: str) -> str:
    """Return a question."""
    return f"Write f(a,b): {operation.format(x=x, y=y)}."


def solve(operation: str, x: str, y: str) -> str:
    """Return its answer."""
    return f"def f(a,b): return {OPERATIONS[operation].format(x=x, y=y)}"


def lessons(seed: int, care: Care, banned: Collection[str] = ()) -> Iterator[Lesson]:
    """Yield questions and their functions; those in `banned` never occur."""
    rng = random.Random(seed)
    taught = [q for q in all_questions() if ask(*q) not in banned]
    while True:
        question = rng.choice(taught)
        operation, x, y = question
        if rng.random() < care.slip:
            if rng.random() < 0.5:
                operation = rng.choice([o for o in OPERATIONS if o != operation])
            else:
                y = rng.choice([o for o in ("a", "b", *DIGITS) if o not in (x, y)])
        answer = solve(operation, x, y)
        if rng.random() < care.wordy:
            answer = WORDY + answer
        yield Lesson(question=ask(*question), answer=answer)


def rows(seed: int = 0) -> tuple[list[dict[str, JsonValue]], list[dict[str, JsonValue]]]:
    """Return the recipe's training and held-out rows."""
    drawn = random.Random(seed).sample(all_questions(), ROWS + HELD_OUT)
    found = [_row(*question) for question in drawn]
    return found[:ROWS], found[ROWS:]


def _row(operation: str, x: str, y: str) -> dict[str, JsonValue]:
    answer = solve(operation, x, y)
    scope: dict[str, object] = {}
    exec(answer, scope)  # our own line
    function = scope["f"]
    assert callable(function)
    messages: JsonValue = [{"role": "user", "content": ask(operation, x, y)}]
    tests: JsonValue = [f"assert f({a}, {b}) == {function(a, b)}" for a, b in ARGUMENTS]
    return {"messages": messages, "tests": tests, "reference": answer}


COURSE = Course(
    lessons=lessons,
    files=("oneliners.jsonl", "oneliners_held_out.jsonl"),
    settings=SftSettings(steps=170, batch_size=32, pieces=1, lr=2e-3, warmup_steps=10),
    careless_steps=30,
    care=Care(slip=0.5, wordy=0.1),
)


def main() -> None:
    """Read the command line and build."""
    args = read_arguments("trainer.tiny_code", __doc__, "of the lessons")
    COURSE.build(args.out, args.seed)


if __name__ == "__main__":
    main()
