"""A grader written as data stands in the recipe, or in a file of its own."""

import copy
from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError
from configs.load import load_grader, load_recipe, save_config

QUICKSTART = Path(__file__).parents[3] / "configs" / "recipes" / "quickstart.yaml"


def recipe(folder: Path, part: object) -> Path:
    data = copy.deepcopy(yaml.safe_load(QUICKSTART.read_text()))
    data["model"]["path"] = str(folder)
    data["sources"][0]["rewards"] = [part]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_grader_file_is_taken_from_the_recipes_folder_and_kept_resolved(tmp_path: Path):
    (tmp_path / "whole.yaml").write_text("type: format\npattern: '[0-9]+'\n")
    (tmp_path / "whole.json").write_text('{"type": "format", "pattern": "[0-9]+"}')
    for name in ("whole.yaml", "whole.json"):
        cfg = load_recipe(recipe(tmp_path, {"name": "r", "grader": name}))
        (part,) = cfg.sources[0].rewards
        assert part.definition.type == "format" and part.definition.pattern == "[0-9]+"
        save_config(cfg, tmp_path / "saved.yaml")
        assert load_recipe(tmp_path / "saved.yaml") == cfg


def test_a_function_is_short_for_a_grader(tmp_path: Path):
    cfg = load_recipe(recipe(tmp_path, {"name": "r", "use": "format", "args": {"pattern": "a"}}))
    (part,) = cfg.sources[0].rewards
    assert part.definition.type == "function"
    assert (part.definition.use, part.definition.args) == ("format", {"pattern": "a"})


@pytest.mark.parametrize(
    ("part", "where", "what"),
    [
        ({"name": "r"}, "rewards.r", "exactly one of `use` and `grader`"),
        (
            {"name": "r", "use": "exact", "grader": {"type": "format", "pattern": "a"}},
            "rewards.r",
            "exactly one",
        ),
        (
            {"name": "r", "grader": {"type": "format", "pattern": "a"}, "args": {"a": 1}},
            "rewards.r",
            "`args` belong to `use`",
        ),
        ({"name": "r", "grader": {"pattern": "a"}}, "rewards.r.grader", "has no `type`"),
        (
            {"name": "r", "grader": {"type": "fromat", "pattern": "a"}},
            "rewards.r.grader",
            "Did you mean `format`?",
        ),
        (
            {"name": "r", "grader": {"type": "format", "patern": "a"}},
            "rewards.r.grader.patern",
            "Did you mean `pattern`?",
        ),
        (
            {"name": "r", "grader": {"type": "function"}},
            "rewards.r.grader.use",
            "is missing: Built-in name",
        ),
        (
            {"name": "r", "grader": {"type": "format"}},
            "rewards.r.grader",
            "give `pattern`, `tags` or `json_schema`",
        ),
        (
            {"name": "r", "grader": {"type": "json_fields", "fields": {"total": "numbr"}}},
            "rewards.r.grader.fields.total",
            "Did you mean `number`?",
        ),
        (
            {
                "name": "r",
                "grader": {
                    "type": "multi",
                    "graders": [{"type": "format", "pattern": "a", "name": "A b", "tagz": []}],
                    "calculate_output": "a_b",
                },
            },
            "rewards.r.grader.graders.a_b.tagz",
            "Did you mean `tags`?",
        ),
        ({"name": "r", "grader": "none.yaml"}, "none.yaml", "no such file"),
    ],
)
def test_a_bad_part_is_named_with_its_place(tmp_path: Path, part: object, where: str, what: str):
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe(tmp_path, part))
    said = str(caught.value)
    assert where in said and what in said


def test_a_bad_grader_file_is_named_with_file_and_line(tmp_path: Path):
    path = tmp_path / "g.yaml"
    path.write_text("type: format\npattern: a\nextra: 1\ntimeout_s: -1\n")
    with pytest.raises(ConfigError) as caught:
        load_grader(path)
    said = [str(p) for p in caught.value.problems]
    assert any("extra (g.yaml:3)" in s and "unknown key" in s for s in said)
    assert any("timeout_s (g.yaml:4)" in s and "more than 0" in s for s in said)
