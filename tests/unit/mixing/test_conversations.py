"""Rows of conversations: what is read, what is refused, and who is drawn when."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import ConfigError
from configs.sft import PreferenceDataConfig, SftDataConfig
from mixing.tables.conversations import (
    conversations,
    num_steps,
    open_rows,
    preferences,
    rows_of_step,
)

ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def write(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(path: str, **more: Any) -> SftDataConfig:
    return SftDataConfig.model_validate({"jsonl": [path], **more})


def row(i: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"q{i}"}, SAY], "n": i}


def test_what_is_trained_on(tmp_path: Path):
    talk = [ASK, {**SAY, "weight": 0}, ASK, SAY, ASK, {**SAY, "weight": 1}]
    path = write(tmp_path, [{"messages": talk}])
    for train_on, expected in (("all", [3, 5]), ("last", [5])):
        data = config(path, train_on=train_on)
        rows, held_out = open_rows(data, conversations(data))
        assert [i for i, t in enumerate(rows[0].trained) if t] == expected
        assert rows[0].name == f"{path}:1"
        assert len(held_out) == 0


def test_content_in_parts_and_another_column(tmp_path: Path):
    parts = {"role": "developer", "content": [{"type": "text", "text": "be "}, {"text": "brief"}]}
    path = write(tmp_path, [{"talk": [parts, ASK, SAY], "kind": "x"}, {"kind": "y"}])
    data = config(path, messages="talk", where={"kind": "x"})
    (found,) = [open_rows(data, conversations(data))[0][0]]
    assert (found.messages[0].role, found.messages[0].content) == ("system", "be brief")


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([ASK], "no assistant's message"),
        ([SAY, ASK], "nothing was asked"),
        ([], "not empty"),
        ("text", "must be a list"),
        ([ASK, {"role": "assistant"}], "`role` and `content`"),
        ([ASK, {"role": "assistant", "content": None, "tool_calls": []}], "tool_calls"),
        ([ASK, {"role": "bot", "content": "a"}], "role 'bot'"),
        ([ASK, {**SAY, "weight": 0.5}], "must be 0 or 1"),
        ([ASK, {**SAY, "weight": 0}], "weight 0"),
        ([ASK, {"role": "assistant", "content": [{"type": "image"}]}], "parts that are all text"),
        ([ASK, {"role": "assistant", "content": 7}], "must be text"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, messages: Any, says: str):
    path = write(tmp_path, [row(0), {"messages": messages}])
    data = config(path)
    with pytest.raises(ConfigError) as error:
        open_rows(data, conversations(data))
    (problem,) = error.value.problems
    assert problem.where == f"{path}:2"
    assert says in problem.what


def test_no_rows_and_too_few_are_refused(tmp_path: Path):
    path = write(tmp_path, [row(0), row(1)])
    for more, where in (({"where": {"n": 7}}, "data.where"), ({"held_out": 2}, "data.held_out")):
        data = config(path, **more)
        with pytest.raises(ConfigError) as error:
            open_rows(data, conversations(data))
        assert error.value.problems[0].where.startswith(where)


def test_the_split_goes_by_the_prompt_and_not_by_the_order(tmp_path: Path):
    rows = [row(i % 30) for i in range(60)]
    one = config(write(tmp_path, rows), held_out=7)
    other = config(write(tmp_path, rows[::-1], "back.jsonl"), held_out=7)
    sides = []
    for data in (one, other):
        training, held_out = open_rows(data, conversations(data))
        asked = [{r[i].messages[0].content for i in range(len(r))} for r in (training, held_out)]
        assert len(training) == 46 and len(held_out) == 7
        assert not asked[0] & asked[1]
        sides.append(asked)
    assert sides[0] == sides[1]


def test_held_out_rows_of_a_file_of_their_own(tmp_path: Path):
    apart = write(tmp_path, [row(9)], "apart.jsonl")
    data = config(write(tmp_path, [row(0), row(1)]), held_out_file=[apart])
    training, held_out = open_rows(data, conversations(data))
    assert (len(training), len(held_out)) == (2, 1)
    assert held_out[0].messages[0].content == "q9"


def test_parquet_says_the_same(tmp_path: Path):
    rows = [row(i) for i in range(5)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    data = SftDataConfig(parquet=(str(path),))
    found, _ = open_rows(data, conversations(data))
    assert [found[i].messages[0].content for i in range(5)] == [f"q{i}" for i in range(5)]


def test_a_file_that_changed_is_noticed(tmp_path: Path):
    path = write(tmp_path, [row(0), row(1)])
    data = config(path)
    rows, _ = open_rows(data, conversations(data))
    write(tmp_path, [row(5), row(6)])
    with pytest.raises(ConfigError, match="changed"):
        rows[0]


@given(
    size=st.integers(1, 60), per=st.integers(1, 70), epochs=st.integers(1, 4), seed=st.integers()
)
def test_every_row_is_drawn_once_an_epoch(size: int, per: int, epochs: int, seed: int):
    steps = num_steps(size, epochs=epochs, rows_per_step=per)
    end = size * epochs
    drawn = [
        rows_of_step(s, size=size, rows_per_step=per, seed=seed, end=end)
        for s in range(1, steps + 1)
    ]
    assert all(drawn)
    flat = [i for step in drawn for i in step]
    assert Counter(flat) == dict.fromkeys(range(size), epochs)
    for epoch in range(epochs):
        assert sorted(flat[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert rows_of_step(steps + 1, size=size, rows_per_step=per, seed=seed, end=end) == []
    endless = rows_of_step(steps + 1, size=size, rows_per_step=per, seed=seed)
    assert len(endless) == per


def test_the_order_is_the_seeds_and_differs_from_epoch_to_epoch():
    def epoch(seed: int, number: int) -> list[int]:
        return rows_of_step(number, size=50, rows_per_step=50, seed=seed)

    assert epoch(1, 1) == epoch(1, 1) != epoch(2, 1)
    assert epoch(1, 1) != epoch(1, 2)


def preference(**row: Any) -> dict[str, Any]:
    return {"prompt": "q", "chosen": "good", "rejected": "bad", **row}


def test_preferences_as_text_and_as_conversations(tmp_path: Path):
    whole = {"chosen": [ASK, SAY], "rejected": [ASK, {**SAY, "content": "b"}]}
    rows = [preference(), preference(prompt=[ASK, SAY, ASK]), whole]
    data = PreferenceDataConfig(jsonl=(write(tmp_path, rows),))
    found, _ = open_rows(data, preferences(data))
    said = [[(m.role, m.content) for m in found[i].chosen] for i in range(3)]  # type: ignore[union-attr]
    assert said == [
        [("user", "q"), ("assistant", "good")],
        [("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "good")],
        [("user", "q"), ("assistant", "a")],
    ]
    assert found[0].rejected[-1].content == "bad"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (preference(rejected="good"), "are the same"),
        (preference(prompt=None), "must hold what it replies to"),
        ({"chosen": [ASK, SAY]}, "has no `rejected`"),
        (preference(chosen=[ASK]), "must end with an assistant's message"),
        (
            {"chosen": [ASK, SAY], "rejected": [{**ASK, "content": "other"}, SAY]},
            "answer different prompts",
        ),
    ],
)
def test_malformed_preferences_are_named(tmp_path: Path, row: dict[str, Any], says: str):
    data = PreferenceDataConfig(jsonl=(write(tmp_path, [row]),))
    with pytest.raises(ConfigError) as error:
        open_rows(data, preferences(data))
    assert says in error.value.problems[0].what
