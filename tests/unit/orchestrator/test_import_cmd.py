"""`braid import`: the recipe on stdout or in a new file, what is odd about it on stderr."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.errors import ConfigError
from configs.load import load_recipe
from orchestrator.commands.import_recipe import import_app

MIXER = ["open-instruct", "ai2/gsm 1.0 ai2/math 1", "--rows", "ai2/gsm=50"]


def test_the_recipe_is_all_of_stdout(tmp_path: Path):
    done = CliRunner().invoke(import_app, [*MIXER, "--name", "mine", "--model", "a/b"])
    assert done.exit_code == 0
    (tmp_path / "r.yaml").write_text(done.stdout)
    cfg = load_recipe(tmp_path / "r.yaml")
    assert (cfg.name, cfg.model.path) == ("mine", "a/b")
    assert [s.weight for s in cfg.sources] == [50, 1]
    assert "note: ai2/math 1 is one row" in done.stderr


def test_a_file_is_written_once(tmp_path: Path):
    out = tmp_path / "r.yaml"
    arguments = [*MIXER, "--out", str(out), "--split", "test"]
    done = CliRunner().invoke(import_app, arguments)
    assert (done.exit_code, done.stdout) == (0, "")
    assert f"braid plan {out}" in done.stderr
    written = out.read_text()
    assert {s.data.split for s in load_recipe(out).sources} == {"test"}
    again = CliRunner().invoke(import_app, [*arguments, "--name", "other"])
    assert isinstance(again.exception, ConfigError)
    assert "cannot be written: File exists" in str(again.exception)
    assert out.read_text() == written


@pytest.mark.parametrize("given", ["ai2/gsm", "ai2/gsm=x", "=5", "ai2/gsm=0"])
def test_rows_need_a_name_and_a_number(given: str):
    done = CliRunner().invoke(import_app, ["open-instruct", "ai2/gsm 1.0", "--rows", given])
    assert isinstance(done.exception, ConfigError)
    (problem,) = done.exception.problems
    assert problem.where == f"--rows {given}" and "NAME=25000" in problem.fix


def test_what_cannot_be_read_is_refused(tmp_path: Path):
    done = CliRunner().invoke(import_app, ["verl", str(tmp_path / "none.parquet")])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.problems[0].where == str(tmp_path / "none.parquet")
