"""Splits that cannot leak: by hash, by column, by files of their own; and taking a part."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError, Problem
from configs.schema import SourceConfig
from mixing.sources.opening import open_source
from mixing.sources.source import Source

MakeSource = Callable[..., SourceConfig]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts(source: Source) -> tuple[list[str], list[str]]:
    train = [source.task(i).prompt[-1].content for i in range(source.size)]
    return train, [t.prompt[-1].content for t in source.held_out()]


def refused(cfg: SourceConfig) -> Problem:
    with pytest.raises(ConfigError) as caught:
        open_source(cfg)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize("seed", range(25))
def test_no_prompt_is_on_both_sides_and_no_row_is_lost(
    make_source: MakeSource, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    different = rng.randrange(2, 60)
    rows = [
        {"prompt": f"q{rng.randrange(different)}", "answer": str(i)}
        for i in range(rng.randrange(different, 200))
    ]
    there = {row["prompt"] for row in rows}
    held_out = rng.randrange(1, max(2, len(there)))
    if held_out >= len(there):
        rows.append({"prompt": "one more", "answer": ""})
        there.add("one more")
    opened = open_source(make_source(jsonl=write(tmp_path / "a.jsonl", rows), held_out=held_out))
    train, held = prompts(opened)
    assert len(held) == len(set(held)) == held_out
    assert not set(train) & set(held)
    assert sorted(train) == sorted(r["prompt"] for r in rows if r["prompt"] not in set(held))


def test_thirty_rows_work_and_more_held_out_than_rows_is_refused(
    make_source: MakeSource, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": f"q{i}", "answer": ""} for i in range(30)])
    opened = open_source(make_source(jsonl=path, held_out=8))
    assert opened.size == 22 and len(opened.held_out()) == 8
    for held_out in (30, 31, 100):
        problem = refused(make_source(jsonl=path, held_out=held_out))
        assert problem.where == "sources.s.data.held_out"
        assert f"30 different prompts; {held_out} held out leave none" in problem.what
        assert problem.fix == "Lower `held_out`, say to 6, or add rows."


def test_a_split_by_column_holds_out_what_it_says(make_source: MakeSource, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{i}", "answer": "", "split": ["train", "test"][i % 3 == 0]} for i in range(30)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    opened = open_source(make_source(jsonl=path, held_out_where={"split": "test"}, held_out=100))
    train, held = prompts(opened)
    assert sorted(held) == sorted(f"q{i}" for i in range(0, 30, 3))
    assert train == [f"q{i}" for i in range(30) if i % 3]
    few = open_source(make_source(jsonl=path, held_out_where={"split": "test"}, held_out=4))
    assert len(few.held_out()) == 4 and prompts(few)[0] == train


def test_a_leaking_split_is_refused_with_the_rows_named(
    make_source: MakeSource, tmp_path: Path
) -> None:
    rows = [{"prompt": f"q{i}", "answer": "", "split": "train"} for i in range(20)]
    tests = [{"prompt": f"q{i + 17}", "answer": "", "split": "test"} for i in range(9)]
    both = write(tmp_path / "both.jsonl", [*rows, *tests])
    problem = refused(make_source(jsonl=both, held_out_where={"split": "test"}))
    assert problem.where == "sources.s.data.held_out_where"
    assert "3 prompt(s) are on both sides" in problem.what
    assert f"{both}:18 and {both}:21; {both}:19 and {both}:22" in problem.what
    assert "remove `held_out_where`" in problem.fix
    train, test = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", tests)
    problem = refused(make_source(jsonl=train, held_out_file=test))
    assert problem.where == "sources.s.data.held_out_file"
    assert f"{train}:18 and {test}:1" in problem.what
    write(test, [{"prompt": f"q{i}", "answer": ""} for i in range(20)])
    assert "and 15 more" in refused(make_source(jsonl=train, held_out_file=test)).what


def test_a_held_out_file_has_the_columns_and_filters_of_the_rows(
    make_source: MakeSource, tmp_path: Path
) -> None:
    rows = [{"question": f"q{i}", "answer": "", "level": i % 2} for i in range(10)]
    tests = [{"question": f"t{i}", "answer": "", "level": i % 2} for i in range(10)]
    fields = {
        "jsonl": write(tmp_path / "a.jsonl", rows),
        "held_out_file": write(tmp_path / "b.jsonl", tests),
        "where": {"level": 1},
        "columns": {"prompt": "question"},
    }
    opened = open_source(make_source(**fields))
    train, held = prompts(opened)
    assert train == ["q1", "q3", "q5", "q7", "q9"]
    assert sorted(held) == ["t1", "t3", "t5", "t7", "t9"]
    assert {t.task_id for t in opened.held_out()} == {f"s/held_out/{i}" for i in (2, 4, 6, 8, 10)}
    before = opened.fingerprint
    write(tmp_path / "b.jsonl", [*tests, {"question": "new", "answer": "", "level": 1}])
    assert open_source(make_source(**fields)).fingerprint != before


def test_both_files_problems_are_told_at_once(make_source: MakeSource, tmp_path: Path) -> None:
    train, test = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    train.write_text("{\n")
    test.write_text('{"prompt": "x", "answer": ""}\n[]\n')
    with pytest.raises(ConfigError) as caught:
        open_source(make_source(jsonl=train, held_out_file=test))
    assert [p.where for p in caught.value.problems] == [f"{train}:1", f"{test}:2"]


def test_a_held_out_filter_that_leaves_no_side_is_refused(
    make_source: MakeSource, tmp_path: Path
) -> None:
    rows = [{"prompt": f"q{i}", "answer": "", "split": "test"} for i in range(9)]
    path = write(tmp_path / "a.jsonl", rows)
    problem = refused(make_source(jsonl=path, held_out_where={"split": "test"}))
    assert problem.where == "sources.s.data.held_out_where" and "takes every row" in problem.what
    problem = refused(make_source(jsonl=path, held_out_where={"split": "valid"}))
    assert "no row of 9" in problem.what and "split is 'test'" in problem.fix
    problem = refused(make_source(jsonl=path, held_out_where={"spilt": "test"}))
    assert problem.where == "sources.s.data.held_out_where.spilt"
    assert problem.fix == "Did you mean `split`?"


@pytest.mark.parametrize("seed", range(10))
def test_a_part_is_nested_keeps_copies_together_and_leaves_the_held_out_alone(
    make_source: MakeSource, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    rows = [{"prompt": f"q{rng.randrange(60)}", "answer": ""} for _ in range(200)]
    path = write(tmp_path / "a.jsonl", rows)
    whole, held = prompts(open_source(make_source(jsonl=path)))
    parts: list[set[str]] = []
    for fields in ({"fraction": 0.75}, {"fraction": 0.75, "max_prompts": 20}, {"max_prompts": 7}):
        train, held_there = prompts(open_source(make_source(jsonl=path, **fields)))
        assert held_there == held
        assert train == [p for p in whole if p in set(train)]
        parts.append(set(train))
    assert parts[2] < parts[1] < parts[0] < set(whole)
    assert [len(part) for part in parts] == [round(0.75 * len(set(whole))), 20, 7]
    assert prompts(open_source(make_source(jsonl=path, max_prompts=1000)))[0] == whole
