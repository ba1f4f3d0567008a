"""Data that a glob or a folder finds stays inside it."""

from pathlib import Path

import pytest

from configs.data_files import find_files, strays
from configs.schema import SourceConfig
from configs.validate_data import check_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "part").mkdir(parents=True)
    (folder / "a.jsonl").write_text("{}\n")
    (folder / "part" / "b.jsonl").write_text("{}\n")
    (folder / "inside.jsonl").symlink_to("part/b.jsonl")
    (tmp_path / "secret").write_text("root:x\n")
    return folder


def test_links_within_are_data_and_links_out_are_not(data: Path, tmp_path: Path):
    everything = f"{data}/**/*.jsonl"
    assert len(find_files((everything,))) == 3
    assert strays(everything) == [] and strays(str(data)) == []
    (data / "part" / "z.jsonl").symlink_to(tmp_path / "secret")
    (data / "up.jsonl").symlink_to("../secret")
    for pattern in (everything, str(data)):
        assert {link.name for link, _ in strays(pattern)} == {"z.jsonl", "up.jsonl"}
        assert {end for _, end in strays(pattern)} == {tmp_path / "secret"}
    assert strays(str(data / "up.jsonl")) == []  # written out: its writer's word


def test_a_link_to_a_folder_outside_is_one_out(data: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "c.jsonl").write_text("{}\n")
    (data / "linked").symlink_to(tmp_path / "other")
    assert [link.name for link, _ in strays(f"{data}/*/*.jsonl")] == ["c.jsonl"]


def test_a_snapshot_of_the_hub_is_made_of_links(tmp_path: Path):
    repository = tmp_path / "datasets--org--rows"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1").write_text("{}\n")
    (snapshot / "train.jsonl").symlink_to("../../blobs/1")
    assert strays(str(snapshot)) == []
    (snapshot / "test.jsonl").symlink_to("/etc/passwd")
    assert [link.name for link, _ in strays(str(snapshot))] == ["test.jsonl"]


def test_a_recipe_is_told(data: Path):
    (data / "up.jsonl").symlink_to("/etc/passwd")
    for given in ({"jsonl": f"{data}/*.jsonl"}, {"hub": str(data)}):
        source = SourceConfig.model_validate(
            {"name": "s", "data": given, "rewards": [{"name": "r", "use": "exact"}]}
        )
        found = [p for p in check_data(source) if "leads out" in p.what]
        assert len(found) == 1 and found[0].where.startswith("sources.s.data.")
