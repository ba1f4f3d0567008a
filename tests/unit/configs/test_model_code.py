"""A model's own Python: runs where it is pinned, and nowhere else."""

import json
from pathlib import Path

import pytest

from configs.engines import ModelConfig
from configs.errors import ConfigError
from configs.load import load_recipe
from configs.model_code import check_code, code_hash, code_options

COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUICKSTART = Path(__file__).parents[3] / "configs" / "recipes" / "quickstart.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "m.Model"}}))
    (tmp_path / "m.py").write_text("class Model: ...\n")
    return tmp_path


def words(path: object, pin: str | None) -> str:
    model = ModelConfig(path=str(path), trust_remote_code=pin)
    return " ".join(f"{p.what} {p.fix}" for p in check_code(model, "model"))


def test_a_folder_s_code_runs_as_it_was_read(folder: Path):
    pin = code_hash(folder)
    assert pin is not None
    assert pin in words(folder, None) and "auto_map" in words(folder, None)
    assert words(folder, pin) == ""
    pinned = ModelConfig(path=str(folder), trust_remote_code=pin)
    assert code_options(pinned) == {"trust_remote_code": True}
    (folder / "m.py").write_text("import os\n")
    assert "differs" in words(folder, pin) and str(code_hash(folder)) in words(folder, pin)
    with pytest.raises(ConfigError, match=r"model\.trust_remote_code"):
        code_options(pinned)
    assert "pins a commit" in words(folder, COMMIT)


def test_names_count_as_content_does(folder: Path):
    before = code_hash(folder)
    (folder / "m.py").rename(folder / "n.py")
    assert code_hash(folder) != before
    (folder / "sub").mkdir()
    after = code_hash(folder)
    (folder / "sub" / "x.py").write_text("")
    assert code_hash(folder) not in (before, after)


def test_a_hub_name_is_pinned_by_its_commit(folder: Path):
    assert words("org/model", None) == "" and words("org/model", COMMIT) == ""
    assert "40 hex digits" in words("org/model", code_hash(folder))
    options = code_options(ModelConfig(path="org/model", trust_remote_code=COMMIT))
    assert options == {
        "trust_remote_code": True,
        "revision": COMMIT,
        "code_revision": COMMIT,
    }
    assert code_options(ModelConfig(path="org/model")) == {"trust_remote_code": False}


def test_plain_folders_need_no_pin(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert words(tmp_path, None) == ""
    assert "no Python of its own" in words(tmp_path, "sha256:" + "0" * 64)


@pytest.mark.parametrize(
    ("value", "word"), [("true", "pin what you read"), ("main", "40 hex digits"), ("1", "text")]
)
def test_trust_without_a_pin_is_refused(value: str, word: str):
    with pytest.raises(ConfigError, match=word):
        load_recipe(QUICKSTART, [f"model.trust_remote_code={value}"])


def test_false_is_what_it_was():
    cfg = load_recipe(QUICKSTART, ["model.trust_remote_code=false"])
    assert cfg.model.trust_remote_code is None
