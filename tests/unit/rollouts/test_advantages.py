"""Advantages: worked by hand, exactly 0 where there is nothing to learn, invalid left out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from configs.data import DataConfig
from configs.errors import ConfigError
from configs.plug import PlugConfig
from configs.schema import RewardConfig, SourceConfig
from rollouts.advantages import (
    STD_EPS,
    AnyEstimator,
    estimate,
    grpo,
    mean_baseline,
    resolve_advantage,
    rloo,
    validate_advantages,
)
from rollouts.credit import GroupCredit, PartCredit

F64 = NDArray[np.float64]


def whole(rewards: list[float], estimator: AnyEstimator) -> list[float]:
    """Return the advantages of rollouts without steps."""
    values = np.array(rewards)
    part = PartCredit(name="r", weight=1.0, values=values, steps=(None,) * len(rewards))
    group = GroupCredit(rewards=values, parts=(part,), num_tokens=(3,) * len(rewards))
    found = estimate(group, estimator, "weighted_sum")
    assert found.tokens == (None,) * len(rewards)
    return found.whole.tolist()


def test_grpo_by_hand() -> None:
    # mean 0.25, variance (0.75^2 + 3 * 0.25^2) / 4 = 0.1875 (biased), std 0.4330127
    std = 0.1875**0.5 + STD_EPS
    expected = [0.75 / std, -0.25 / std, -0.25 / std, -0.25 / std]
    np.testing.assert_allclose(grpo(np.array([1.0, 0, 0, 0])), expected, rtol=1e-12)
    np.testing.assert_allclose(expected, [1.7320468, -0.5773489, -0.5773489, -0.5773489], rtol=1e-6)


def test_mean_baseline_by_hand() -> None:
    assert mean_baseline(np.array([1.0, 0, 0, 0])).tolist() == [0.75, -0.25, -0.25, -0.25]


def test_rloo_by_hand() -> None:
    """Each reward less the mean of the other three."""
    assert rloo(np.array([1.0, 0, 0, 0])).tolist() == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9))
def test_rloo_is_what_it_is_called(rewards: list[float]) -> None:
    found = rloo(np.array(rewards))
    for i, reward in enumerate(rewards):
        others = rewards[:i] + rewards[i + 1 :]
        assert found[i] == pytest.approx(reward - sum(others) / len(others), abs=1e-6)


@pytest.mark.parametrize("estimator", [grpo, mean_baseline, rloo])
@pytest.mark.parametrize(
    "rewards", [[0.7], [0.1] * 3, [0.3, 0.1 + 0.2, 0.3], [1e9, 1e9 + 1e-7], [0.0, 0.0], [-5.0] * 4]
)
def test_singletons_and_equal_rewards_give_exactly_zero(
    estimator: AnyEstimator, rewards: list[float]
) -> None:
    assert whole(rewards, estimator) == [0.0] * len(rewards)


rewards_st = st.lists(st.floats(-10, 10), min_size=2, max_size=16)


@given(rewards_st, st.permutations(range(4)))
def test_advantages_sum_to_zero_and_follow_the_order(
    rewards: list[float], order: list[int]
) -> None:
    for estimator in (grpo, mean_baseline):
        advantages = estimator(np.array(rewards))
        assert abs(advantages.sum()) < 1e-6 * len(rewards)
        assert (np.diff(advantages[np.argsort(rewards)]) >= 0).all()
        four = np.array((rewards * 2)[:4])
        np.testing.assert_allclose(estimator(four)[order], estimator(four[order]), atol=1e-9)


@given(rewards_st, st.floats(-5, 5), st.floats(0.5, 4))
def test_grpo_does_not_see_shift_nor_scale(
    rewards: list[float], shift: float, scale: float
) -> None:
    values = np.array(rewards)
    if values.std() > 1e-2:
        np.testing.assert_allclose(grpo(values * scale + shift), grpo(values), atol=1e-3)


def test_your_own_estimator_by_plug(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    (tmp_path / "adv_plug_for_test.py").write_text(
        "def shifted(rewards, by: float): return rewards - by\n"
        "def broken(rewards): return rewards[:1]\n"
        "def nan(rewards): return rewards * float('nan')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    shifted = resolve_advantage(PlugConfig(use="adv_plug_for_test:shifted", args={"by": 1}))
    assert whole([3.0, 1.0], shifted) == [2.0, 0.0]
    for name in ("broken", "nan"):
        bad = resolve_advantage(PlugConfig(use=f"adv_plug_for_test:{name}"))
        with pytest.raises(ValueError, match="must return 2 finite numbers"):
            whole([1.0, 2.0], bad)


def test_what_is_no_estimator_is_told_before_the_run() -> None:
    def source(plug: PlugConfig) -> SourceConfig:
        return SourceConfig(
            name="s",
            data=DataConfig(jsonl="x"),
            rewards=(RewardConfig(name="r", use="exact"),),
            advantage=plug,
        )

    good = [source(PlugConfig(use=name)) for name in ("grpo", "mean_baseline")]
    bad = [source(PlugConfig(use="grop")), source(PlugConfig(use="grpo", args={"eps": 1}))]
    near, unknown = validate_advantages([*good, *bad])
    assert near.where == "sources.s.advantage" and "Did you mean `grpo`?" in near.fix
    assert "no argument 'eps'" in unknown.what
    with pytest.raises(ConfigError):
        resolve_advantage(PlugConfig(use="grop"))
