import itertools
import math
import random

import pytest

from rollouts.pass_rates import pass_at_k, pass_rate


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass(n: int):
    for passed, k in itertools.product(range(n + 1), range(1, n + 1)):
        rollouts = [True] * passed + [False] * (n - passed)
        draws = list(itertools.combinations(rollouts, k))
        brute = sum(any(draw) for draw in draws) / len(draws)
        assert pass_at_k(n, passed, k) == pytest.approx(brute, abs=1e-12), (n, passed, k)


def test_pass_at_k_by_hand():
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)  # C(3,2) / C(5,2)
    assert pass_at_k(5, 2, 4) == 1  # any four hold one that passed
    assert pass_at_k(2000, 1, 1000) == pytest.approx(0.5)  # beyond the range of a float


def test_pass_at_k_is_unbiased():
    """Over binomial outcomes its expectation is 1 - (1 - p)^k, which plugging in c / n is not."""
    n, p = 6, 0.3
    for k in (1, 2, 4, 6):
        chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
        expected = sum(w * pass_at_k(n, c, k) for c, w in enumerate(chances))
        assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize(("n", "passed", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_impossible_counts_are_refused(n: int, passed: int, k: int):
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(n, passed, k)


def test_one_sample_an_item_is_the_binomial_case():
    measured = pass_rate([(1, 1)] * 8 + [(0, 1)] * 2)
    assert measured.rate == 0.8
    assert measured.stderr == pytest.approx(math.sqrt(0.8 * 0.2 / 9))
    assert (measured.low, measured.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson


def test_rollouts_of_one_item_are_a_cluster():
    """Two items all right and two all wrong tell no more than four rollouts would."""
    clustered = pass_rate([(8, 8), (8, 8), (0, 8), (0, 8)])
    # sum (c - p n)^2 = 4 * 16; sqrt(4 / 3 * 64) / 32
    assert clustered.stderr == pytest.approx(math.sqrt(4 / 3 * 64) / 32)
    assert clustered.stderr == pytest.approx(pass_rate([(1, 1), (1, 1), (0, 1), (0, 1)]).stderr)
    even = pass_rate([(4, 8)] * 4)
    assert (even.rate, even.stderr) == (0.5, 0.0)
    assert even.high - even.low < clustered.high - clustered.low


def test_items_count_by_their_rollouts_and_empty_ones_not_at_all():
    measured = pass_rate([(1, 1), (0, 3), (0, 0)])
    assert measured.rate == 0.25  # not the mean of 1 and 0
    # c - p n is 0.75 and -0.75; sqrt(2 / 1 * 1.125) / 4
    assert measured.stderr == pytest.approx(math.sqrt(2.25) / 4)


def test_the_interval_does_not_shrink_to_a_point_at_the_ends():
    full, none = pass_rate([(4, 4)] * 20), pass_rate([(0, 4)] * 20)
    assert (full.stderr, full.high, none.low) == (0.0, 1.0, 0.0)
    assert full.low == pytest.approx(20 / (20 + 1.959964**2))
    assert none.high == pytest.approx(1 - full.low)


def test_nothing_measured_is_not_zero():
    assert math.isnan(pass_rate([]).rate)
    assert math.isnan(pass_rate([(0, 0)]).low)
    one = pass_rate([(1, 2)])
    assert math.isnan(one.stderr) and 0 <= one.low < 0.5 < one.high <= 1


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Items of differing difficulty, four rollouts each: naive intervals would cover far less."""
    draw = random.Random(5)
    covered = 0
    for _ in range(400):
        rates = [draw.choice((0.05, 0.95)) for _ in range(60)]
        items = [(sum(draw.random() < rate for _ in range(4)), 4) for rate in rates]
        measured = pass_rate(items)
        covered += measured.low <= 0.5 <= measured.high
    assert 0.92 <= covered / 400 <= 0.98
