"""Which answers become rows to fine-tune on, and what is refused before anything starts."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors.reward import RewardActor
from configs.errors import ConfigError
from configs.load import load_recipe
from orchestrator.commands.sample import Kept, SampleOptions, _chosen, report, select
from rollouts.types import GroupSummary, RolloutGroup, RolloutStats, RolloutStatus
from tests.made_groups import made_group, made_rollout

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "configs" / "recipes" / "quickstart.yaml"
CUT = 100.0
"""Added to the reward of a rollout that was cut off by the token limit."""


def options(**more: object) -> SampleOptions:
    given = {
        "source": None,
        "n": 4,
        "items": None,
        "keep": "passed",
        "per_item": 1,
        "min_pass": 0.0,
        "max_pass": 1.0,
        **more,
    }
    return SampleOptions(**given)  # type: ignore[arg-type]


def group(rewards: Sequence[float | None]) -> GroupSummary:
    def rollout(reward: float | None) -> RolloutStats:
        status = RolloutStatus.COMPLETED
        if reward is None:
            status = RolloutStatus.INVALID
        elif reward >= CUT:
            reward, status = reward - CUT, RolloutStatus.TRUNCATED
        return made_rollout(reward, status=status)

    return made_group(map(rollout, rewards), group_id="sums/train/3#sample", source="sums", step=-1)


@pytest.mark.parametrize(
    ("rewards", "more", "fate", "indices"),
    [
        ([0, 1, 0.5, 1], {}, "kept", [1, 3]),
        ([0, 1, 0.5, 1], {"keep": "best"}, "kept", [1, 3, 2, 0]),
        ([0, 0.2, 0.5, 0.1], {}, "nothing to keep", []),
        ([0, 0.2, 0.5, 0.1], {"keep": "best"}, "kept", [2, 1, 3, 0]),
        ([0, None, 1, None], {}, "kept", [2]),
        ([None, None], {}, "invalid", []),
        ([0, CUT + 1, 0, 0], {}, "nothing to keep", []),  # what was cut off teaches not to stop
        ([0, CUT + 1, 1, 0], {"keep": "best"}, "kept", [2, 0, 3]),
        ([0.5, 0, 1, 0], {"keep": "pairs"}, "kept", [2, 3]),
        ([1, 1, 1, None], {"keep": "pairs"}, "nothing to keep", []),
        ([0.5, 0], {"keep": "pairs"}, "nothing to keep", []),  # the better one is no right one
        ([1, 1, 1, 1], {"max_pass": 0.75}, "too easy", []),
        ([0, 0, 0, 1], {"min_pass": 0.5}, "too hard", []),
        ([0, 0, 1, 1], {"min_pass": 0.5, "max_pass": 0.5}, "kept", [2, 3]),
        ([0, None, None, 1], {"min_pass": 0.5, "max_pass": 0.5}, "kept", [3]),  # of the valid ones
    ],
)
def test_what_is_kept(
    rewards: list[float | None], more: dict[str, object], fate: str, indices: list[int]
):
    assert select(group(rewards), options(**more), 1.0) == (fate, indices)


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"source": "nothing"}, "--source"),
        ({"min_pass": 0.9, "max_pass": 0.1}, "--min-pass"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, more: dict[str, object], where: str):
    with pytest.raises(ConfigError) as error:
        _chosen(load_recipe(RECIPE), tmp_path / "rows.jsonl", options(**more))
    assert [p.where for p in error.value.problems] == [where]
    assert error.value.problems[0].fix


def test_a_file_that_is_there_and_a_folder_that_is_not_are_refused(tmp_path: Path):
    for out in (Path(__file__), tmp_path / "no" / "rows.jsonl"):
        with pytest.raises(ConfigError, match="--out"):
            _chosen(load_recipe(RECIPE), out, options())


def test_sources_without_rewards_and_of_several_turns_are_refused(tmp_path: Path):
    cfg = load_recipe(RECIPE)
    first, second, third = cfg.sources
    played = second.environment.model_copy(update={"use": "my:World"})
    sources = (
        first.model_copy(update={"rewards": ()}),
        second.model_copy(update={"environment": played}),
        third,
    )
    cfg = cfg.model_copy(update={"sources": sources})
    with pytest.raises(ConfigError) as error:
        _chosen(cfg, tmp_path / "rows.jsonl", options())
    found = [p.where for p in error.value.problems]
    assert found == [f"sources.{first.name}", f"sources.{second.name}.environment"]
    chosen = _chosen(cfg, tmp_path / "rows.jsonl", options(source=third.name))
    assert [s.name for s in chosen.sources] == [third.name]


def test_the_report_has_every_item():
    cfg = load_recipe(RECIPE)
    kept = [
        Kept(source="sums", fate="kept", rows=({}, {})),
        Kept(source="sums", fate="kept", rows=({},)),
        Kept(source="sums", fate="too hard"),
        Kept(source="spelling", fate="invalid"),
    ]
    assert report(cfg, kept) == [
        "sums: 3 items (2 kept, 1 too hard), 3 rows",
        "spelling: 1 items (1 invalid), 0 rows",
        "filtering: 0 items (), 0 rows",
    ]


def test_equal_answers_are_kept_once():
    texts = ["a", "b", "a", "c"]
    rollouts = [SimpleNamespace(index=i, last_text=t) for i, t in enumerate(texts)]
    group = cast(RolloutGroup, SimpleNamespace(rollouts=rollouts))
    found = asyncio.run(RewardActor.answers(cast(Any, None), group, [2, 0, 3, 1], 2))
    assert found == ((2, "a"), (3, "c"))
