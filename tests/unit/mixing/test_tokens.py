"""Shares of loss tokens: they converge whatever the lengths, also when reports come late."""

import json
import random
from collections.abc import Sequence

import pytest

from configs.schema import RunConfig
from mixing.quota.allocator import Allocator
from mixing.quota.tokens import Trained


def recipe(
    weights: list[float],
    groups: int,
    max_staleness: int,
    *,
    strategy: str = "quota",
    stages: Sequence[object] = (),
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 1000,
            "model": {"path": "m"},
            "mix": {"unit": "loss_tokens", "strategy": strategy},
            "stages": stages,
            "batch": {"groups_per_step": groups, "max_staleness": max_staleness},
            "sources": [
                {
                    "name": f"s{i}",
                    "data": {"procedural": "reasoning_gym/lcm"},
                    "rewards": [{"name": "r", "use": "exact"}],
                    "weight": weight,
                }
                for i, weight in enumerate(weights)
            ],
        }
    )


class World:
    """Trains what is planned, groups of a source being long or short at random."""

    def __init__(self, cfg: RunConfig, mean: list[float], seed: int):
        self.names = [s.name for s in cfg.sources]
        self.allocator = Allocator(cfg, dict.fromkeys(self.names))
        self.taken = dict.fromkeys(self.names, 0)
        self.mean = dict(zip(self.names, mean, strict=True))
        self.rng = random.Random(seed)
        self.tokens = dict.fromkeys(self.names, 0)
        self.counts: list[dict[str, int]] = []

    def step(self, number: int, growth: float = 1.0) -> None:
        counts = dict(self.allocator.allocate(number, self.taken).counts)
        group_sizes = self.allocator.group_sizes()
        self.counts.append(counts)
        trained: dict[str, Trained] = {}
        for name, count in counts.items():
            mean, size = self.mean[name] * group_sizes[name] / 8, group_sizes[name]
            sizes = [mean * self.rng.lognormvariate(0, 0.5) for _ in range(count)]
            tokens = sum(max(1, int(size * growth)) for size in sizes)
            self.tokens[name] += tokens
            if count:
                trained[name] = Trained(count, size * count, tokens)
        self.allocator.observe_trained(number, trained)

    def worst_error(self, weights: list[float]) -> float:
        total = sum(self.tokens.values())
        return max(
            abs(self.tokens[name] / total - weight / sum(weights))
            for name, weight in zip(self.names, weights, strict=True)
        )


@pytest.mark.parametrize("seed", range(24))
def test_the_share_of_tokens_converges_and_no_count_is_negative(seed: int) -> None:
    rng = random.Random(seed)
    groups, late = rng.choice([16, 64, 128]), rng.choice([0, 1, 2, 4])
    weights = [rng.choice([0.5, 1, 2, 3]) for _ in range(rng.randint(2, 5))]
    mean = [rng.choice([60.0, 120.0, 300.0, 900.0]) for _ in weights]
    world = World(recipe(weights, groups, late), mean, seed)
    errors: list[float] = []
    for step in range(1, 401):
        world.step(step, growth=1 + step / 200)  # lengths triple on the way
        assert sum(world.counts[-1].values()) == groups
        assert min(world.counts[-1].values()) >= 0
        errors.append(world.worst_error(weights))
    assert errors[199] < 0.006 and errors[399] < 0.004


@pytest.mark.parametrize("late", [0, 1, 4, 8])
def test_late_reports_make_no_waves(late: int) -> None:
    """Lengths without noise: once known, counts stay within a group of where they belong."""
    world = World(recipe([1, 1], 60, late), [100.0, 500.0], 0)
    world.rng.lognormvariate = lambda mu, sigma: 1.0  # type: ignore[method-assign]
    for step in range(1, 301):
        world.step(step)
    assert {c["s0"] for c in world.counts[200:]} <= {49, 50, 51}
    assert world.worst_error([1, 1]) < 0.002


