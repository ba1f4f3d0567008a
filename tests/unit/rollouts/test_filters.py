"""Zero variance: what counts as such, and that replacing it comes to an end."""

import random

import pytest

from configs.difficulty import DifficultyConfig
from rollouts.filters import Verdict, is_zero_variance, judge
from rollouts.types import GroupSummary
from tests.made_groups import made_group, made_rollout


def group(*rewards: float | None) -> GroupSummary:
    return made_group([made_rollout(reward) for reward in rewards])


ON = DifficultyConfig(drop_zero_variance=True, max_resamples=3)


@pytest.mark.parametrize(
    ("rewards", "flat"),
    [
        ((0.0, 0.0, 0.0), True),
        ((1.0, 1.0, 1.0), True),
        ((0.3, 0.1 + 0.2), True),  # equal up to rounding
        ((1.0, None, 1.0), True),  # invalid rollouts have no reward
        ((1.0, None), True),  # one is compared with nobody
        ((0.0, None, 1.0), False),
        ((0.5, 0.5, 0.5001), False),
        ((-1.0, 1.0), False),
    ],
)
def test_zero_variance_is_about_valid_rewards(
    rewards: tuple[float | None, ...], flat: bool
) -> None:
    assert is_zero_variance(group(*rewards)) is flat
    assert judge(group(*rewards), ON, last_chance=False) is (
        Verdict.RESAMPLE if flat else Verdict.TRAIN
    )


def test_off_by_default_a_flat_group_is_trained() -> None:
    assert judge(group(1.0, 1.0), DifficultyConfig(), last_chance=False) is Verdict.TRAIN


@pytest.mark.parametrize("seed", range(20))
def test_a_flat_group_is_replaced_until_its_last_chance(seed: int) -> None:
    dice = random.Random(seed)
    drawn = group(*(float(dice.random() < 0.1) for _ in range(4)))
    flat = is_zero_variance(drawn)
    first, last = (judge(drawn, ON, last_chance=chance) for chance in (False, True))
    assert first is (Verdict.RESAMPLE if flat else Verdict.TRAIN)
    assert last is (Verdict.KEEP if flat else Verdict.TRAIN)
