"""Which groups are written down."""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.rollout_record import choose


@dataclass(frozen=True)
class Group:
    source: str
    number: int


@pytest.mark.parametrize("seed", range(50))
def test_each_source_in_turn(seed: int):
    rng = random.Random(seed)
    groups: list[Any] = [Group(rng.choice("abc"), i) for i in range(rng.randint(0, 20))]
    count = rng.randint(0, 24)
    chosen = choose(groups, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(groups))
    there, had = Counter(g.source for g in groups), Counter(g.source for g in chosen)
    for a in there:
        own = [g.number for g in chosen if g.source == a]
        assert own == [g.number for g in groups if g.source == a][: len(own)]
        for b in there:
            assert had[a] == there[a] or had[a] >= had[b] - 1