def test_a_jump_in_length_is_followed_without_starving_or_flooding_anyone() -> None:
    world = World(recipe([1, 1, 1], 48, 2), [200.0, 200.0, 200.0], 3)
    for step in range(1, 101):
        world.step(step)
    world.mean["s0"] = 2000.0
    before = dict(world.tokens)
    for step in range(101, 301):
        world.step(step)
        assert sum(world.counts[-1].values()) == 48
    since = {name: world.tokens[name] - before[name] for name in world.names}
    assert since["s0"] / sum(since.values()) == pytest.approx(1 / 3, abs=0.01)
    assert all(max(c[n] for c in world.counts[200:]) <= 30 for n in ("s1", "s2"))


def test_a_source_of_one_token_groups_floods_only_while_they_are_so_short() -> None:
    world = World(recipe([1, 3], 32, 1), [0.1, 100.0], 1)
    for step in range(1, 301):
        world.step(step)
    assert min(c["s0"] for c in world.counts[250:]) >= 29
    world.mean["s0"] = 100.0
    for step in range(301, 500):
        world.step(step)
    later = [c["s0"] for c in world.counts[330:]]
    assert sum(later) / len(later) == pytest.approx(8, abs=0.5) and max(later) < 17


def test_before_any_report_the_largest_possible_group_is_the_estimate() -> None:
    world = World(recipe([1, 1], 8, 4), [1.0, 1.0], 0)
    counts = [dict(world.allocator.allocate(step, world.taken).counts) for step in range(1, 6)]
    assert counts == [{"s0": 4, "s1": 4}] * 5


@pytest.mark.parametrize("seed", range(12))
def test_drawn_at_random_the_share_of_tokens_converges_too(seed: int) -> None:
    """What chance gave or took is repaid, also while lengths change and reports come late."""
    rng = random.Random(seed)
    groups, late = rng.choice([8, 32, 64]), rng.choice([0, 1, 4])
    weights = [rng.choice([0.5, 1, 2, 3]) for _ in range(rng.randint(2, 5))]
    mean = [rng.choice([60.0, 120.0, 300.0, 900.0]) for _ in weights]
    world = World(recipe(weights, groups, late, strategy="sampled"), mean, seed)
    for step in range(1, 401):
        world.step(step, growth=1 + step / 100)
        assert sum(world.counts[-1].values()) == groups
    assert world.worst_error(weights) < 0.006
    if groups >= 32:
        assert len({tuple(c.items()) for c in world.counts[200:]}) > 8  # drawn, not rounded


@pytest.mark.parametrize("late", [0, 2])
def test_another_group_size_counts_at_once(late: int) -> None:
    """s0's groups are four times as large from step 41 on: the very step has a fourth of them."""
    stages = [{"until": {"step": 40}, "weights": {"s0": 1}}, {"group_size": {"s0": 32}}]
    world = World(recipe([1, 1], 60, late, stages=stages), [100.0, 100.0], 0)
    world.rng.lognormvariate = lambda mu, sigma: 1.0  # type: ignore[method-assign]
    for step in range(1, 81):
        world.step(step)
        shares = world.counts[-1]
        assert abs(shares["s0"] - (30 if step <= 40 else 12)) <= 1 or step <= 4 + late
    assert world.worst_error([1, 1]) < 0.002


def test_the_accounts_go_on_from_their_state() -> None:
    stages = [{"until": {"step": 6}, "weights": {"s0": 1}}, {"group_size": {"s0": 16}}]
    cfg = recipe([1, 2], 12, 3, strategy="sampled", stages=stages)
    one, other = (World(cfg, [50.0, 200.0], 3) for _ in range(2))
    for step in range(1, 20):
        one.step(step)
        state = json.loads(json.dumps(other.allocator.state_dict()))
        other.allocator = Allocator(cfg, dict.fromkeys(other.names))
        other.allocator.load_state_dict(state)
        other.step(step)
    assert one.counts == other.counts
