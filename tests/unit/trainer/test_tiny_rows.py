"""The rows of the recipes are those that their module makes, and hold nothing held out."""

import json
from pathlib import Path

from configs.load import load_recipe
from trainer.tiny_model import RECIPE
from trainer.tiny_rows import ROWS, preferences, right_answers
from trainer.tiny_text import held_out_items

DATA = Path(__file__).parents[3] / "configs" / "recipes" / "data"


def test_the_committed_rows_are_made_by_the_module():
    for name, rows in (("right_answers", right_answers()), ("preferences", preferences())):
        lines = (DATA / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == rows, "run `python -m trainer.tiny_rows`"
        assert len(rows) == ROWS


def test_nothing_held_out_is_taught_and_no_pair_is_equal():
    sources = load_recipe(RECIPE).sources
    banned = {item["question"] for s in sources for item in held_out_items(s.data)}
    asked = [row["messages"][0]["content"] for row in right_answers()]  # type: ignore[index, call-overload]
    pairs = preferences()
    asked += [row["prompt"] for row in pairs]
    assert not banned & set(asked)
    assert all(row["chosen"] != row["rejected"] for row in pairs)
