"""Parquet sources: the rows that JSONL would give, whatever the files' row groups."""

import datetime as dt
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import ConfigError
from configs.schema import RunConfig, SourceConfig
from mixing.sources.opening import open_source, probe_sources
from mixing.sources.source import Source

MakeSource = Callable[..., SourceConfig]

VERL: dict[str, Any] = {
    "columns": {"messages": "prompt", "answer": "reward_model.ground_truth"},
    "where": {"data_source": "openai/gsm8k"},
}


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "data_source": ["openai/gsm8k", "math"][i % 4 == 0],
            "prompt": [{"role": "user", "content": f"q{i} " + "x" * (i % 50)}],
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": i, "tags": ["a"] * (i % 3), "score": i / 8},
        }
        for i in range(count)
    ]


def write(path: Path, given: list[dict[str, Any]], row_group_size: int = 700) -> Path:
    pq.write_table(pa.Table.from_pylist(given), path, row_group_size=row_group_size)
    return path


def tasks(source: Source) -> dict[str, Any]:
    all_of = [*(source.task(i) for i in range(source.size)), *source.held_out()]
    return {t.task_id: t for t in all_of}


def test_rows_are_those_that_jsonl_would_give(make_source: MakeSource, tmp_path: Path) -> None:
    given = rows(3000)
    jsonl = tmp_path / "rows.jsonl"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in given))
    parquet = open_source(make_source(parquet=write(tmp_path / "a.parquet", given), **VERL))
    lines = open_source(make_source(jsonl=jsonl, **VERL))
    assert parquet.size == lines.size == 3000 - 750 - 8
    for item in (*range(2241, 0, -97), 0):
        one, other = parquet.task(item), lines.task(item)
        assert (one.prompt, one.answer, one.metadata) == (
            other.prompt,
            other.answer,
            other.metadata,
        )
        side, number = one.task_id.rsplit("/", 1)
        assert other.task_id == f"{side}/{int(number) + 1}"  # lines count from 1, rows from 0
    assert [t.prompt for t in parquet.held_out()] == [t.prompt for t in lines.held_out()]


def test_row_groups_and_the_place_of_the_file_change_nothing(
    make_source: MakeSource, tmp_path: Path
) -> None:
    given = rows(500)
    one = open_source(make_source(parquet=write(tmp_path / "a.parquet", given, 500), **VERL))
    (tmp_path / "b").mkdir()
    path = write(tmp_path / "b" / "c.parquet", given, 7)
    other = open_source(make_source(parquet=path, **VERL))
    assert tasks(one) == tasks(other) and one.fingerprint == other.fingerprint
    given[3]["reward_model"]["ground_truth"] = "changed"
    assert (
        open_source(make_source(parquet=write(path, given), **VERL)).fingerprint != one.fingerprint
    )


def test_files_of_different_columns_are_one_source(make_source: MakeSource, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [{"prompt": f"a{i}", "answer": "1"} for i in range(20)])
    write(
        tmp_path / "b.parquet", [{"answer": "2", "more": i, "prompt": f"b{i}"} for i in range(20)]
    )
    opened = open_source(make_source(parquet=tmp_path / "*.parquet"))
    found = tasks(opened)
    assert len(found) == 40
    for i in range(20):
        (key,) = (k for k in found if k.endswith(f"/b.parquet:{i}"))
        assert found[key].prompt[0].content == f"b{i}" and found[key].metadata == {"more": i}


def test_the_copy_outlives_the_file_and_leaves_nothing_behind(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setenv("TMPDIR", str(spool))
    path = write(tmp_path / "a.parquet", rows(100))
    opened = open_source(make_source(parquet=path, **VERL))
    path.unlink()
    assert opened.task(opened.size - 1).answer is not None
    assert os.listdir(spool) == []


def test_values_become_json(make_source: MakeSource, tmp_path: Path) -> None:
    given = [
        {
            "prompt": f"q{i}",
            "answer": None,
            "day": dt.date(2026, 1, 1 + i),
            "score": [float("nan"), 0.5][i % 2],
            "when": [dt.datetime(2026, 1, 1, 12)],
        }
        for i in range(9)
    ]
    opened = open_source(make_source(parquet=write(tmp_path / "a.parquet", given)))
    found = (
        tasks(opened)["s/train/0"]
        if "s/train/0" in tasks(opened)
        else tasks(opened)["s/held_out/0"]
    )
    assert found.answer is None
    assert found.metadata == {"day": "2026-01-01", "score": None, "when": ["2026-01-01T12:00:00"]}


def test_bytes_are_refused_unless_no_grader_needs_them(
    make_source: MakeSource, tmp_path: Path
) -> None:
    given = [{"prompt": f"q{i}", "answer": "", "image": b"\x00", "level": i} for i in range(9)]
    path = write(tmp_path / "a.parquet", given)
    with pytest.raises(ConfigError) as caught:
        open_source(make_source(parquet=path))
    problem = caught.value.problems[0]
    assert problem.where == f"{path} row 0" and "`image` holds bytes" in problem.what
    opened = open_source(make_source(parquet=path, columns={"metadata": ["level"]}))
    assert opened.size == 1 and set(opened.task(0).metadata) == {"level"}


def test_malformed_rows_are_named_by_file_and_row(make_source: MakeSource, tmp_path: Path) -> None:
    given = [{"prompt": f"q{i}" if i % 2 else "", "answer": "1"} for i in range(60)]
    path = write(tmp_path / "a.parquet", given)
    with pytest.raises(ConfigError) as caught:
        open_source(make_source(parquet=path))
    assert len(caught.value.problems) == 21
    assert [p.where for p in caught.value.problems[:2]] == [f"{path} row 0", f"{path} row 2"]
    assert caught.value.problems[-1].what == "10 more malformed rows"


def test_what_is_no_parquet_file_is_refused(make_source: MakeSource, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("no parquet")
    cfg = make_source(parquet=path)
    with pytest.raises(ConfigError) as caught:
        open_source(cfg)
    (problem,) = caught.value.problems
    assert problem.where == "sources.s.data.parquet" and "cannot be read" in problem.what
    assert probe_sources(RunConfig.model_construct(sources=(cfg,))) == ([problem], {"s": None})
    write(path, [{"prompt": "q", "answer": ""}])
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ConfigError, match="has no rows"):
        open_source(cfg)
