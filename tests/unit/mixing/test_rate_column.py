"""Pass rates measured beforehand: taken in the one pass that a source is read in."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import ConfigError, Problem
from configs.schema import SourceConfig
from mixing.sources.opening import open_source
from mixing.tables.jsonl import JsonlTable
from mixing.tables.table import Row

MakeSource = Callable[..., SourceConfig]


def with_rates(cfg: SourceConfig, column: str) -> SourceConfig:
    difficulty = {"window": [0.2, 0.8], "pass_rate_column": column}
    return SourceConfig.model_validate({**cfg.model_dump(), "difficulty": difficulty})


def rows(count: int) -> list[Row]:
    return [
        {
            "prompt": f"q{i}",
            "answer": str(i),
            "rate": None if i % 7 == 0 else (i % 10) / 10,
            "stats": {"rate": i / count},
        }
        for i in range(count)
    ]


def jsonl(path: Path, given: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def refused(cfg: SourceConfig) -> Problem:
    with pytest.raises(ConfigError) as caught:
        open_source(cfg)
    (problem,) = caught.value.problems
    assert problem.where == "sources.s.difficulty.pass_rate_column" and problem.fix
    return problem


@pytest.mark.parametrize("column", ["rate", "stats.rate"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_each_training_item_has_the_rate_of_its_row(
    make_source: MakeSource, tmp_path: Path, kind: str, column: str
) -> None:
    """Also where columns that graders do not get are left unread, and rows are left out."""
    given, path = rows(200), tmp_path / kind
    if kind == "jsonl":
        jsonl(path, given)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(given), path, row_group_size=70)
    else:
        datasets.Dataset.from_list(given).save_to_disk(path)
    source = open_source(
        with_rates(
            make_source(
                **{kind: path}, columns={"metadata": ["answer"]}, max_prompts=120, held_out=20
            ),
            column,
        )
    )
    rates = source.offline_rates()
    assert rates is not None and len(rates) == source.size == 120
    for item, found in enumerate(rates.tolist()):
        row = given[int(source.task(item).prompt[0].content.removeprefix("q"))]
        wanted = row["rate"] if column == "rate" else row["stats"]["rate"]  # type: ignore[index]
        assert math.isnan(found) if wanted is None else found == wanted


def test_rows_are_read_once(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    once = JsonlTable.read
    monkeypatch.setattr(
        JsonlTable, "read", lambda self, place: read.append(place) or once(self, place)
    )
    source = open_source(with_rates(make_source(jsonl=jsonl(tmp_path / "a", rows(50))), "rate"))
    assert source.offline_rates() is not None
    assert len(read) == len(source.held_out())


def test_no_column_is_no_rates(make_source: MakeSource, tmp_path: Path) -> None:
    assert open_source(make_source(jsonl=jsonl(tmp_path / "a", rows(50)))).offline_rates() is None


def test_held_out_files_need_no_rates(make_source: MakeSource, tmp_path: Path) -> None:
    apart = jsonl(tmp_path / "test.jsonl", [{"prompt": f"t{i}", "answer": ""} for i in range(9)])
    made = make_source(jsonl=jsonl(tmp_path / "a", rows(50)), held_out_file=apart)
    rates = open_source(with_rates(made, "rate")).offline_rates()
    assert rates is not None and len(rates) == 50


def test_what_is_no_pass_rate_is_named_by_its_row(make_source: MakeSource, tmp_path: Path) -> None:
    given = rows(50)
    for row, bad in zip(given[10:], ("x", 1.5, True, -1), strict=False):
        row["rate"] = bad
    path = jsonl(tmp_path / "a.jsonl", given)
    problem = refused(with_rates(make_source(jsonl=path), "rate"))
    assert "found 'x' at " in problem.what and "a.jsonl:11, 1.5 at" in problem.what
    assert "True at" in problem.what and problem.what.endswith("and 1 more")


def test_a_column_that_no_row_has_is_told_with_the_nearest(
    make_source: MakeSource, tmp_path: Path
) -> None:
    path = jsonl(tmp_path / "a.jsonl", rows(50))
    problem = refused(with_rates(make_source(jsonl=path), "rates"))
    assert "no row has a column `rates`" in problem.what and "`rate`" in problem.fix
    some = [{**row} if i else {"prompt": "p", "answer": "a"} for i, row in enumerate(rows(50))]
    source = open_source(with_rates(make_source(jsonl=jsonl(tmp_path / "b", some)), "rate"))
    assert source.offline_rates() is not None
