"""Imported recipes load, keep the shares of the framework they come from, and say what is odd."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import ConfigError
from configs.load import load_recipe
from configs.schema import RunConfig
from configs.validate import validate_run
from mixing.importers import ImportedRecipe, import_open_instruct, import_verl, parse_mixer_list
from mixing.sources.opening import open_sources


def load(made: ImportedRecipe, folder: Path) -> RunConfig:
    path = folder / "recipe.yaml"
    path.write_text(made.text)
    cfg = load_recipe(path)
    assert [p for p in validate_run(cfg) if p.where.startswith("sources")] == []
    return cfg


def from_mixer(*words: str, splits: tuple[str, ...] = (), **sizes: int) -> ImportedRecipe:
    named = {name.replace("__", "/"): size for name, size in sizes.items()}
    return import_open_instruct(parse_mixer_list(words, splits), named, name="imp", model="a/b")


def test_a_mixer_list_keeps_shares_of_rows(tmp_path: Path) -> None:
    made = from_mixer("ai2/gsm 0.5 ai2/math", "2000", "ai2/if 1.0", ai2__gsm=7000, ai2__if=500)
    cfg = load(made, tmp_path)
    gsm, math, instructions = cfg.sources
    assert [s.weight for s in cfg.sources] == [3500, 2000, 500]
    assert (gsm.name, gsm.data.hub, gsm.data.fraction) == ("gsm", "ai2/gsm", 0.5)
    assert (math.data.max_prompts, math.data.fraction) == (2000, 1.0)
    assert (instructions.data.fraction, instructions.data.max_prompts) == (1.0, None)
    assert {(s.data.columns.messages, s.data.columns.answer) for s in cfg.sources} == {
        ("messages", "ground_truth")
    }
    assert len(made.notes) == 1 and "stands in for the reward" in made.notes[0]


def test_one_without_a_dot_is_one_row_and_reported(tmp_path: Path) -> None:
    made = from_mixer("ai2/gsm 1 ai2/math 1.0", ai2__math=100)
    cfg = load(made, tmp_path)
    assert cfg.sources[0].data.max_prompts == 1 and cfg.sources[1].data.max_prompts is None
    assert [s.weight for s in cfg.sources] == [1, 100]
    (note,) = (n for n in made.notes if "one row" in n)
    assert "ai2/gsm 1 is one row" in note and "1.0 would be all" in note
    assert f"# {note}" in made.text


def test_unknown_sizes_give_equal_weights_and_say_so(tmp_path: Path) -> None:
    made = from_mixer("ai2/gsm 0.5 ai2/math 2000")
    assert [s.weight for s in load(made, tmp_path).sources] == [1, 1]
    assert any("size of ai2/gsm is not known" in n and "--rows" in n for n in made.notes)


def test_more_than_all_rows_is_weight(tmp_path: Path) -> None:
    made = from_mixer("a/x 2.5 a/y 300", a__x=100, a__y=200)
    x, y = load(made, tmp_path).sources
    assert (x.weight, x.data.fraction, x.data.max_prompts) == (250, 1.0, None)
    assert (y.weight, y.data.max_prompts) == (300, None)
    assert sum("weight" in n for n in made.notes) == 2


def test_local_files_are_counted_and_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}], "ground_truth": "1", "dataset": "gsm"}
        for i in range(40)
    ]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows[:20]), "b.parquet")
    cfg = load(from_mixer("a.jsonl 0.5 b.parquet 1.0"), tmp_path)
    assert [s.weight for s in cfg.sources] == [20, 20]
    opened = open_sources(cfg)
    assert [opened[name].size for name in ("a", "b")] == [18, 18]
    assert opened["a"].task(0).metadata == {"dataset": "gsm"}


def test_splits_and_doubled_names(tmp_path: Path) -> None:
    cfg = load(from_mixer("a/x 10 b/x 20 c/_y-z 5", splits=("train", "test", "dev")), tmp_path)
    assert [(s.name, s.data.split) for s in cfg.sources] == [
        ("x", "train"),
        ("x_2", "test"),
        ("y-z", "dev"),
    ]
    cfg = load(from_mixer("a/x 10 b/x 20", splits=("extra",)), tmp_path)
    assert {s.data.split for s in cfg.sources} == {"extra"}


@pytest.mark.parametrize(
    ("words", "splits", "where", "what"),
    [
        ("", (), "mixer list", "has 0 words"),
        ("a 1.0 b", (), "mixer list", "has 3 words"),
        ("a 1.0 b x", (), "mixer list: b", "'x' is no fraction"),
        ("a -0.5", (), "mixer list: a", "'-0.5' is no fraction"),
        ("a 0", (), "mixer list: a", "'0' is no fraction"),
        ("a 1 b 2 c 3", ("x", "y"), "--split", "there are 2 for 3 datasets"),
    ],
)
def test_a_wrong_mixer_list_is_refused(
    words: str, splits: tuple[str, ...], where: str, what: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mixer_list([words], splits)
    (problem,) = caught.value.problems
    assert problem.where == where and what in problem.what


def verl_rows(start: int, count: int, *, prompt: str = "messages") -> list[dict[str, Any]]:
    return [
        {
            "data_source": ["openai/gsm8k", "lighteval/MATH"][i % 4 == 0],
            "prompt": [{"role": "user", "content": f"q{i}"}] if prompt == "messages" else f"q{i}",
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": i},
        }
        for i in range(start, start + count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_verl_files_become_a_source_for_each_data_source(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.parquet", verl_rows(100 * i, 100)) for i in range(2)]
    cfg = load(import_verl(files, (), name="imp", model="a/b"), tmp_path)
    assert [(s.name, s.weight, s.data.held_out) for s in cfg.sources] == [
        ("MATH", 50, 5),
        ("gsm8k", 150, 15),
    ]
    opened = open_sources(cfg)
    assert [opened[s.name].size for s in cfg.sources] == [45, 135]
    task = opened["gsm8k"].task(0)
    assert task.answer is not None and task.prompt[0].content == f"q{task.answer}"
    assert task.metadata["data_source"] == "openai/gsm8k"


def test_verl_validation_files_are_held_out_where_they_have_the_source(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", verl_rows(0, 100))
    test = write(tmp_path / "test.parquet", [verl_rows(1000 + 4 * i, 1)[0] for i in range(6)])
    made = import_verl([train], [test], name="imp", model="a/b")
    cfg = load(made, tmp_path)
    assert cfg.source("MATH").data.held_out_file == (test,)
    assert cfg.source("gsm8k").data.held_out_file is None
    assert any("openai/gsm8k has no validation rows" in note for note in made.notes)
    opened = open_sources(cfg)
    assert (opened["MATH"].size, len(opened["MATH"].held_out())) == (25, 6)


def test_verl_prompts_of_text_are_mapped_as_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", verl_rows(0, 40, prompt="text"))
    cfg = load(import_verl([path], (), name="imp", model="a/b"), tmp_path)
    assert {s.data.columns.prompt for s in cfg.sources} == {"prompt"}
    assert open_sources(cfg)["gsm8k"].size == 27


def test_wrong_verl_files_are_refused_all_at_once(tmp_path: Path) -> None:
    rows = verl_rows(0, 4)
    for row in rows:
        row["data_sourc"] = row.pop("data_source")
    lacking = write(tmp_path / "a.parquet", rows)
    bare = write(
        tmp_path / "b.parquet", [{**r, "reward_model": {"truth": 1}} for r in verl_rows(0, 4)]
    )
    text = tmp_path / "c.parquet"
    text.write_text("x")
    with pytest.raises(ConfigError) as caught:
        import_verl([lacking, bare, str(text)], (), name="imp", model="a/b")
    first, second, third = caught.value.problems
    assert (first.where, first.fix) == (lacking, "Did you mean `data_sourc`?")
    assert second.where == bare and "reward_model.ground_truth" in second.what
    assert third.where == str(text) and "no Parquet file" in third.what
