"""Hub sources, offline: folders that `datasets` saved or reads, and names that nothing answers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.errors import ConfigError, Problem
from configs.schema import SourceConfig
from mixing.sources.opening import open_source
from mixing.sources.source import Source

MakeSource = Callable[..., SourceConfig]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, for the fetching process."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows(count: int, name: str = "q") -> list[dict[str, Any]]:
    return [
        {"question": f"{name}{i}", "gold": {"value": i}, "level": i % 5, "id": f"{name}-{i}"}
        for i in range(count)
    ]


COLUMNS = {"prompt": "question", "answer": "gold.value"}


def tasks(source: Source) -> dict[str, Any]:
    return {t.task_id: t for t in [*map(source.task, range(source.size)), *source.held_out()]}


def refused(cfg: SourceConfig) -> Problem:
    with pytest.raises(ConfigError) as caught:
        open_source(cfg)
    (problem,) = caught.value.problems
    assert "\n" not in problem.what and "\n" not in problem.fix
    return problem


def test_a_saved_folder_is_read_with_its_filter_and_columns(
    make_source: MakeSource, tmp_path: Path
) -> None:
    given = rows(2500)
    datasets.Dataset.from_list(given).save_to_disk(tmp_path / "saved")
    opened = open_source(
        make_source(hub=tmp_path / "saved", columns=COLUMNS, where={"level": {"min": 3}})
    )
    found = tasks(opened)
    assert len(found) == opened.size + 8 == 1000
    for row_number in (3, 4, 1238, 2499):
        (key,) = (k for k in found if k.endswith(f"/{row_number}"))
        assert found[key].prompt[0].content == f"q{row_number}"
        assert found[key].answer == str(row_number)
        assert set(found[key].metadata) == {"gold", "level", "id"}
    narrow = open_source(
        make_source(hub=tmp_path / "saved", columns={**COLUMNS, "metadata": ["level"]})
    )
    assert set(narrow.task(0).metadata) == {"level"}


def test_the_splits_of_a_saved_folder(make_source: MakeSource, tmp_path: Path) -> None:
    datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_list(rows(20)),
            "test": datasets.Dataset.from_list(rows(5, "t")),
        }
    ).save_to_disk(tmp_path / "saved")
    fields: dict[str, Any] = {"hub": tmp_path / "saved", "columns": {**COLUMNS, "id": "id"}}
    opened = open_source(make_source(**fields, held_out_split="test"))
    assert opened.size == 20
    assert {t.task_id for t in opened.held_out()} == {f"s/held_out/t-{i}" for i in range(5)}
    problem = refused(make_source(**fields, split="dev"))
    assert problem.where == "sources.s.data.split"
    assert "no split 'dev'; it has train, test" in problem.what


def test_a_leak_between_splits_is_refused(make_source: MakeSource, tmp_path: Path) -> None:
    datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_list(rows(20)),
            "test": datasets.Dataset.from_list(rows(2)),
        }
    ).save_to_disk(tmp_path / "saved")
    problem = refused(make_source(hub=tmp_path / "saved", columns=COLUMNS, held_out_split="test"))
    assert problem.where == "sources.s.data.held_out_split"
    assert f"{tmp_path}/saved/train row 0 and {tmp_path}/saved/test row 0" in problem.what


def test_a_folder_of_files_whole_sliced_and_streamed(
    make_source: MakeSource, tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows(3000)), folder / "train.parquet")
    fields: dict[str, Any] = {"hub": folder, "columns": COLUMNS}
    whole = open_source(make_source(**fields))
    assert whole.size == 2992
    first = tasks(open_source(make_source(**fields, split="train[:50]")))
    streamed_source = open_source(make_source(**fields, streaming=True, size=50))
    streamed = tasks(streamed_source)
    assert first == streamed and len(streamed) == 50
    assert {int(key.rsplit("/", 1)[1]) for key in streamed} == set(range(50))
    problem = refused(make_source(**fields, split="test"))
    assert problem.where == "sources.s.data.split" and "train" in problem.what, problem


def test_a_saved_folder_streamed_has_its_first_rows(
    make_source: MakeSource, tmp_path: Path
) -> None:
    datasets.Dataset.from_list(rows(40)).save_to_disk(tmp_path / "saved")
    fields: dict[str, Any] = {"hub": tmp_path / "saved", "columns": COLUMNS, "streaming": True}
    found = tasks(open_source(make_source(**fields, size=30)))
    assert {int(key.rsplit("/", 1)[1]) for key in found} == set(range(30))
    problem = refused(make_source(**fields, size=41))
    assert problem.where == "sources.s.data.size" and "saved/train has 40 rows" in problem.what


def test_the_same_rows_elsewhere_have_the_same_fingerprint(
    make_source: MakeSource, tmp_path: Path
) -> None:
    opened: list[Source] = []
    for folder, count in (("a", 20), ("b", 20), ("c", 21)):
        datasets.Dataset.from_list(rows(count)).save_to_disk(tmp_path / folder)
        opened.append(open_source(make_source(hub=tmp_path / folder, columns=COLUMNS)))
    assert opened[0].fingerprint == opened[1].fingerprint != opened[2].fingerprint


def test_a_name_that_cannot_be_reached_is_one_line_with_the_remedy(
    make_source: MakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    problem = refused(make_source(hub="nobody/nothing"))
    assert problem.where == "sources.s.data.hub"
    assert "nobody/nothing" in problem.what and "HF_HUB_OFFLINE=1" in problem.fix


def test_the_driver_loads_neither_datasets_nor_torch(tmp_path: Path) -> None:
    datasets.Dataset.from_list(rows(20)).save_to_disk(tmp_path / "saved")
    data = {"hub": str(tmp_path / "saved"), "held_out": 4, "columns": COLUMNS}
    given = {"name": "s", "data": data, "rewards": [{"name": "r", "use": "exact"}]}
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from configs.schema import SourceConfig\n"
        "from mixing.sources.opening import open_source\n"
        "print(open_source(SourceConfig.model_validate_json(sys.argv[1])).size)\n"
        "print(*[m for m in ('datasets', 'pandas', 'torch', 'ray') if m in sys.modules])\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert out.stdout.split() == ["16"]
