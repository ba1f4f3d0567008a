"""Recipes and sources of files, which need no generation."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.data import DataConfig
from configs.mix import LimitsConfig
from configs.schema import RewardConfig, RunConfig, SourceConfig
from rollouts.types import GroupRequest, GroupSummary
from tests.made_groups import made_group, made_rollout

MakeRun = Callable[..., RunConfig]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a maker of recipes: `sizes` training rows a source, `weights`, `groups` a step.

    `limits`, `group_sizes` and `bounds` of staleness are by source; other keys are sections of the
    recipe.
    """

    def make(
        sizes: dict[str, int],
        *,
        weights: dict[str, float] | None = None,
        groups: int = 8,
        seed: int = 1,
        max_staleness: int = 0,
        limits: dict[str, dict[str, float]] | None = None,
        group_sizes: dict[str, int] | None = None,
        bounds: dict[str, int] | None = None,
        **sections: object,
    ) -> RunConfig:
        sources: list[SourceConfig] = []
        for name, size in sizes.items():
            path = tmp_path / f"{name}.jsonl"
            rows = [{"prompt": f"{name} {i}", "answer": str(i)} for i in range(size + 2)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            sources.append(
                SourceConfig(
                    name=name,
                    data=DataConfig(jsonl=str(path), held_out=2),
                    rewards=(RewardConfig(name="r", use="exact"),),
                    weight=(weights or {}).get(name, 1.0),
                    group_size=(group_sizes or {}).get(name, 3),
                    max_staleness=(bounds or {}).get(name),
                    limits=LimitsConfig.model_validate((limits or {}).get(name, {})),
                )
            )
        base: dict[str, object] = {
            "name": "t",
            "seed": seed,
            "num_steps": 10,
            "model": {"path": "m"},
            "sources": sources,
            "batch": {"groups_per_step": groups, "max_staleness": max_staleness},
        }
        return RunConfig.model_validate(base | sections)

    return make


MakeSource = Callable[..., SourceConfig]


@pytest.fixture
def make_source() -> MakeSource:
    """Return a maker of sources called `s` with 8 held-out prompts, from fields of `data`."""

    def make(*, instruction: str = "", **data: object) -> SourceConfig:
        fields = {k: str(v) if isinstance(v, Path) else v for k, v in data.items()}
        return SourceConfig(
            name="s",
            data=DataConfig.model_validate({"held_out": 8, **fields}),
            rewards=(RewardConfig(name="r", use="exact"),),
            instruction=instruction,
        )

    return make


Play = Callable[[GroupRequest, float], GroupSummary]


@pytest.fixture
def play() -> Play:
    """Return a policy: it plays a request with a given pass rate, by dice that the group's id
    seeds, so that the same group always has the same rewards."""

    def play(request: GroupRequest, pass_rate: float) -> GroupSummary:
        dice = random.Random(request.group_id)
        rewards = [float(dice.random() < pass_rate) for _ in range(request.group_size)]
        return made_group(
            [made_rollout(reward) for reward in rewards],
            group_id=request.group_id,
            source=request.task.source,
            step=request.step,
        )

    return play
