"""Credit and objectives, worked by hand from the formulas of docs/credit.md and the papers."""

import numpy as np
import pytest

from configs.objective import CreditConfig
from rollouts.advantages import STD_EPS, estimate, grpo, grpo_process, mean_baseline
from rollouts.credit import F64, GroupCredit, PartCredit, Steps, step_weights


def steps(ends: list[int], scores: list[float], credit: CreditConfig) -> Steps:
    return Steps(
        ends=np.array(ends, np.int32),
        scores=np.array(scores),
        weights=step_weights(len(scores), credit),
    )


def part(name: str, values: list[float], *given: Steps | None, weight: float = 1.0) -> PartCredit:
    none: tuple[Steps | None, ...] = (None,) * len(values)
    return PartCredit(name=name, weight=weight, values=np.array(values), steps=given or none)


def group(rewards: list[float], num_tokens: list[int], *parts: PartCredit) -> GroupCredit:
    return GroupCredit(rewards=np.array(rewards), parts=parts, num_tokens=tuple(num_tokens))


def tokens(credit: GroupCredit, estimator: object, combine: str = "weighted_sum") -> list[F64]:
    found = estimate(credit, estimator, combine)  # type: ignore[arg-type]
    return [
        np.full(n, w) if t is None else t.astype(np.float64)
        for n, w, t in zip(credit.num_tokens, found.whole, found.tokens, strict=True)
    ]


def test_grpo_with_process_supervision_by_hand() -> None:
    # arXiv:2402.03300, 4.1.3. R = {1, 0, 1, 1, 0}: mean 3/5, variance 3/5 * 2/5 = 0.24.
    sums = CreditConfig(aggregate="sum")
    process = part(
        "steps", [2.0, 1.0], steps([1, 3, 4], [1, 0, 1], sums), steps([0, 2], [1, 0], sums)
    )
    std = 0.24**0.5 + STD_EPS
    right, wrong = 0.4 / std, -0.6 / std
    first, second = tokens(group([2.0, 1.0], [5, 4], process), grpo_process)
    # tokens 0 and 1 answer for three steps, 2 and 3 for two, 4 for the last
    whole = right + wrong + right
    np.testing.assert_allclose(first, [whole, whole, right + wrong, right + wrong, right], 1e-6)
    # the end token comes after the last step and answers for none
    np.testing.assert_allclose(second, [right + wrong, wrong, wrong, 0], 1e-6, 1e-7)


def test_process_supervision_besides_an_outcome_by_hand() -> None:
    # outcome 1, 0 -> +-0.5/(0.5 + eps), by its weight 2; steps 1 | 0 -> the same, by 0.5
    mean = CreditConfig(aggregate="mean")
    unit = 0.5 / (0.5 + STD_EPS)
    credit = group(
        [2.5, 0.0],
        [3, 2],
        part("answer", [1.0, 0.0], weight=2.0),
        part("steps", [1.0, 0.0], steps([1], [1.0], mean), steps([0], [0.0], mean), weight=0.5),
    )
    first, second = tokens(credit, grpo_process)
    np.testing.assert_allclose(first, [2.5 * unit, 2.5 * unit, 2 * unit], 1e-6)
    np.testing.assert_allclose(second, [-2.5 * unit, -2 * unit], 1e-6)


def test_a_rollout_without_steps_counts_as_one_step() -> None:
    sums = CreditConfig(aggregate="sum")
    process = part("steps", [1.0, 0.0], steps([0], [1.0], sums), None)
    first, second = tokens(group([1.0, 0.0], [2, 2], process), grpo_process)
    unit = 0.5 / (0.5 + STD_EPS)
    np.testing.assert_allclose(first, [unit, 0], 1e-6)
    np.testing.assert_allclose(second, [-unit, -unit], 1e-6)


