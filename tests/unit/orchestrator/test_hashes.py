"""Hashes of what a run is made of: one changed line, file or weight is found and named."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load_recipe
from configs.schema import RunConfig
from orchestrator.planning.plug_files import find_module, own_modules
from orchestrator.records.hashes import Change, Hashed, changes, run_hashes, silent_changes
from orchestrator.records.run_dir import RunDir

GRADER = """
from my_lib_of_test.parse import number

def close(rollout, task) -> float:
    return 1.0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a grader, a package that it imports, a rubric, a model."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_grader_of_test.py").write_text(GRADER)
    package = tmp_path / "my_lib_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parse.py").write_text("import json\nfrom . import deep\nfrom typing import Any\n")
    (package / "deep.py").write_text("import numpy, rewards.graders\nX = 1\n")
    (package / "unused.py").write_text("Y = 1\n")
    (tmp_path / "rubric.txt").write_text("be kind")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [50_000]}}).encode()
    body = bytes(200_000)
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + body)
    return tmp_path


def config(folder: Path, **changes: object) -> RunConfig:
    reward = {
        "name": "right",
        "use": "my_grader_of_test:close",
        "args": {"rubric": str(folder / "rubric.txt"), "nested": {"n": [1, "no/file.txt"]}},
    }
    source = {"name": "mine", "data": {"jsonl": str(folder / "rows.jsonl")}, "rewards": [reward]}
    base = {
        "name": "small",
        "num_steps": 3,
        "model": {"path": str(folder / "model")},
        "sources": [source],
        "batch": {"groups_per_step": 1},
    }
    return RunConfig.model_validate({**base, **changes})


def hashes(folder: Path, **changes: object) -> dict[str, Hashed]:
    return run_hashes(config(folder, **changes), {"mine": "f1"})


def test_everything_that_the_run_rests_on_has_a_hash(folder: Path):
    keys = {k for k in hashes(folder) if not k.startswith("recipe.")}
    assert keys == {
        "sources.mine.data",
        "package.braid",
        "code.my_grader_of_test",
        "code.my_lib_of_test",
        "code.my_lib_of_test.parse",
        "code.my_lib_of_test.deep",
        "code.environments.environment",
        "code.rollouts.advantages",
        "code.trainer.objectives",
        "sources.mine.rewards.right.args.rubric",
        "model.config.json",
        "model.tokenizer.json",
        "model.model.safetensors",
    }
    assert hashes(folder) == hashes(folder)
    recipe = {k.removeprefix("recipe.") for k in hashes(folder) if k.startswith("recipe.")}
    assert recipe == set(RunConfig.model_fields)


def test_procedural_data_rest_on_the_package_that_makes_them(folder: Path):
    source = config(folder).sources[0].model_dump()
    source["data"] = {"procedural": "reasoning_gym/lcm"}
    found = hashes(folder, sources=[source])
    assert found["package.reasoning-gym"].hash.count(".") >= 1
    assert found["sources.mine.data"].of == "reasoning_gym/lcm"


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda f: append(f / "my_grader_of_test.py", "# a line\n"), "code.my_grader_of_test"),
        (lambda f: append(f / "my_lib_of_test/deep.py", "X = 2\n"), "code.my_lib_of_test.deep"),
        (
            lambda f: append(f / "rubric.txt", "!"),
            "sources.mine.rewards.right.args.rubric",
        ),
        (lambda f: append(f / "model/tokenizer.json", " "), "model.tokenizer.json"),
        (lambda f: (f / "model/chat_template.jinja").write_text("x"), "model.chat_template.jinja"),
        (lambda f: (f / "model/config.json").unlink(), "model.config.json"),
        (lambda f: flip(f / "model/model.safetensors", 0), "model.model.safetensors"),
        (lambda f: flip(f / "model/model.safetensors", -1), "model.model.safetensors"),
    ],
)
def test_one_change_is_found_and_named(folder: Path, change: Callable[[Path], object], key: str):
    before = hashes(folder)
    change(folder)
    (found,) = changes(before, hashes(folder))
    assert found.what == key
    (problem,) = silent_changes([found], 4)
    assert problem.where == key and "since attempt 4" in problem.what
    assert "--accept-changes" in problem.fix
    for side in (found.before, found.after):
        assert side is None or (side.hash in problem.what and side.of in problem.what)


def test_weights_of_a_retrained_model_differ(folder: Path):
    path = folder / "model" / "model.safetensors"
    before, size = hashes(folder), path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000] + bytes([7]) * (size - 1000))
    assert [c.what for c in changes(before, hashes(folder))] == ["model.model.safetensors"]


def test_what_nothing_imports_may_change(folder: Path):
    before = hashes(folder)
    append(folder / "my_lib_of_test" / "unused.py", "Y = 2\n")
    assert changes(before, hashes(folder)) == []


def test_recipe_sections_are_kept_and_compared_elsewhere(folder: Path):
    before, after = hashes(folder), hashes(folder, num_steps=4)
    assert before["recipe.num_steps"] != after["recipe.num_steps"]
    assert changes(before, after) == []


def test_a_model_not_on_this_machine_is_not_compared(folder: Path):
    here = hashes(folder)
    elsewhere = hashes(folder, model={"path": "org/model"})
    assert not any(k.startswith("model.") for k in elsewhere)
    assert changes(here, elsewhere) == changes(elsewhere, here) == []


def test_a_syntax_error_and_a_missing_module_are_left_to_the_checks(folder: Path):
    (folder / "my_lib_of_test" / "parse.py").write_text("def (:\n")
    assert "my_lib_of_test.parse" in own_modules("my_grader_of_test")
    assert own_modules("no_such_module_of_test") == {}
    assert find_module("sys") is None and find_module("no_such.module") is None


