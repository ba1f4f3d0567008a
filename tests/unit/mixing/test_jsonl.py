"""JSONL sources: what a row may be, errors with file and line, a split without leaks."""

import json
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.schema import DataConfig, RewardConfig, SourceConfig
from mixing.table_source import TableSource
from rollouts.types import Message


def source(path: Path, *, held_out: int = 1, instruction: str = "") -> SourceConfig:
    return SourceConfig(
        name="rows",
        data=DataConfig(jsonl=str(path), held_out=held_out),
        rewards=(RewardConfig(name="r", use="exact"),),
        instruction=instruction,
    )


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def rows(n: int) -> list[object]:
    return [{"prompt": f"q{i}", "answer": f"a{i}", "level": i} for i in range(n)]


def test_rows_become_tasks(tmp_path: Path) -> None:
    given = [
        {"prompt": "one", "answer": 1, "tag": ["x"]},
        "",
        {"messages": [{"role": "user", "content": "two"}], "answer": None},
        {"prompt": "three", "answer": "drei"},
    ]
    opened = TableSource(source(write(tmp_path / "a.jsonl", given), instruction="Be brief."))
    tasks = [*(opened.task(i) for i in range(opened.size)), *opened.held_out()]
    by_line = {t.task_id.rsplit("/", 1)[1]: t for t in tasks}
    assert set(by_line) == {"1", "3", "4"} and opened.size == 2
    assert by_line["1"].prompt == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="one"),
    )
    assert by_line["1"].answer == "1" and by_line["1"].metadata == {"tag": ["x"]}
    assert by_line["3"].answer is None and by_line["4"].answer == "drei"
    assert opened.held_out()[0].task_id.startswith("rows/held_out/")
    assert opened.task(0).task_id.startswith("rows/train/")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('{"prompt": "x", "answer": ', "not JSON"),
        ("[1]", "must be an object"),
        ('{"answer": "x"}', "neither of `prompt` and `messages`"),
        ('{"prompt": "x", "messages": [], "answer": "x"}', "both of"),
        ('{"prompt": "", "answer": "x"}', "not empty"),
        ('{"prompt": "x"}', "has no `answer`"),
        ('{"prompt": "x", "answer": true}', "`answer` must be"),
        ('{"prompt": "x", "answer": NaN}', "NaN is not JSON"),
        ('{"messages": [{"role": "user"}], "answer": "x"}', "exactly `role` and `content`"),
        ('{"messages": [{"role": "bot", "content": ""}], "answer": "x"}', "'bot'"),
        ('{"messages": [{"role": "system", "content": ""}], "answer": "x"}', "keep one"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, bad: str, words: str) -> None:
    path = write(tmp_path / "b.jsonl", [*rows(3), bad, *rows(2)])
    with pytest.raises(ConfigError) as caught:
        TableSource(source(path, instruction="Be brief."))
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:4" and words in problem.what


def test_all_bad_rows_are_told_up_to_a_screenful(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        TableSource(source(write(tmp_path / "c.jsonl", ["{"] * 30)))
    assert len(caught.value.problems) == 21
    assert "10 more malformed rows" in str(caught.value)


def test_the_split_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    forward = TableSource(source(write(tmp_path / "d.jsonl", rows(50)), held_out=10))
    backward = TableSource(source(write(tmp_path / "e.jsonl", rows(50)[::-1]), held_out=10))
    assert {t.prompt for t in forward.held_out()} == {t.prompt for t in backward.held_out()}
    assert len(forward.held_out()) == 10 and forward.size == 40


def test_no_training_row_has_a_held_out_prompt(tmp_path: Path) -> None:
    doubled = [{**row, "copy": k} for row in rows(30) for k in range(3) if isinstance(row, dict)]
    opened = TableSource(source(write(tmp_path / "f.jsonl", list(doubled)), held_out=10))
    held = {t.prompt for t in opened.held_out()}
    assert len(held) == 10
    assert opened.size == 60
    assert not held & {opened.task(i).prompt for i in range(opened.size)}


def test_too_few_rows_and_a_missing_file_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 different prompts"):
        TableSource(source(write(tmp_path / "g.jsonl", rows(3)), held_out=3))
    with pytest.raises(ConfigError, match="there is no file"):
        TableSource(source(tmp_path / "none.jsonl"))


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    one = TableSource(source(write(tmp_path / "h.jsonl", rows(5))))
    same = TableSource(source(write(tmp_path / "i.jsonl", rows(5))))
    other = TableSource(source(write(tmp_path / "j.jsonl", rows(6))))
    assert one.fingerprint == same.fingerprint != other.fingerprint
