"""The staleness rule: simulate the loop and look at what each step trains on."""

from hypothesis import given
from hypothesis import strategies as st

from rollouts.staleness import max_groups_in_flight, may_dispatch, staleness
from rollouts.types import GroupSummary
from tests.made_groups import made_group


def summary(step: int, oldest: int, newest: int) -> GroupSummary:
    return made_group(version=oldest, newest=newest, step=step)


def test_synchronous_training_samples_with_the_very_policy() -> None:
    assert may_dispatch(step=1, version=0, max_staleness=0)
    assert not may_dispatch(step=2, version=0, max_staleness=0)
    assert may_dispatch(step=2, version=1, max_staleness=0)


def test_staleness_counts_from_the_oldest_token() -> None:
    assert staleness(summary(step=6, oldest=3, newest=5), version=5) == 2


@given(st.integers(0, 4), st.integers(1, 5), st.integers(1, 12))
def test_greedy_dispatch_never_exceeds_the_bound_and_reaches_it(
    max_staleness: int, groups: int, steps: int
) -> None:
    dispatched: dict[int, int] = {}
    in_flight, seen = 0, 0
    for version in range(steps):
        while may_dispatch(len(dispatched) + 1, version, max_staleness):
            dispatched[len(dispatched) + 1] = version
            in_flight += groups
        seen = max(seen, in_flight)
        oldest = dispatched[version + 1]
        late = staleness(summary(step=version + 1, oldest=oldest, newest=oldest), version)
        assert late == min(version, max_staleness)
        in_flight -= groups
    assert seen == max_groups_in_flight(groups, max_staleness)