def test_reward_to_go_by_hand() -> None:
    # two rollouts: answer 1 and 0 (weight 1); steps 1, 0 and 0, 0 by `mean` (weight 1).
    # rewards 1.5 and 0, baseline 0.75; steps: weights 1/2 each, mean (1/2 + 0 + 0 + 0) / 2 = 1/4.
    mean = CreditConfig(aggregate="mean")
    credit = group(
        [1.5, 0.0],
        [5, 4],
        part("answer", [1.0, 0.0]),
        part("steps", [0.5, 0.0], steps([1, 3], [1, 0], mean), steps([0, 2], [0, 0], mean)),
    )
    first, second = tokens(credit, mean_baseline)
    done = 0.5 * (1 - 0.25)  # what step 1 was worth, beyond the mean
    missed = 0.5 * (0 - 0.25)
    np.testing.assert_allclose(
        first, [0.75, 0.75, 0.75 - done, 0.75 - done, 0.75 - done - missed], 1e-6
    )
    np.testing.assert_allclose(
        second, [-0.75, -0.75 - missed, -0.75 - missed, -0.75 - 2 * missed], 1e-6
    )
    # under grpo all of it is divided by the deviation of the rewards, 0.75
    scaled = tokens(credit, grpo)
    for plain, divided in zip((first, second), scaled, strict=True):
        np.testing.assert_allclose(divided, plain / (0.75 + STD_EPS), 1e-6)


@pytest.mark.parametrize(
    ("credit", "weights", "value"),
    [
        (CreditConfig(aggregate="last"), [0, 0, 1], 0.25),
        (CreditConfig(aggregate="sum"), [1, 1, 1], 1.75),
        (CreditConfig(aggregate="mean"), [1 / 3] * 3, 1.75 / 3),
        (CreditConfig(aggregate="discounted", gamma=0.5), [1, 0.5, 0.25], 1 + 0.25 + 0.0625),
        (CreditConfig(), [1 / 3] * 3, 1.75 / 3),
    ],
)
def test_what_steps_count_for_by_hand(
    credit: CreditConfig, weights: list[float], value: float
) -> None:
    found = step_weights(3, credit)
    np.testing.assert_allclose(found, weights)
    np.testing.assert_allclose(found @ np.array([1, 0.5, 0.25]), value)


def test_gdpo_by_hand() -> None:
    # arXiv:2601.05242: (0, 2) and (0, 1) are told apart, where the sum's GRPO gives both +-1.
    correct, styled = [0.0, 1.0], [0.0, 1.0]
    both = group([0.0, 2.0], [1, 1], part("right", correct), part("style", styled))
    one = group([0.0, 1.0], [1, 1], part("right", correct), part("style", [0.0, 0.0]))
    unit = 0.5 / (0.5 + STD_EPS)
    for credit, expected in ((both, 2 * unit), (one, unit)):
        found = estimate(credit, grpo, "normalize_then_sum")
        np.testing.assert_allclose(found.whole, [-expected, expected], 1e-6)
        together = estimate(credit, grpo, "weighted_sum")
        np.testing.assert_allclose(together.whole, [-1, 1], 1e-5)
    # a part whose normalisation is 0/0 adds exactly 0
    assert estimate(one, grpo, "normalize_then_sum").parts["style"].tolist() == [0.0, 0.0]


def test_gdpo_weighs_after_normalising() -> None:
    # values 0, 1, 2 and 0, 0, 100: std sqrt(2/3) and 100 sqrt(2)/3; weights 1 and 0.5
    credit = group(
        [0.0, 1.0, 102.0],
        [1, 1, 1],
        part("a", [0.0, 1.0, 2.0]),
        part("b", [0.0, 0.0, 100.0], weight=0.5),
    )
    a = np.array([-1, 0, 1]) / ((2 / 3) ** 0.5 + STD_EPS)
    b = np.array([-1, -1, 2]) * 100 / 3 / (100 * 2**0.5 / 3 + STD_EPS)
    found = estimate(credit, grpo, "normalize_then_sum")
    np.testing.assert_allclose(found.whole, a + 0.5 * b, 1e-6)
    np.testing.assert_allclose(found.parts["a"], a)
    np.testing.assert_allclose(found.parts["b"], 0.5 * b)