def test_nothing_is_imported_to_find_a_plug_s_files(folder: Path):
    (folder / "my_lib_of_test" / "__init__.py").write_text("raise SystemExit('imported')\n")
    assert len(own_modules("my_lib_of_test.parse")) == 3


def test_installed_plugs_keep_to_their_own_package():
    found = own_modules("pydantic.types")
    assert "pydantic.types" in found and "pydantic" in found
    assert all(name.split(".")[0] == "pydantic" for name in found)


class TestRunDirectory:
    """What `braid run --resume auto` does with changes."""

    @staticmethod
    def attempt(path: Path, folder: Path, *, accept: bool = False) -> dict[str, object]:
        cfg = config(folder)
        with RunDir.open(
            path, cfg, "auto", hashes=hashes(folder), accept_changes=accept
        ) as directory:
            accepted = directory.accepted
        record = json.loads((path / "run.json").read_text())["attempts"][-1]
        assert [a["what"] for a in record["accepted"]] == [a.what for a in accepted]
        return record

    def test_one_changed_line_of_a_reward_refuses_until_accepted(self, folder: Path):
        run, grader = folder / "run", folder / "my_grader_of_test.py"
        first = self.attempt(run, folder)
        assert first["hashes"]["code.my_grader_of_test"]["of"] == str(grader)
        assert self.attempt(run, folder)["accepted"] == []
        grader.write_text(GRADER.replace("1.0", "0.9"))
        before = (run / "run.json").read_bytes()
        with pytest.raises(ConfigError) as caught:
            self.attempt(run, folder)
        (problem,) = caught.value.problems
        assert problem.where == "code.my_grader_of_test"
        assert str(grader) in problem.what and "since attempt 2" in problem.what
        assert first["hashes"]["code.my_grader_of_test"]["hash"] in problem.what
        assert (run / "run.json").read_bytes() == before
        record = self.attempt(run, folder, accept=True)
        (accepted,) = record["accepted"]
        assert accepted["before"] == first["hashes"]["code.my_grader_of_test"]
        assert accepted["after"] == record["hashes"]["code.my_grader_of_test"]
        assert self.attempt(run, folder)["accepted"] == []  # accepted once is enough
        grader.write_text(GRADER)
        with pytest.raises(ConfigError, match="since attempt 4"):
            self.attempt(run, folder)

    def test_all_changes_are_told_at_once(self, folder: Path):
        self.attempt(folder / "run", folder)
        append(folder / "rubric.txt", "!")
        append(folder / "my_lib_of_test" / "parse.py", "from my_lib_of_test import unused\n")
        with pytest.raises(ConfigError) as caught:
            self.attempt(folder / "run", folder)
        assert [p.where for p in caught.value.problems] == [
            "code.my_lib_of_test.parse",
            "code.my_lib_of_test.unused",
            "sources.mine.rewards.right.args.rubric",
        ]
        assert "is new" in caught.value.problems[1].what

    def test_moved_files_of_the_same_content_resume_and_others_do_not(self, folder: Path):
        run = folder / "run"

        def attempt(cfg: RunConfig, data: str = "f1") -> None:
            RunDir.open(run, cfg, "auto", hashes=run_hashes(cfg, {"mine": data})).close()

        attempt(config(folder))
        moved = folder / "elsewhere"
        moved.mkdir()
        for name in ("rows.jsonl", "rubric.txt", "model"):
            (folder / name).rename(moved / name)
        source = config(folder).sources[0].model_dump()
        source["data"]["jsonl"] = [str(moved / "rows.jsonl")]
        source["rewards"][0]["args"]["rubric"] = str(moved / "rubric.txt")
        changed = {"sources": [source], "model": {"path": str(moved / "model")}}
        attempt(config(folder, **changed))
        log = (run / "log.txt").read_text()
        for field in ("sources.mine.data.jsonl", "rewards.right.args.rubric", "model.path"):
            assert f"{field}" in log
        assert load_recipe(run / "config.yaml") == config(folder, **changed)

        source["data"]["jsonl"] = [str(moved / "others.jsonl")]
        with pytest.raises(ConfigError, match=r"sources\.mine\.data\.jsonl"):
            attempt(config(folder, **changed), data="f2")
        attempt(config(folder, **changed))
        (folder / "rubric.txt").write_text("be harsh")
        source["rewards"][0]["args"]["rubric"] = str(folder / "rubric.txt")
        with pytest.raises(ConfigError, match=r"args\.rubric"):
            attempt(config(folder, **changed))
        source["rewards"][0]["args"]["rubric"] = str(moved / "rubric.txt")
        source["data"]["held_out"] = 5
        with pytest.raises(ConfigError, match=r"data\.held_out: was 100"):
            attempt(config(folder, **changed))

    def test_a_run_from_before_there_were_hashes_goes_on(self, folder: Path):
        RunDir.open(folder / "run", config(folder), "never").close()
        assert self.attempt(folder / "run", folder)["accepted"] == []

    def test_a_locked_or_refused_directory_frees_its_lock(self, folder: Path):
        self.attempt(folder / "run", folder)
        append(folder / "rubric.txt", "!")
        for _ in range(2):
            with pytest.raises(ConfigError, match="rubric"):
                self.attempt(folder / "run", folder)


def test_a_change_reads_as_a_sentence():
    one, other = Hashed(hash="aa", of="f.py"), Hashed(hash="bb", of="f.py")
    assert str(Change(what="code.f", before=one, after=other)) == (
        "code.f: f.py changed: hash aa -> bb"
    )
    assert str(Change(what="code.f", before=None, after=other)) == "code.f: f.py is new: hash bb"
    assert str(Change(what="code.f", before=one, after=None)) == "code.f: f.py is gone: hash aa"
