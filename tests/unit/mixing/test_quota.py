"""Groups per source: right in every step's sum, near the target, exact in the long run."""

import random
from fractions import Fraction
from math import ceil, floor, lcm

from hypothesis import given
from hypothesis import strategies as st

from mixing.quota.rounding import Quota, interleave
from mixing.quota.shares import Demand, exact, groups_due

weights = st.lists(st.integers(1, 50), min_size=1, max_size=8).map(
    lambda ws: {f"s{i}": float(w) for i, w in enumerate(ws)}
)


def targets(weights: dict[str, float], groups: int) -> dict[str, Fraction]:
    """Return the groups a step that weights ask for."""
    due = groups_due({n: Demand(weight=exact(w)) for n, w in weights.items()}, groups)
    assert due is not None
    return due


@given(weights, st.integers(1, 40))
def test_each_step_is_within_one_of_the_target_and_drift_stays_bounded(
    shares: dict[str, float], groups: int
) -> None:
    quota, due = Quota(list(shares)), targets(shares, groups)
    sums = dict.fromkeys(shares, 0)
    for step in range(1, 80):
        counts = quota.next_counts(due)
        assert sum(counts.values()) == groups
        for name, target in due.items():
            assert floor(target) <= counts[name] <= ceil(target)
            sums[name] += counts[name]
            assert abs(sums[name] - step * target) < 1.5


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(1, 12))
def test_a_whole_period_is_exact(ws: list[int], groups: int) -> None:
    due = targets({f"s{i}": float(w) for i, w in enumerate(ws)}, groups)
    quota = Quota(list(due))
    period = lcm(*(t.denominator for t in due.values()))
    sums = dict.fromkeys(due, 0)
    for _ in range(period):
        for name, count in quota.next_counts(due).items():
            sums[name] += count
    assert all(sums[name] == period * target for name, target in due.items())


def test_weights_are_read_as_the_decimals_they_were_written_as() -> None:
    assert targets({"a": 0.1, "b": 0.2}, 3) == {"a": Fraction(1), "b": Fraction(2)}


def test_a_source_with_less_than_one_group_a_step_still_gets_its_share() -> None:
    quota, due = Quota(["big", "small"]), targets({"big": 9.0, "small": 1.0}, 2)
    small = [quota.next_counts(due)["small"] for _ in range(10)]
    assert sum(small) == 2 and max(small) == 1


@given(weights, st.integers(1, 20), st.integers(0, 30))
def test_state_goes_on_as_if_never_stopped(
    shares: dict[str, float], groups: int, before: int
) -> None:
    whole, stopped, resumed = (Quota(list(shares)) for _ in range(3))
    due = targets(shares, groups)
    for _ in range(before):
        assert whole.next_counts(due) == stopped.next_counts(due)
    resumed.load_state_dict(stopped.state_dict())
    assert [whole.next_counts(due) for _ in range(9)] == [
        resumed.next_counts(due) for _ in range(9)
    ]


def test_targets_that_change_every_step_are_met_in_sum_with_short_fractions() -> None:
    """A ramp: each step within one group, the sum within two, and no fraction grows long."""
    for seed in range(10):
        rng = random.Random(seed)
        names = [f"s{i}" for i in range(rng.randint(2, 8))]
        quota, groups = Quota(names), rng.randint(1, 64)
        sums = dict.fromkeys(names, Fraction(0))
        for _ in range(400):
            due = targets({n: rng.randint(1, 1000) / 7 for n in names}, groups)
            counts = quota.next_counts(due)
            assert sum(counts.values()) == groups
            for name, target in due.items():
                assert floor(target) <= counts[name] <= ceil(target)
                sums[name] += counts[name] - target
                assert abs(sums[name]) < 2
        assert sum(quota.credit.values()) == 0
        assert max(c.denominator for c in quota.credit.values()) < 2**700


def test_a_group_given_by_another_source_is_given_back() -> None:
    quota, due = Quota(["a", "b", "c"]), targets({"a": 2.0, "b": 1.0, "c": 1.0}, 4)
    first = quota.next_counts(due)
    assert first == {"a": 2, "b": 1, "c": 1}
    quota.swap("b", "a")
    assert quota.next_counts(due) == {"a": 1, "b": 2, "c": 1}
    assert quota.next_counts(due) == first
    assert set(quota.credit.values()) == {0}


def test_interleave_spreads_evenly() -> None:
    assert "".join(interleave({"a": 4, "b": 2, "c": 0})) == "abaaba"
    assert "".join(interleave({"a": 2, "b": 2})) == "abab"


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_interleave_orders_as_exact_fractions_do(counts: list[int]) -> None:
    by_name = {str(i): count for i, count in enumerate(counts)}
    places = [
        (Fraction(2 * k + 1, 2 * count), i, str(i))
        for i, count in enumerate(counts)
        for k in range(count)
    ]
    assert list(interleave(by_name)) == [name for _, _, name in sorted(places)]


@given(weights, st.integers(2, 20), st.integers(0, 2**32))
def test_what_steps_missed_is_made_up_for_so_that_shares_of_what_came_are_exact(
    shares: dict[str, float], groups: int, seed: int
) -> None:
    """A group that never came leaves a smaller step, of which each source is due its share."""
    quota, due, dice = Quota(list(shares)), targets(shares, groups), random.Random(seed)
    got = dict.fromkeys(shares, Fraction(0))
    total = Fraction(0)
    for step in range(120):
        counts = quota.next_counts(due)
        missed = dice.choice([n for n, c in counts.items() if c]) if dice.random() < 0.3 else None
        if missed is not None and step < 60:
            quota.miss(missed, due)
            counts[missed] -= 1
        for name, count in counts.items():
            got[name] += count
        total += sum(counts.values())
        assert sum(quota.credit.values()) == 0
    for name, target in due.items():
        assert got[name] - total * target / groups == -quota.credit[name]


def test_what_a_source_is_owed_is_bounded() -> None:
    quota, due = Quota(["a", "b"]), targets({"a": 1.0, "b": 1.0}, 4)
    for _ in range(1000):
        quota.miss("a", due)
    assert 64 <= quota.credit["a"] <= 65
