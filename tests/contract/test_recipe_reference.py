from pathlib import Path

from configs.reference import render

PAGE = Path(__file__).parents[2] / "docs" / "recipe-reference.md"


def test_the_recipe_reference_is_made_from_the_schema():
    remedy = "run `python -m configs.reference > docs/recipe-reference.md`"
    assert PAGE.read_text() == render(), remedy
