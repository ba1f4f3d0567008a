"""Column maps, nested columns, reinforcement fine-tuning rows, ids, metadata."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.data import DataConfig
from configs.errors import ConfigError
from configs.schema import SourceConfig
from mixing.sources.opening import open_source
from mixing.sources.source import Source
from mixing.tables.rows import RowReader
from rollouts.types import Message, Task

MakeSource = Callable[..., SourceConfig]
USER = Message(role="user", content="q")


def reader(**data: object) -> RowReader:
    return RowReader(DataConfig.model_validate({"jsonl": "x", **data}), instructed=False)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tasks(source: Source) -> list[Task]:
    return [*(source.task(i) for i in range(source.size)), *source.held_out()]


def test_columns_are_mapped_and_the_rest_is_metadata() -> None:
    item = reader(columns={"prompt": "question", "answer": "gold", "id": "uid"}).read(
        {"question": "q", "gold": 0.5, "uid": 7, "prompt": "not this", "level": 3}
    )
    assert (item.prompt, item.answer, item.id) == ((USER,), "0.5", "7")
    assert item.metadata == {"uid": 7, "prompt": "not this", "level": 3}


def test_a_verl_row_is_read_by_nested_columns() -> None:
    row: dict[str, Any] = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        "reward_model": {"style": "rule", "ground_truth": "72"},
        "extra_info": {"index": 5, "split": "train"},
    }
    mapped = {"messages": "prompt", "answer": "reward_model.ground_truth", "id": "extra_info.index"}
    item = reader(columns=mapped).read(row)
    assert item.prompt == (Message(role="system", content="s"), USER)
    assert (item.answer, item.id) == ("72", "5")
    assert set(item.metadata) == {"data_source", "reward_model", "extra_info"}
    narrow = reader(columns={**mapped, "metadata": ["extra_info.split"]}).read(row)
    assert narrow.metadata == {"extra_info.split": "train"}


def test_a_dotted_column_of_that_very_name_comes_before_a_nested_one() -> None:
    item = reader(columns={"answer": "a.b"}).read(
        {"prompt": "q", "a.b": "flat", "a": {"b": "deep"}}
    )
    assert item.answer == "flat"


def test_rft_rows_give_their_free_keys_to_graders() -> None:
    row: dict[str, Any] = {
        "messages": [
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "q"}], "name": None},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "reference": {"value": 3},
        "answer": ["a", "list"],
    }
    item = reader(format="rft").read(row)
    assert item.prompt == (Message(role="system", content="d"), USER)
    assert item.answer is None
    assert item.metadata == {k: row[k] for k in ("tools", "reference", "answer")}
    assert reader(format="rft", columns={"answer": "reference.value"}).read(row).answer == "3"


@pytest.mark.parametrize(
    ("row", "data", "words"),
    [
        ({"prompt": "x"}, {"format": "rft"}, "has no `messages`"),
        ({"messages": "x"}, {"format": "rft"}, "`messages` must be a list"),
        ({"messages": [], "answer": ""}, {}, "`messages` must be a list that is not empty"),
        (
            {"messages": [{"role": "user", "content": "q"}], "tools": {"a": 1}},
            {"format": "rft"},
            "`tools` must be a list of tool definitions",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            {"format": "rft"},
            "parts that are all text",
        ),
        (
            {"messages": [{"role": "user", "content": "q", "tool_calls": [1]}]},
            {"format": "rft"},
            "it has tool_calls, which prompts cannot carry",
        ),
        ({"prompt": [{"role": "user"}], "answer": ""}, {}, "`columns: {messages: prompt}`"),
        ({"prompt": "x", "answer": ["a"]}, {}, "`answer` must be text, a number or null"),
        ({"prompt": "x", "a": {}}, {"columns": {"answer": "a.b"}}, "has no `a.b`; write null"),
        ({"prompt": "x", "answer": ""}, {"columns": {"id": "id"}}, "has no `id`"),
        (
            {"prompt": "x", "answer": "", "id": True},
            {"columns": {"id": "id"}},
            "`id` must be text or a whole number",
        ),
        (
            {"prompt": "x", "answer": "", "id": "a\nb"},
            {"columns": {"id": "id"}},
            "printable characters",
        ),
        (
            {"prompt": "x", "answer": ""},
            {"columns": {"metadata": ["level"]}},
            "has no `level`",
        ),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row: dict[str, Any], data: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        reader(**data).read(row)
    assert words in str(caught.value)


def test_ids_come_from_their_column_and_are_unique(make_source: MakeSource, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "answer": "", "uid": f"item {i}"} for i in range(30)]
    path = write(tmp_path / "a.jsonl", rows)
    opened = open_source(make_source(jsonl=path, columns={"id": "uid"}))
    assert {t.task_id.split("/", 2)[2] for t in tasks(opened)} == {r["uid"] for r in rows}
    rows[20]["uid"] = "item 4"
    write(path, rows)
    with pytest.raises(ConfigError) as caught:
        open_source(make_source(jsonl=path, columns={"id": "uid"}))
    (problem,) = caught.value.problems
    assert problem.where == "sources.s.data.columns.id"
    assert f"ids are not unique: {path}:5 and {path}:21 (item 4)" in problem.what
    assert "unique" in problem.fix


def test_a_column_that_no_row_has_is_told_once_with_the_nearest(
    make_source: MakeSource, tmp_path: Path
) -> None:
    path = write(
        tmp_path / "a.jsonl", [{"question": f"q{i}", "gold": {"truth": 1}} for i in range(50)]
    )
    for columns, where, fix in (
        ({"prompt": "quesiton", "answer": "gold.truth"}, "prompt", "Did you mean `question`?"),
        ({"prompt": "question", "answer": "gold.truht"}, "answer", "Did you mean `gold.truth`?"),
        ({}, "prompt", "Columns: question, gold."),
    ):
        with pytest.raises(ConfigError) as caught:
            open_source(make_source(jsonl=path, columns=columns))
        (problem,) = caught.value.problems
        assert (problem.where, problem.fix) == (f"sources.s.data.columns.{where}", fix)
        assert "no row has a column" in problem.what
