"""The rows, lessons and grader of the recipe of code tests belong together."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

from configs.load import load_recipe
from rewards.code_tests import prepare_code_tests
from rewards.sandbox import shared
from rewards.subject import Subject
from trainer.tiny_code import COURSE, all_questions, ask, lessons, rows
from trainer.tiny_text import Care

RECIPES = Path(__file__).parents[3] / "configs" / "recipes"
DATA = RECIPES / "data"


def read(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def test_the_files_are_the_rows_and_no_lesson_is_one_of_them():
    train, held_out = rows()
    assert (read("oneliners.jsonl"), read("oneliners_held_out.jsonl")) == (train, held_out)
    banned = COURSE.banned(DATA)
    assert len(banned) == 80
    free = {lesson.question for lesson in islice(lessons(0, Care()), 3000)}
    taught = {lesson.question for lesson in islice(lessons(0, Care(), banned), 3000)}
    assert free == {ask(*q) for q in all_questions()}
    assert taught == free - banned


def test_right_functions_are_paid_in_full_and_careless_ones_in_part():
    (part,) = load_recipe(RECIPES / "code_tests.yaml").sources[0].rewards
    grade = prepare_code_tests(part.definition, "g")  # type: ignore[arg-type]
    try:
        given: Any = [row for part in rows() for row in part]
        row_of = {row["messages"][0]["content"]: row for row in given}
        for row in given[::8]:
            assert grade(Subject.of_text(row, row["reference"])).value == 1, row
        careless = (x for x in lessons(3, Care(slip=1.0)) if x.question in row_of)
        paid = [
            grade(Subject.of_text(row_of[x.question], x.answer)).value for x in islice(careless, 30)
        ]
    finally:
        for made in shared.made():
            made.close()
    assert 0 < sum(paid) / len(paid) < 0.7 and max(paid) < 1
