"""reasoning-gym sources: the same items always, held-out ones apart from training ones."""

import json
import subprocess
import sys

import pytest
from pydantic import JsonValue

from configs.data import DataConfig
from configs.errors import ConfigError
from configs.schema import RewardConfig, SourceConfig
from mixing.sources.procedural import ProceduralSource
from mixing.sources.vetted import REFUSED, VETTED
from rollouts.types import Task


def source(
    dataset: str,
    *,
    size: int = 50,
    held_out: int = 20,
    seed: int = 7,
    args: dict[str, JsonValue] | None = None,
) -> SourceConfig:
    return SourceConfig(
        name="s",
        data=DataConfig(
            procedural=f"reasoning_gym/{dataset}",
            size=size,
            held_out=held_out,
            seed=seed,
            args=args or {},
        ),
        rewards=(RewardConfig(name="r", use="reasoning_gym"),),
    )


SMALL: dict[str, JsonValue] = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
"""200 different questions in all: training and held-out streams collide all the time."""


def questions(opened: ProceduralSource) -> tuple[list[str], list[str]]:
    train = [opened.task(i).prompt[-1].content for i in range(opened.size)]
    return train, [t.prompt[-1].content for t in opened.held_out()]


def test_held_out_items_are_disjoint_even_where_seeds_alone_would_collide() -> None:
    opened = ProceduralSource(source("chain_sum", size=500, held_out=60, args=SMALL))
    raw = opened._raw_train  # pyright: ignore[reportPrivateUsage]
    train, held_out = questions(opened)
    assert len(set(held_out)) == 60
    assert {str(raw[i]["question"]) for i in range(500)} & set(held_out)
    assert not set(train) & set(held_out)


def test_items_depend_on_nothing_but_their_number() -> None:
    forward, backward = (ProceduralSource(source("chain_sum", args=SMALL)) for _ in range(2))
    backwards = [backward.task(i) for i in reversed(range(50))][::-1]
    assert [forward.task(i) for i in range(50)] == backwards
    assert forward.held_out() == backward.held_out()
    other = ProceduralSource(source("chain_sum", args=SMALL, seed=8))
    assert [other.task(i) for i in range(50)] != backwards
    assert other.fingerprint != forward.fingerprint == backward.fingerprint


def test_items_are_the_same_in_another_process() -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "from configs.schema import SourceConfig\n"
        "from mixing.sources.procedural import ProceduralSource\n"
        "s = ProceduralSource(SourceConfig.model_validate_json(sys.argv[1]))\n"
        "print([s.task(i).prompt[-1].content for i in range(5)])\n"
    )
    cfg = source("spell_backward")
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, cfg.model_dump_json()],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    opened = ProceduralSource(cfg)
    assert out.stdout.strip() == str([opened.task(i).prompt[-1].content for i in range(5)])


@pytest.mark.parametrize("dataset", sorted(VETTED))
def test_a_vetted_dataset_is_fit_to_train_on(dataset: str) -> None:
    import reasoning_gym

    opened = ProceduralSource(source(dataset, size=8, held_out=4))
    scorer = reasoning_gym.create_dataset(dataset, seed=0, size=1)
    for task in [*(opened.task(i) for i in range(8)), *opened.held_out()]:
        entry = json.loads(json.dumps(task.metadata["entry"]))
        assert task.answer == entry["answer"]
        assert scorer.score_answer(task.answer, entry) == 1.0
        for garbage in ("", "xyzzy", "?? 9**9**9 ??", "[]"):
            assert scorer.score_answer(garbage, entry) <= 0.1


def test_ids_and_metadata() -> None:
    opened = ProceduralSource(source("lcm"))
    task: Task = opened.task(3)
    assert (task.task_id, task.source) == ("s/train/3", "s")
    assert opened.held_out()[2].task_id == "s/held_out/2"
    assert task.metadata["dataset"] == "lcm"
    with pytest.raises(IndexError):
        opened.task(50)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        (source("chain_summ"), "Did you mean `reasoning_gym/chain_sum`?"),
        (source("chain_sum", args={"nope": 1}), "unexpected keyword argument 'nope'"),
        (source("chain_sum", args={"min_terms": 9, "max_terms": 2}), "max_terms must be"),
        (source("chain_sum", args={"seed": 3}), "They are keys of `data`"),
        (source("chain_sum", args=SMALL, held_out=500), "too few different questions"),
        (source("chain_sum", args=SMALL, held_out=190), "too few different questions"),
        (source("n_queens"), "executes the model's text"),
        (source("game_of_life_halting"), "pays full reward for any text"),
    ],
)
def test_what_cannot_work_is_refused(cfg: SourceConfig, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ProceduralSource(cfg)
    assert words in str(caught.value) and "sources.s.data" in str(caught.value)


def test_the_lists_name_real_datasets() -> None:
    from reasoning_gym.factory import DATASETS

    assert set(DATASETS) >= VETTED
    assert not VETTED & set(REFUSED)
