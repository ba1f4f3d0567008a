"""The extraction recipe's rows, lessons and model belong together."""

import json
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from configs.load import load_recipe
from rewards.fields import prepare_json_fields
from rewards.subject import Subject
from trainer import tiny_code, tiny_lists, tiny_model
from trainer.tiny_lists import COURSE, lessons, rows
from trainer.tiny_text import Care

RECIPES = Path(__file__).parents[3] / "configs" / "recipes"
DATA = RECIPES / "data"


def read(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def test_the_files_are_the_rows_and_no_lesson_is_one_of_them():
    train, held_out = rows()
    assert (read("lists.jsonl"), read("lists_held_out.jsonl")) == (train, held_out)
    banned = COURSE.banned(DATA)
    assert len(banned) == 80
    free = {lesson.question for lesson in islice(lessons(0, Care()), 4000)}
    taught = {lesson.question for lesson in islice(lessons(0, Care(), banned), 4000)}
    assert banned & free and not banned & taught


def test_a_careful_lesson_is_paid_in_full_and_a_careless_one_in_part():
    (part,) = load_recipe(RECIPES / "json_extraction.yaml").sources[0].rewards
    grader = part.definition
    assert grader.type == "json_fields"
    grade = prepare_json_fields(grader, "g")
    paid: list[float] = []
    for careful, careless in zip(
        islice(lessons(3, Care()), 200), islice(lessons(3, Care(slip=1.0)), 200), strict=True
    ):
        item = {"found": json.loads(careful.answer)}
        assert grade(Subject.of_text(item, careful.answer)).value == 1
        paid.append(grade(Subject.of_text(item, careless.answer)).value)
    assert 0 < sum(paid) / len(paid) < 1 and max(paid) < 1


@pytest.mark.parametrize("made", [tiny_model, tiny_lists, tiny_code])
def test_a_folder_that_cannot_be_made_is_told_before_anything_is_trained(
    made: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    taken = tmp_path / "taken"
    taken.write_text("x")
    monkeypatch.setattr("sys.argv", ["made", str(taken)])
    with pytest.raises(SystemExit) as ended:
        made.main()
    assert ended.value.code == 2
    assert f"{taken} cannot be a folder: File exists" in capsys.readouterr().err
