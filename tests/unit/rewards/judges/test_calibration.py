"""Judges against people: statistics by hand and by brute force, and whole calibrations."""

import asyncio
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from configs.graders.union import GRADER
from rewards.judges.agreement import agreement, confusion, kappa, nearest, pearson, spearman
from rewards.judges.calibration import (
    Anchor,
    Calibration,
    JudgesAlone,
    calibrate,
    drift,
    read_anchors,
)
from rewards.score import GradeFailed

GRADER_JSON = {
    "type": "score_model",
    "model": "j",
    "fence": False,
    "explain": False,
    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
}


def test_kappa_of_a_worked_example():
    # Cohen's kappa of 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: 0.7 seen, 0.5 by chance
    table = [[15, 10], [5, 20]]
    assert agreement(table) == 0.7
    assert kappa(table, [0, 1]) == pytest.approx(0.4)
    assert kappa(table, [0, 1], squared=True) == pytest.approx(0.4)


def test_a_squared_weight_forgives_near_misses():
    near, far = [[0, 5, 0], [0, 5, 0], [0, 0, 5]], [[0, 0, 5], [0, 5, 0], [0, 0, 5]]
    levels = [0.0, 1.0, 2.0]
    assert kappa(near, levels) == kappa(far, levels)
    squared = [kappa(t, levels, squared=True) for t in (near, far)]
    assert squared[0] is not None and squared[1] is not None
    assert squared[0] > squared[1]


@pytest.mark.parametrize("seed", range(40))
def test_statistics_against_brute_force(seed: int):
    rng = random.Random(seed)
    levels = sorted(rng.sample(range(10), rng.randint(2, 4)))
    people = [float(rng.choice(levels)) for _ in range(30)]
    judge = [p if rng.random() < 0.5 else rng.uniform(-1, 10) for p in people]
    table = confusion(people, judge, [float(x) for x in levels])
    rounded = [nearest(j, [float(x) for x in levels]) for j in judge]
    pairs = list(itertools.product(people, rounded))
    for squared in (False, True):

        def apart(a: float, b: float, squared: bool = squared) -> float:
            return (a - b) ** 2 if squared else float(a != b)

        chance = sum(apart(a, b) for a, b in pairs) / len(pairs)
        seen = sum(map(apart, people, rounded)) / len(people)
        expected = None if chance == 0 else pytest.approx(1 - seen / chance)
        assert kappa(table, [float(x) for x in levels], squared=squared) == expected

    def ranks(values: list[float]) -> list[float]:
        return [sum(x < v for x in values) + sum(x == v for x in values) / 2 for v in values]

    assert spearman(people, judge) == pytest.approx(pearson(ranks(people), ranks(judge)))


def test_nothing_is_made_up_where_one_side_is_constant():
    assert kappa([[7]], [1.0]) is None
    assert kappa([[0, 0], [0, 7]], [0.0, 1.0]) is None
    assert kappa([[3, 0], [4, 0]], [0.0, 1.0]) == 0
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def anchors(*labels: float) -> list[Anchor]:
    return [Anchor(sample=f"{i} " + "x" * i, label=label) for i, label in enumerate(labels)]


def run(fake, rows: list[Anchor], judged: Any, *, repeats: int = 1, **grader: Any) -> Calibration:
    """Calibrate; `judged(number, body)` is the judge's score of an anchor."""

    def reply(body, n):
        number = int(body["messages"][0]["content"].split()[0])
        found = judged(number, body)
        return fake.status(401) if found is None else fake.verdict(result=found)

    cfg = GRADER.validate_json(json.dumps({**GRADER_JSON, **grader}))

    async def scenario():
        async with fake.judging(reply, retries=0) as (panel, _):
            return await calibrate(cfg, rows, JudgesAlone(panel), repeats=repeats)

    return asyncio.run(scenario())


def test_a_judge_that_agrees(fake):
    labels = (0, 1, 1, 0, 0.5, 0.5)
    found = run(fake, anchors(*labels), lambda i, _: labels[i])
    assert (found.agreement, found.kappa, found.weighted_kappa) == (1, 1, 1)
    assert found.spearman == pytest.approx(1)
    assert (found.bias, found.failed, found.levels) == (0, {}, (0, 0.5, 1))
    assert found.confusion == ((2, 0, 0), (0, 2, 0), (0, 0, 2))
    assert found.scores == labels


