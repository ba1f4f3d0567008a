"""Groups per source: right in every step's sum, near the target, exact in the long run."""

from fractions import Fraction
from math import ceil, floor, lcm

from hypothesis import given
from hypothesis import strategies as st

from mixing.quota import Quota, interleave

weights = st.lists(st.integers(1, 50), min_size=1, max_size=8).map(
    lambda ws: {f"s{i}": float(w) for i, w in enumerate(ws)}
)


@given(weights, st.integers(1, 40))
def test_each_step_is_within_one_of_the_target_and_drift_stays_bounded(
    shares: dict[str, float], groups: int
) -> None:
    quota = Quota(shares, groups)
    sums = dict.fromkeys(shares, 0)
    for step in range(1, 80):
        counts = quota.next_counts()
        assert sum(counts.values()) == groups
        for name, target in quota.targets.items():
            assert floor(target) <= counts[name] <= ceil(target)
            sums[name] += counts[name]
            assert abs(sums[name] - step * target) < 1.5


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4), st.integers(1, 12))
def test_a_whole_period_is_exact(ws: list[int], groups: int) -> None:
    quota = Quota({f"s{i}": float(w) for i, w in enumerate(ws)}, groups)
    period = lcm(*(t.denominator for t in quota.targets.values()))
    sums = dict.fromkeys(quota.targets, 0)
    for _ in range(period):
        for name, count in quota.next_counts().items():
            sums[name] += count
    assert all(sums[name] == period * target for name, target in quota.targets.items())


def test_weights_are_read_as_the_decimals_they_were_written_as() -> None:
    assert Quota({"a": 0.1, "b": 0.2}, 3).targets == {"a": Fraction(1), "b": Fraction(2)}


def test_a_source_with_less_than_one_group_a_step_still_gets_its_share() -> None:
    quota = Quota({"big": 9.0, "small": 1.0}, 2)
    small = [quota.next_counts()["small"] for _ in range(10)]
    assert sum(small) == 2 and max(small) == 1


@given(weights, st.integers(1, 20), st.integers(0, 30))
def test_state_goes_on_as_if_never_stopped(
    shares: dict[str, float], groups: int, before: int
) -> None:
    whole, stopped, resumed = (Quota(shares, groups) for _ in range(3))
    for _ in range(before):
        assert whole.next_counts() == stopped.next_counts()
    resumed.load_state_dict(stopped.state_dict())
    assert [whole.next_counts() for _ in range(9)] == [resumed.next_counts() for _ in range(9)]


def test_interleave_spreads_evenly() -> None:
    assert "".join(interleave({"a": 4, "b": 2, "c": 0})) == "abaaba"
    assert "".join(interleave({"a": 2, "b": 2})) == "abab"
