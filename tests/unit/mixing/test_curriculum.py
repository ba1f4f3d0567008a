"""Levels of reasoning-gym datasets: when they move, what is made at each, what never changes."""

import json
import random

import pytest
from pydantic import JsonValue

from configs.data import DataConfig
from configs.errors import ConfigError
from configs.schema import RewardConfig, SourceConfig
from mixing.difficulty.curriculum import Curriculum, CurriculumSource, level_args, level_of
from mixing.sources.procedural import ProceduralSource, question


def source(
    dataset: str = "chain_sum",
    *,
    held_out: int = 40,
    args: dict[str, JsonValue] | None = None,
    **curriculum: object,
) -> SourceConfig:
    return SourceConfig.model_validate(
        {
            "name": "s",
            "data": {
                "procedural": f"reasoning_gym/{dataset}",
                "size": 60,
                "held_out": held_out,
                "seed": 7,
                "args": args or {},
                "curriculum": {"start": 0, **curriculum},
            },
            "rewards": [{"name": "r", "use": "reasoning_gym"}],
            "difficulty": {"window": [0.3, 0.8]},
        }
    )


def curriculum(*, start: int = 2, top: int = 4, patience: int = 3) -> Curriculum:
    return Curriculum((0.3, 0.8), start=start, top=top, patience=patience)


def observe(moving: Curriculum, *rates: float) -> int:
    for rate in rates:
        moving.observe(moving.level, rate)
    return moving.level


def test_the_level_follows_the_mean_of_the_last_groups() -> None:
    assert observe(curriculum(), 1.0, 1.0) == 2
    assert observe(curriculum(), 1.0, 1.0, 1.0) == 3
    assert observe(curriculum(), 0.0, 0.0, 0.0) == 1
    assert observe(curriculum(), 1.0, 0.5, 0.5, 0.9, 0.6) == 2
    assert observe(curriculum(), 0.5, 0.9, 0.9, 0.9) == 3


def test_the_bounds_belong_to_the_window() -> None:
    assert observe(curriculum(patience=1), 0.8, 0.3) == 2


def test_a_new_level_is_judged_by_its_own_groups() -> None:
    moving = curriculum()
    assert observe(moving, 1.0, 1.0, 1.0) == 3
    moving.observe(2, 1.0)  # sampled ahead, before the level rose
    moving.observe(2, 1.0)
    assert observe(moving, 1.0, 1.0) == 3
    assert observe(moving, 1.0) == 4


def test_levels_end_at_both_ends() -> None:
    moving = curriculum(patience=1)
    assert observe(moving, *[1.0] * 9) == 4
    assert observe(moving, *[0.0] * 9) == 0
    assert moving.snapshot().recent == 0.0


@pytest.mark.parametrize("seed", range(8))
def test_a_policy_is_held_at_the_level_where_it_passes_within_the_window(seed: int) -> None:
    """Skill s passes level L with probability 1 / (1 + exp(L - s)), and grows."""
    dice, moving = random.Random(seed), curriculum(start=0, top=10, patience=8)
    inside = 0
    for step in range(2000):
        skill = 0.5 + step / 250
        rate = 1 / (1 + 2.718281828 ** (moving.level - skill))
        inside += 0.2 < rate < 0.9
        moving.observe(moving.level, sum(dice.random() < rate for _ in range(8)) / 8)
    assert inside > 1800
    assert moving.level >= 7


def test_state_survives_json() -> None:
    one, other = curriculum(), curriculum(start=0)
    observe(one, 1.0, 1.0, 1.0, 0.9, 0.9)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.snapshot() == one.snapshot()
    assert observe(one, 1.0) == observe(other, 1.0) == 4


def test_levels_are_reasoning_gyms_own() -> None:
    levels = level_args(source("chain_sum", max_level=3))
    assert levels[0] == {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    assert levels[3] == {"min_terms": 5, "max_terms": 5, "min_digits": 4, "max_digits": 4}
    wide = level_args(source("chain_sum", max_level=3, ranges="inclusive"))
    assert wide[3] == {"min_terms": 2, "max_terms": 5, "min_digits": 1, "max_digits": 4}


def test_chosen_attributes_move_to_their_own_tops_and_others_stay() -> None:
    args: dict[str, JsonValue] = {"min_digits": 2, "max_digits": 2}
    levels = level_args(source("chain_sum", args=args, attributes={"num_terms": 2}))
    assert [level["max_terms"] for level in levels] == [2, 3, 4]
    assert all(level["max_digits"] == 2 for level in levels)
    mixed = level_args(source("chain_sum", attributes={"num_terms": 3, "num_digits": 1}))
    assert [(level["max_terms"], level["max_digits"]) for level in mixed] == [
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 2),
    ]