def test_a_judge_that_likes_length_is_found_out(fake):
    found = run(fake, anchors(*[0, 1] * 10), lambda i, _: i / 19)
    assert found.length_bias is not None and found.length_bias > 0.4
    assert found.weighted_kappa is not None and found.weighted_kappa < 0.3


def test_a_judge_that_likes_the_first_place_is_found_out(fake):
    pair = {
        "input": [{"role": "user", "content": "{{ pair.first }} | {{ pair.second }}"}],
        "pair": {"reference": "{{ item.ref }}"},
    }
    rows = [a.model_copy(update={"item": {"ref": "99 r"}}) for a in anchors(0, 1, 0, 1)]
    found = run(fake, rows, lambda i, _: 0.9, **pair)
    assert found.position_bias == pytest.approx(0.8)
    assert set(found.scores) == {0.5}


def test_repeats_show_an_unsteady_judge(fake):
    first: set[int] = set()

    def moody(number: int, body: object) -> float:
        again = number in first
        first.add(number)
        return float(number % 2 == 0) if again else 1.0

    found = run(fake, anchors(1, 0, 1, 0), moody, repeats=2)
    assert found.repeatable == 0.5
    assert run(fake, anchors(1, 0), lambda i, _: 1.0).repeatable is None


def test_what_failed_is_counted_and_left_out(fake):
    found = run(fake, anchors(0, 1, 1, 0), lambda i, _: None if i == 2 else float(i == 1))
    assert found.failed == {"model_grader_server_error": 1}
    assert (found.agreement, found.scores[2]) == (1, None)
    with pytest.raises(GradeFailed):
        run(fake, anchors(0, 1), lambda i, _: None)


def test_versions_differ_by_prompt_and_drift_is_shown(fake):
    rows = anchors(0, 1, 0, 1)
    before = run(fake, rows, lambda i, _: float(i % 2))
    same = run(fake, rows, lambda i, _: float(i % 2))
    text = [{"role": "user", "content": "{{ sample.output_text }} Be harsh."}]
    after = run(fake, rows, lambda i, _: 0.0 if i == 3 else float(i % 2), input=text)
    assert before.prompt_hash == same.prompt_hash != after.prompt_hash
    assert before.version != after.version
    moved = drift(json.loads(json.dumps(before.to_json())), after)
    assert moved is not None
    assert (moved.changed, moved.shift, moved.kappa_before) == (0.25, -0.25, 1.0)
    assert drift(after.to_json(), after) is None
    assert drift({**before.to_json(), "anchors_hash": "other"}, after) is None


def test_anchors_are_read_with_every_mistake_named(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"sample": "x", "label": 1}\n\n{"sample": "y", "label": 0, "prompt": "q"}\n')
    assert [a.label for a in read_anchors(path)] == [1, 0]
    path.write_text('{"sample": "x"}\nno\n{"sample": "x", "label": "1"}\n{"sample": 1, "lab": 1}\n')
    with pytest.raises(ConfigError) as error:
        read_anchors(path)
    assert [p.where.rsplit(":", 1)[1] for p in error.value.problems] == ["1", "2", "3", "4"]
    path.write_text('{"sample": "x", "label": 1}\n')
    with pytest.raises(ConfigError, match="fewer than two"):
        read_anchors(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_anchors(tmp_path / "none.jsonl")


def test_anchors_hold_every_character_that_json_may(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    row = json.dumps({"sample": "one\u2028two\x85three", "label": 1.0}, ensure_ascii=False)
    path.write_text(f"{row}\r\n{row}\n", encoding="utf-8", newline="")
    assert [a.sample for a in read_anchors(path)] == ["one\u2028two\x85three"] * 2


def test_anchors_that_are_no_text_are_a_message(tmp_path: Path):
    path = tmp_path / "anchors.jsonl"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_anchors(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        read_anchors(tmp_path / "nope.jsonl")
    path.write_text("no\n")
    with pytest.raises(ConfigError, match="is no anchor: Invalid JSON"):
        read_anchors(path)
