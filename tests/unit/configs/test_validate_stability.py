"""What cannot go together with `deterministic` and `reference.refresh`."""

from collections.abc import Mapping
from typing import Any

import pytest

from configs.schema import RunConfig
from configs.validate_determinism import check_determinism
from configs.validate_refresh import check_refresh


def recipe(**more: Any) -> RunConfig:
    source = {
        "name": "a",
        "data": {"procedural": "reasoning_gym/chain_sum"},
        "rewards": [{"name": "r", "use": "exact"}],
        **more.pop("source", {}),
    }
    base = {
        "name": "t",
        "num_steps": 4,
        "model": {"path": "org/model"},
        "sources": [source],
        "batch": {"groups_per_step": 1},
    }
    return RunConfig.model_validate({**base, **more})


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({}, []),
        ({"source": {"max_staleness": 1}}, ["batch.max_staleness"]),
        ({"batch": {"groups_per_step": 1, "max_staleness": 2}}, ["batch.max_staleness"]),
        (
            {"mix": {"max_wait_s": 5.0}, "reward_models": {"m": {"model": {"path": "x"}}}},
            ["mix.max_wait_s", "reward_models"],
        ),
        ({"weight_sync": {"backend": "nccl"}}, ["weight_sync.backend"]),
    ],
)
def test_what_lets_time_decide_is_refused(more: Mapping[str, Any], where: list[str]):
    assert list(check_determinism(recipe(**more))) == []
    problems = check_determinism(recipe(deterministic=True, **more))
    assert [p.where for p in problems] == where


def test_a_reference_that_follows_must_be_one_and_be_there():
    refresh = {"every": 2, "mode": "ema"}
    kl = {"kl": {"coef": 0.1}}
    assert list(check_refresh(recipe(reference={"refresh": refresh}, algorithm=kl))) == []
    both = recipe(reference={"refresh": refresh, "path": "other"})
    assert [p.where for p in check_refresh(both)] == ["reference.refresh"] * 2
