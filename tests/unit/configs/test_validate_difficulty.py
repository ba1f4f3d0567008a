"""Bad windows, filters and curricula: each refused with field, value and remedy, all at once."""

from collections.abc import Mapping, Sequence

import pytest

from configs.errors import ConfigError, Problem
from configs.load import load_recipe
from configs.schema import RunConfig
from configs.validate import find_warnings, validate_run

PROCEDURAL: dict[str, object] = {"procedural": "reasoning_gym/chain_sum", "size": 100}
WINDOW: dict[str, object] = {"window": [0.2, 0.8]}
OFF = {"easy": {"retire_after": 0}, "hard": {"park_after": 0}}


def source(
    difficulty: Mapping[str, object], data: Mapping[str, object] = PROCEDURAL, group_size: int = 8
) -> dict[str, object]:
    return {
        "name": "s",
        "data": dict(data),
        "rewards": [{"name": "r", "use": "exact"}],
        "group_size": group_size,
        "difficulty": dict(difficulty),
    }


def recipe(*sources: dict[str, object], stages: Sequence[object] = ()) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 50,
            "model": {"path": "owner/model"},
            "sources": sources,
            "stages": stages,
            "batch": {"groups_per_step": 8},
        }
    )


def problems(cfg: RunConfig) -> list[Problem]:
    return [p for p in validate_run(cfg) if ".difficulty" in p.where or ".curriculum" in p.where]


