"""JSONL sources: what a row may be, errors with file and line, a split without leaks."""

import json
from pathlib import Path

import pytest

from configs.data import DataConfig
from configs.errors import ConfigError
from configs.schema import RewardConfig, SourceConfig
from mixing.sources.opening import open_source
from mixing.sources.table_source import TableSource
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
        (
            '{"messages": [{"role": "system", "content": ""}, {"role": "user", "content": ""}], '
            '"answer": "x"}',
            "keep one",
        ),
        ('{"messages": [{"role": "assistant", "content": ""}], "answer": "x"}', "ends with"),
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
        open_source(source(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match="has no rows"):
        TableSource(source(write(tmp_path / "g.jsonl", [])))


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    one = TableSource(source(write(tmp_path / "h.jsonl", rows(5))))
    same = TableSource(source(write(tmp_path / "i.jsonl", rows(5))))
    other = TableSource(source(write(tmp_path / "j.jsonl", rows(6))))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_rows_are_read_by_their_offset_in_any_order_and_as_often_as_asked(tmp_path: Path) -> None:
    given = [
        {"prompt": f"fråga {i} " + "ü" * (i % 7), "answer": str(i), "deep": {"i": [i]}}
        for i in range(200)
    ]
    text = "\ufeff" + "\r\n".join(
        json.dumps(r, ensure_ascii=i % 2 == 0) for i, r in enumerate(given)
    )
    path = tmp_path / "k.jsonl"
    path.write_bytes(text.encode())
    opened = TableSource(source(path, held_out=20))
    for item in [*range(179, -1, -1), 3, 3]:
        task = opened.task(item)
        row = given[int(task.task_id.rsplit("/", 1)[1]) - 1]
        assert task.prompt == (Message(role="user", content=row["prompt"]),)
        assert task.answer == row["answer"] and task.metadata == {"deep": row["deep"]}
    with pytest.raises(IndexError):
        opened.task(180)


def test_several_files_are_one_source_and_ids_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "one.jsonl", rows(4))
    write(
        tmp_path / "sub" / "two.jsonl", [{"prompt": f"other {i}", "answer": ""} for i in range(4)]
    )
    opened = TableSource(source(tmp_path / "**" / "*.jsonl", held_out=2))
    tasks = [*(opened.task(i) for i in range(opened.size)), *opened.held_out()]
    assert sorted(t.task_id.split("/", 2)[2] for t in tasks) == [
        *(f"one.jsonl:{i}" for i in range(1, 5)),
        *(f"sub/two.jsonl:{i}" for i in range(1, 5)),
    ]


def test_a_file_that_changes_under_the_run_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "l.jsonl", rows(5))
    opened = TableSource(source(path))
    write(path, [{"prompt": f"z{i}", "answer": f"a{i}", "level": i} for i in range(5)])
    with pytest.raises(ConfigError, match=r"l\.jsonl:\d: the file changed after"):
        opened.task(0)
    write(path, rows(5))
    assert opened.task(0).prompt == TableSource(source(path)).task(0).prompt
    write(path, [{"prompt": f"q{i}", "answer": f"b{i}", "level": i} for i in range(5)])
    with pytest.raises(ConfigError, match="the file changed after"):  # by its answer alone
        opened.task(1)
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        opened.task(2)


def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", rows(3))
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff"}\n')
    with pytest.raises(ConfigError, match=r"m\.jsonl:4: not UTF-8"):
        TableSource(source(path))


def test_the_fingerprint_is_the_same_on_another_machine(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there" / "deeper"
    for folder in (here, there):
        folder.mkdir(parents=True)
        write(folder / "rows.jsonl", rows(9))
    one, two = (TableSource(source(folder / "rows.jsonl")) for folder in (here, there))
    assert one.fingerprint == two.fingerprint
    other_split = TableSource(source(here / "rows.jsonl", held_out=2))
    other_prompt = TableSource(source(here / "rows.jsonl", instruction="Be brief."))
    assert len({one.fingerprint, other_split.fingerprint, other_prompt.fingerprint}) == 3
