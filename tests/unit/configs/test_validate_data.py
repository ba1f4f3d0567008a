"""What `data` may say: every contradiction refused with its field and a remedy."""

from pathlib import Path
from typing import Any

import pytest

from configs.data import DataConfig
from configs.data_files import find_files
from configs.errors import ConfigError
from configs.load import load_recipe
from configs.schema import RewardConfig, SourceConfig
from configs.validate_data import check_data

HERE = {"jsonl": __file__}
FOLDER = str(Path(__file__).parent)
PROCEDURAL = {"procedural": "reasoning_gym/lcm"}


def problems_of(data: dict[str, Any]) -> list[tuple[str, str, str]]:
    source = SourceConfig(
        name="s",
        data=DataConfig.model_validate(data),
        rewards=(RewardConfig(name="r", use="exact"),),
    )
    return [(p.where, p.what, p.fix) for p in check_data(source)]


@pytest.mark.parametrize(
    ("data", "where", "what", "fix"),
    [
        ({}, "", "has no data", "exactly one of"),
        ({**HERE, "hub": "a/b"}, "", "has `jsonl` and `hub`", "exactly one of"),
        ({"jsonl": "/none/*.jsonl"}, "jsonl", "no file /none/*.jsonl", "from the current"),
        ({"parquet": []}, "parquet", "empty list", "at least one"),
        ({**HERE, "held_out_file": "/none"}, "held_out_file", "no file /none", "Give a path"),
        ({**PROCEDURAL, "columns": {"prompt": "q"}}, "columns", "do not use it", "Remove it"),
        ({**PROCEDURAL, "where": {"a": 1}}, "where", "`procedural` data do not", "jsonl and parq"),
        ({**PROCEDURAL, "fraction": 0.5}, "fraction", "do not use it", "Remove it"),
        ({**HERE, "size": 50}, "size", "`jsonl` data do not", "procedural and hub"),
        ({**HERE, "seed": 5}, "seed", "`jsonl` data do not", "for procedural"),
        ({**HERE, "streaming": True}, "streaming", "`jsonl` data do not", "for hub"),
        ({**HERE, "revision": "x"}, "revision", "`jsonl` data do not", "for hub"),
        ({**HERE, "held_out_split": "x"}, "held_out_split", "do not use it", "for hub"),
        ({"hub": "a/b", "held_out_file": __file__}, "held_out_file", "`hub` data", "jsonl and"),
        ({"hub": "a/b", "size": 5}, "size", "read whole", "`max_prompts`"),
        ({"hub": "./none"}, "hub", "no folder './none'", "Give a path"),
        ({"hub": "a/b/c"}, "hub", "not a hub name", "Give a path"),
        (
            {"hub": FOLDER, "revision": "main"},
            "revision",
            "local folder",
            "Remove it",
        ),
        (
            {**HERE, "columns": {"prompt": "a", "messages": "b"}},
            "columns",
            "maps both",
            "Keep `prompt` for text",
        ),
        (
            {**HERE, "format": "rft", "columns": {"prompt": "a"}},
            "columns.prompt",
            "have their prompt in `messages`",
            "Remove it",
        ),
        ({**HERE, "columns": {"answer": "a..b"}}, "columns.answer", "'a..b' is no", "dots"),
        ({**HERE, "where": {"a": []}}, "where.a", "empty list", ""),
        ({**HERE, "where": {"a": [[1]]}}, "where.a", "lists must hold text", ""),
        ({**HERE, "where": {"a": {}}}, "where.a", "is empty", "`min`, `max` or both"),
        ({**HERE, "where": {"a": {"mni": 1}}}, "where.a.mni", "unknown key", "Did you mean `min`"),
        ({**HERE, "where": {"a": {"min": "1"}}}, "where.a.min", "must be a number", ""),
        ({**HERE, "where": {"a": {"min": 2, "max": 1}}}, "where.a", "no row is within", "Swap"),
        (
            {**HERE, "held_out_where": {"a": 1}, "held_out_file": __file__},
            "held_out_file",
            "beside held_out_where",
            "Keep one",
        ),
    ],
)
def test_a_contradiction_is_refused(data: dict[str, Any], where: str, what: str, fix: str) -> None:
    ((at, said, remedy),) = problems_of(data)
    assert at == f"sources.s.data.{where}".removesuffix(".")
    assert what in said and fix in remedy


def test_all_problems_are_told_at_once() -> None:
    wrong = {"jsonl": "/none", "seed": 3, "where": {"a": []}, "columns": {"id": "."}}
    assert [at.rsplit("data.")[1] for at, _, _ in problems_of(wrong)] == [
        "seed",
        "jsonl",
        "where.a",
        "columns.id",
    ]


@pytest.mark.parametrize(
    "data",
    [
        HERE,
        {"jsonl": [__file__, __file__]},
        {"hub": "a/b", "streaming": True, "size": 5, "revision": "main", "config": "c"},
        {**HERE, "format": "rft", "columns": {"answer": "a.b"}, "where": {"a": [1, None, "x"]}},
        {**HERE, "held_out_where": {"split": "test"}, "where": {"x": {"min": 0}}},
        PROCEDURAL,
    ],
)
def test_what_fits_together_has_no_problem(data: dict[str, Any]) -> None:
    assert problems_of(data) == []


RECIPE = """
name: t
num_steps: 1
model: {path: m}
batch: {groups_per_step: 1}
sources:
  - name: s
    rewards: [{name: r, use: exact}]
    data: DATA
"""


def load(folder: Path, data: str) -> DataConfig:
    (folder / "r.yaml").write_text(RECIPE.replace("DATA", data))
    return load_recipe(folder / "r.yaml").sources[0].data


def test_paths_and_globs_are_found_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "beside"
    (beside / "sub" / "folder").mkdir(parents=True)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for name in ("b.jsonl", "a.jsonl"):
        (beside / "sub" / name).write_text("")
    data = load(beside, "{jsonl: 'sub/*.jsonl', held_out_file: sub/a.jsonl}")
    assert data.jsonl == (str(beside / "sub" / "*.jsonl"),)
    assert [p.name for p in find_files(data.jsonl)] == ["a.jsonl", "b.jsonl"]
    assert data.held_out_file == (str(beside / "sub" / "a.jsonl"),)
    assert load(beside, "{parquet: [sub/b.jsonl, none.parquet]}").parquet == (
        str(beside / "sub" / "b.jsonl"),
        "none.parquet",
    )
    assert load(beside, "{hub: sub/folder}").hub == str(beside / "sub" / "folder")
    assert load(beside, "{hub: owner/name}").hub == "owner/name"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{jsonl: 3}", "sources.s.data.jsonl (r.yaml:9): must be a list, is 3"),
        ("{jsonl: x, colums: {prompt: q}}", "Did you mean `columns`?"),
        ("{jsonl: x, columns: {promt: q}}", "Did you mean `prompt`?"),
        ("{jsonl: x, format: rtf}", "must be `rows` or `rft`"),
        ("{jsonl: x, fraction: 0}", "must be more than 0, is 0"),
        ("{jsonl: x, fraction: 1.5}", "must be at most 1, is 1.5"),
        ("{jsonl: x, max_prompts: 0}", "must be more than 0, is 0"),
        ("{jsonl: x, where: level}", "must be a mapping of keys to values, is text 'level'"),
    ],
)
def test_what_the_schema_refuses_is_said_with_its_line(
    tmp_path: Path, data: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, data)
    assert words in str(caught.value) and "r.yaml:9" in str(caught.value)