BAD = {
    "turned round": (source({"window": [0.8, 0.2]}), "difficulty.window", "from 0.8 to 0.2"),
    "no rate within": (
        source({"window": [0.3, 0.4]}, group_size=2),
        "difficulty.window",
        "[0.3, 0.4] holds no pass rate that a group of 2 can have",
    ),
    "groups of one": (source(WINDOW, group_size=1), "difficulty.window", "group_size is 1"),
    "nothing acts": (source({**WINDOW, **OFF}), "difficulty.window", "does nothing"),
    "min_live over size": (
        source({**WINDOW, "min_live": 101}),
        "difficulty.min_live",
        "is 101, but the source has 100",
    ),
    "columns of nothing": (
        source({**WINDOW, "pass_rate_column": "rate"}),
        "difficulty.pass_rate_column",
        "`rate`, but items of `procedural` have no columns",
    ),
    "memory for ever": (source({**WINDOW, "decay": 1.0}), "difficulty.decay", "is 1"),
    "decay of a mean": (
        source({**WINDOW, "decay": 0.9, "estimate": "mean"}),
        "difficulty.decay",
        "`estimate: mean` has no decay",
    ),
    "min_live without window": (source({"min_live": 5}), "difficulty.min_live", "no window"),
    "parking without window": (
        source({"hard": {"park_after": 1}}),
        "difficulty.hard.park_after",
        "no window",
    ),
    "replacements of nothing": (
        source({"max_resamples": 5}),
        "difficulty.max_resamples",
        "drop_zero_variance is off",
    ),
    "no replacements": (
        source({"drop_zero_variance": True, "max_resamples": 0}),
        "difficulty.max_resamples",
        "is 0",
    ),
    "flat by nature": (
        source({"drop_zero_variance": True}, group_size=1),
        "difficulty.drop_zero_variance",
        "always all equal",
    ),
    "curriculum without window": (
        source({}, {**PROCEDURAL, "curriculum": {"start": 0}}),
        "data.curriculum",
        "no window to follow",
    ),
    "curriculum of a file": (
        source(WINDOW, {"jsonl": "x.jsonl", "curriculum": {"start": 0}}),
        "data.curriculum",
        "only `procedural` data have levels",
    ),
    "curriculum and items": (
        source({**WINDOW, "min_live": 9}, {**PROCEDURAL, "curriculum": {"start": 0}}),
        "difficulty.min_live",
        "the window moves the level and not the items",
    ),
    "start above the top": (
        source(WINDOW, {**PROCEDURAL, "curriculum": {"start": 5, "max_level": 3}}),
        "data.curriculum.start",
        "is 5, above max_level=3",
    ),
    "curriculum without start": (
        source(WINDOW, {**PROCEDURAL, "curriculum": {"patience": 3}}),
        "data.curriculum.patience",
        "no curriculum without a start",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recipe_is_refused_with_field_value_and_remedy(name: str) -> None:
    bad, where, words = BAD[name]
    (problem,) = problems(recipe(bad))
    assert problem.where == f"sources.s.{where}"
    assert words in problem.what and problem.fix


@pytest.mark.parametrize(
    ("difficulty", "sizes", "bad"),
    [
        ({"window": [0.3, 0.4]}, [8, 2], [1]),
        ({"window": [0.3, 0.4]}, [2, 3, None], [0]),
        (WINDOW, [1, 1], [0, 1]),
        (WINDOW, [2, 16], []),
        ({"drop_zero_variance": True}, [1, 4], [0]),
    ],
)
def test_group_sizes_of_stages_are_checked_as_the_source_s_own(
    difficulty: Mapping[str, object], sizes: Sequence[int | None], bad: Sequence[int]
) -> None:
    stages = [
        {
            "until": {"step": 10 * (i + 1)},
            "weights": {"s": 1},
            "group_size": {} if size is None else {"s": size},
        }
        for i, size in enumerate(sizes)
    ]
    found = validate_run(recipe(source(difficulty), stages=stages))
    assert [p.where for p in found] == [f"stages.{i}.group_size.s" for i in bad]
    assert all(p.fix for p in found)


def test_a_size_that_every_stage_replaces_is_not_asked_about() -> None:
    narrow = source({"window": [0.3, 0.4]}, group_size=2)
    first: dict[str, object] = {"until": {"step": 9}, "group_size": {"s": 8}}
    later: dict[str, object] = {"weights": {"s": 1}}
    assert problems(recipe(narrow, stages=[first, later | {"group_size": {"s": 16}}])) == []
    (problem,) = problems(recipe(narrow, stages=[first, later]))
    assert problem.where == "sources.s.difficulty.window"


@pytest.mark.parametrize(
    ("difficulty", "words"),
    [
        ("{window: [-0.1, 0.8]}", "must be at least 0, is -0.1"),
        ("{window: [0.2, 1.5]}", "must be at most 1, is 1.5"),
        ("{window: [0.2, 0.5, 0.8]}", "has more than 2 items"),
        ("{window: 0.5}", "must be a list, is 0.5"),
        ("{min_live: 0}", "must be more than 0, is 0"),
        ("{retry_share: 0}", "must be more than 0, is 0"),
        ("{hard: {retry_every: 0}}", "must be more than 0, is 0"),
        ("{estimate: median}", "must be `ema` or `mean`, is text 'median'"),
        ("{widow: [0.2, 0.8]}", "Did you mean `window`?"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_line(tmp_path, difficulty, words) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: t\nnum_steps: 5\nmodel: {path: m}\nbatch: {groups_per_step: 4}\nsources:\n"
        "  - name: s\n    data: {procedural: reasoning_gym/lcm}\n"
        f"    rewards: [{{name: r, use: exact}}]\n    difficulty: {difficulty}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert words in str(caught.value) and "bad.yaml:9" in str(caught.value)


def test_all_problems_of_all_sources_are_told_at_once() -> None:
    sources = [{**bad, "name": f"s{i}"} for i, (bad, _, _) in enumerate(BAD.values())]
    found = problems(recipe(*sources))
    assert [p.where.split(".")[1] for p in found] == [s["name"] for s in sources]


@pytest.mark.parametrize(
    "good",
    [
        source({}),
        source(WINDOW),
        source({**WINDOW, "easy": {"retire_after": 0}, "min_live": 100, "decay": 0.0}),
        source({"window": [0.5, 0.5]}),
        source({"window": [0.0, 0.7], "drop_zero_variance": True}),
        source({"drop_zero_variance": True, "max_resamples": 9}),
        source({**WINDOW, "drop_zero_variance": True}, {**PROCEDURAL, "curriculum": {"start": 0}}),
    ],
)
def test_sound_recipes_pass(good: dict[str, object]) -> None:
    assert problems(recipe(good)) == []


def test_what_is_probably_not_meant_is_warned_about() -> None:
    def warned(difficulty: Mapping[str, object]) -> list[str]:
        found = find_warnings(recipe(source(difficulty)))
        return [p.where.removeprefix("sources.s.difficulty.") for p in found if "diff" in p.where]

    assert warned({}) == []
    assert warned({"window": [0, 1], "hard": {"retry_every": 10}}) == ["window"]
    assert warned(WINDOW) == ["hard.retry_every"]
    assert warned({**WINDOW, "hard": {"park_after": 0}}) == []
    assert warned({**WINDOW, "hard": {"retry_every": 50}, "easy": {"retry_every": 51}}) == [
        "easy.retry_every"
    ]