def test_intervals_end_before_the_level_that_would_repeat_the_last() -> None:
    levels = level_args(source("count_primes"))
    bounds = [(level["min_n"], level["max_n"]) for level in levels]
    assert bounds[0] == (10, 1000) and bounds[-1] == (50000, 100000)
    assert len(set(bounds)) == len(bounds)


def test_items_are_made_at_the_level_in_force_and_named_by_it() -> None:
    opened = CurriculumSource(source())
    first = opened.task(5)
    assert first.task_id == "s/train/L0/5" and level_of(first.task_id) == 0
    observe(opened.curriculum, *[1.0] * 16)
    harder = opened.task(5)
    assert harder.task_id == "s/train/L1/5" and harder.prompt != first.prompt
    assert opened.task_at(0, 5) == first
    assert harder.metadata["args"] == level_args(source())[1]
    assert CurriculumSource(source(start=1)).task(5) == harder
    with pytest.raises(ValueError, match="is not `<source>/train/L<level>/<item>`"):
        level_of("s/train/5")


def test_held_out_items_are_fixed_of_all_levels_and_never_trained_on() -> None:
    opened = CurriculumSource(source(max_level=3, ranges="inclusive"))
    held_out = opened.held_out()
    assert len({question(t) for t in held_out}) == len({t.task_id for t in held_out}) == 40
    assert {t.task_id.split("/")[2] for t in held_out} == {"L0", "L1", "L2", "L3"}
    observe(opened.curriculum, *[1.0] * 40)
    assert opened.held_out() == held_out
    assert CurriculumSource(source(max_level=3, ranges="inclusive")).held_out() == held_out
    kept_out = {question(t) for t in held_out}
    for level in range(4):
        trained = {question(opened.task_at(level, item)) for item in range(opened.size)}
        assert not trained & kept_out


def test_a_source_without_curriculum_makes_the_items_it_always_made() -> None:
    cfg = SourceConfig(
        name="s",
        data=DataConfig(procedural="reasoning_gym/chain_sum", size=4, held_out=2, seed=7),
        rewards=(RewardConfig(name="r", use="reasoning_gym"),),
    )
    opened = ProceduralSource(cfg)
    assert [opened.task(i).answer for i in range(4)] == ["156", "1010", "129", "-14"]
    assert [t.answer for t in opened.held_out()] == ["34471", "7660"]


@pytest.mark.parametrize(
    ("cfg", "where", "words"),
    [
        (source("caesar_cipher"), "data.curriculum", r"level 2 .* rotation must be in range"),
        (source("spell_backward"), "data.curriculum", r"level 4 .*cannot be made"),
        (source(max_level=99), "data.curriculum.max_level", "is 99, too high"),
        (source(start=8, max_level=3), "data.curriculum.start", "above the highest level 3"),
        (source(held_out=3), "data.held_out", "fewer than the 11 levels"),
        (source(args={"max_terms": 3}), "data.args", "max_terms in `args`, which the curriculum"),
        (source(attributes={"digits": 1}), "data.curriculum.attributes.digits", "no attribute"),
        (
            source(attributes={"num_terms": 50}),
            "data.curriculum.attributes.num_terms",
            "highest level is 10",
        ),
    ],
)
def test_what_a_dataset_cannot_do_is_refused(cfg: SourceConfig, where: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        CurriculumSource(cfg)
    (problem,) = caught.value.problems
    assert problem.where == f"sources.s.{where}" and problem.fix


def test_a_dataset_without_a_curriculum_is_refused() -> None:
    from reasoning_gym import factory

    without = sorted(set(factory.DATASETS) - set(factory.CURRICULA) - {"composite"})[0]
    with pytest.raises(ConfigError, match=f"reasoning-gym's {without} has no curriculum"):
        CurriculumSource(source(without))
