"""Groups due under bounds: exact, within every bound, and by weight among the unbound."""

import random
from fractions import Fraction

import pytest

from mixing.quota.shares import Demand, groups_due, temper


def random_demands(rng: random.Random, groups: int) -> dict[str, Demand]:
    return {
        f"s{i}": Demand(
            weight=Fraction(rng.randint(1, 50)),
            cost=Fraction(rng.choice([1, 1, 1, rng.randint(1, 30)])),
            max_share=rng.choice([None, None, Fraction(rng.randint(1, 10), 10)]),
            max_groups=rng.choice([None, None, rng.randint(1, groups)]),
        )
        for i in range(rng.randint(1, 6))
    }


def is_held(demand: Demand, due: Fraction, units: Fraction) -> bool:
    at_share = demand.max_share is not None and due * demand.cost == demand.max_share * units
    return at_share or due == demand.max_groups


@pytest.mark.parametrize("block", range(10))
def test_bounds_hold_and_the_unbound_share_by_weight(block: int) -> None:
    solved = 0
    for seed in range(block * 300, block * 300 + 300):
        rng = random.Random(seed)
        groups = rng.randint(1, 40)
        demands = random_demands(rng, groups)
        due = groups_due(demands, groups)
        if due is None:
            continue
        solved += 1
        assert sum(due.values()) == groups and min(due.values()) >= 0
        units = sum((due[n] * d.cost for n, d in demands.items()), Fraction(0))
        per_weight = {n: due[n] * d.cost / d.weight for n, d in demands.items()}
        free = {per_weight[n] for n, d in demands.items() if not is_held(d, due[n], units)}
        assert len(free) <= 1
        for name, demand in demands.items():
            assert demand.max_groups is None or due[name] <= demand.max_groups
            assert demand.max_share is None or due[name] * demand.cost <= demand.max_share * units
            assert not free or per_weight[name] <= max(free)  # a bound never raises a share
    assert solved > 100


def test_nobody_is_asked_for_more_than_all_can_give() -> None:
    for seed in range(500):
        rng = random.Random(seed)
        groups = rng.randint(1, 40)
        demands = {
            n: Demand(weight=d.weight, max_share=d.max_share, max_groups=d.max_groups)
            for n, d in random_demands(rng, groups).items()
        }
        room = [
            min(Fraction(d.max_groups or groups), (d.max_share or 1) * Fraction(groups))
            for d in demands.values()
        ]
        assert (groups_due(demands, groups) is None) == (sum(room) < groups)


def test_a_cap_by_hand() -> None:
    def demand(weight: int, max_share: float | None = None) -> Demand:
        share = None if max_share is None else Fraction(str(max_share))
        return Demand(weight=Fraction(weight), max_share=share)

    # 6:2:2 of 10 with the first capped at 0.4: the six left over are split 3:3.
    due = groups_due({"a": demand(6, 0.4), "b": demand(2), "c": demand(2)}, 10)
    assert due == {"a": 4, "b": 3, "c": 3}
    assert groups_due({"a": demand(6, 0.4), "b": demand(2, 0.4)}, 10) is None


def test_samples_by_hand() -> None:
    """Equal samples from groups of 2 and of 6: three groups of the first for one of the second."""
    due = groups_due(
        {"a": Demand(weight=Fraction(1), cost=Fraction(2)),
         "b": Demand(weight=Fraction(1), cost=Fraction(6))},
        8,
    )  # fmt: skip
    assert due == {"a": 6, "b": 2}


def test_temperature_evens_out_above_1_and_sharpens_below() -> None:
    weights = {"a": Fraction(4), "b": Fraction(1), "off": Fraction(0)}

    def ratio(temperature: float) -> Fraction:
        tempered = temper(weights, temperature)
        assert tempered["off"] == 0
        return tempered["a"] / tempered["b"]

    assert ratio(1) == 4 and ratio(2) == 2 and ratio(0.5) == 16
    assert float(ratio(1e9)) == pytest.approx(1)
    assert temper(weights, 0.001)["b"] == 0  # so sharp that only the largest is left
