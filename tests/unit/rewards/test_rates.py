"""The rolling rate of invalid rollouts: by source, over a window, with reasons when it stops."""

import json
import pickle

import pytest

from rewards.rates import MIN_SEEN, WINDOW, ErrorRates, GraderErrorRateExceeded
from rollouts.types import Boundary, GroupSummary, RolloutError, RolloutStats
from tests.made_groups import made_group, made_rollout

GOOD = made_rollout(1.0)


def bad(message: str = "no") -> RolloutStats:
    error = RolloutError(boundary=Boundary.REWARD, kind="ValueError", message=message)
    return made_rollout(None, error=error)


def summary(source: str, *rollouts: RolloutStats, group_id: str = "g") -> GroupSummary:
    return made_group(rollouts, source=source, group_id=group_id)


def test_the_error_names_source_rate_bound_and_the_newest_distinct_reasons() -> None:
    rates = ErrorRates(0.2)
    rates.observe(summary("a", *[GOOD] * 48, bad("old"), bad("w"), *[bad("x")] * 8))
    assert rates.rate("a") == pytest.approx(10 / 58)
    with pytest.raises(GraderErrorRateExceeded) as caught:
        rates.observe(summary("a", bad("x"), bad("y"), bad("z"), bad("z")))
    error = caught.value
    assert (error.source, error.bound) == ("a", 0.2)
    assert error.rate == pytest.approx(14 / 62)
    assert [e.rsplit(" ", 1)[1] for e in error.examples] == ["z", "y", "x"]
    for words in ("'a'", "23%", "20%", "reward: ValueError: z"):
        assert words in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_sources_are_counted_apart() -> None:
    rates = ErrorRates(0.5)
    rates.observe(summary("a", *[bad()] * (MIN_SEEN - 1)))
    rates.observe(summary("b", *[GOOD] * 100))
    assert (rates.rate("a"), rates.rate("b"), rates.rate("c")) == (1.0, 0.0, 0.0)
    with pytest.raises(GraderErrorRateExceeded):
        rates.observe(summary("a", GOOD))


def test_only_the_window_counts_and_the_bound_itself_is_allowed() -> None:
    rates = ErrorRates(0.25)
    quarter = [bad(), GOOD, GOOD, GOOD]
    rates.observe(summary("a", *quarter * (WINDOW // 4)))
    assert rates.rate("a") == 0.25
    rates.observe(summary("a", *[GOOD] * WINDOW))
    assert rates.rate("a") == 0.0
    with pytest.raises(GraderErrorRateExceeded):
        rates.observe(summary("a", *[bad()] * (WINDOW // 4 + 1)))


def test_a_resumed_run_goes_on_counting_and_counts_no_group_twice() -> None:
    rates = ErrorRates(0.5)
    rates.observe(summary("a", *[bad("trained")] * 20, group_id="1"))
    rates.observe(summary("a", *[bad("under way")] * 8, group_id="2"))
    rates.observe(summary("b", GOOD, bad(), group_id="3"))
    state = json.loads(json.dumps(rates.state_dict({"2"})))

    resumed = ErrorRates(0.5)
    resumed.load_state_dict(state)
    assert (resumed.rate("a"), resumed.rate("b")) == (1.0, 0.5)
    resumed.observe(summary("a", *[GOOD] * 8, group_id="2"))
    assert resumed.rate("a") == pytest.approx(20 / 28)
    with pytest.raises(GraderErrorRateExceeded) as caught:
        resumed.observe(summary("a", *[GOOD] * 4, group_id="4"))
    assert caught.value.examples == ("reward: ValueError: trained",)
    resumed.load_state_dict({})
    assert resumed.rate("a") == 0.0
