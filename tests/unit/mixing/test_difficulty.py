"""The window on one source's items, against policies whose pass rates are known."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from configs.difficulty import DifficultyConfig
from mixing.difficulty.live_pool import LivePool
from mixing.difficulty.window import Difficulty, ItemState, Observation, floor_of


def windowed(size: int, *, offline: list[float | None] | None = None, **keys: object) -> Difficulty:
    cfg = DifficultyConfig.model_validate({"window": [0.2, 0.8], **keys})
    return Difficulty("s", cfg, size, None if offline is None else np.array(offline, np.float64))


def visit(difficulty: Difficulty, item: int, *rates: float, step: int = 1) -> None:
    for rate in rates:
        seen = Observation(item=item, pass_rate=rate, rollouts=8)
        difficulty.observe(step, [seen])


class Run:
    """A source trained step by step by a policy that passes item i with `rate(i, step)`."""

    def __init__(
        self,
        pool: LivePool,
        rate: Callable[[int, int], float],
        *,
        draws: int = 4,
        group: int = 16,
        ahead: int = 0,
    ):
        self.pool, self.rate = pool, rate
        self.draws, self.group, self.ahead = draws, group, ahead
        self.planned: dict[int, list[tuple[int, int]]] = {}
        self.step = 0
        self.warned: list[str] = []
        pool.require(draws)

    def plan(self) -> list[tuple[int, int]]:
        """Plan one more step, and train the one that is `ahead` steps back."""
        self.step += 1
        self.pool.begin(self.step)
        drawn: list[tuple[int, int]] = []
        for _ in range(self.draws):
            taken = self.pool.take([item for item, _ in drawn])
            assert taken is not None
            drawn.append(taken)
        self.planned[self.step] = drawn
        if self.step > self.ahead:
            self.train(self.step - self.ahead)
        return drawn

    def train(self, step: int) -> None:
        seen: list[Observation] = []
        for item, draw in self.planned.pop(step):
            dice = random.Random(f"{item}/{draw}/{step}")
            passed = sum(dice.random() < self.rate(item, step) for _ in range(self.group))
            seen.append(Observation(item=item, pass_rate=passed / self.group, rollouts=self.group))
        self.pool.observe(step, seen)
        self.warned.append(str(self.pool.difficulty.take_warning()))


def test_an_item_is_retired_after_so_many_visits_above_the_window_in_a_row() -> None:
    difficulty = windowed(20, decay=0.0, easy={"retire_after": 3})
    visit(difficulty, 5, 1.0, 1.0)
    assert difficulty.state(5) is ItemState.LIVE
    visit(difficulty, 5, 0.5, 1.0, 1.0)
    assert difficulty.state(5) is ItemState.LIVE  # the row was broken
    visit(difficulty, 5, 1.0)
    assert difficulty.state(5) is ItemState.RETIRED
    assert not difficulty.eligible[5] and difficulty.num_eligible == 19


def test_an_item_is_parked_below_the_window_and_due_again_on_schedule() -> None:
    difficulty = windowed(20, hard={"park_after": 2, "retry_every": 7})
    visit(difficulty, 3, 0.0, 0.0, step=4)
    assert difficulty.state(3) is ItemState.PARKED
    assert [difficulty.due(step, ()) for step in (4, 10, 11, 30)] == [None, None, 3, 3]
    assert difficulty.due(11, avoid=(3,)) is None
    difficulty.drawn(3, 11)
    assert difficulty.due(17, ()) is None  # it is out; unheard of by step 18, it is due again
    assert difficulty.due(18, ()) == 3


@pytest.mark.parametrize(("rate", "state"), [(0.0, "PARKED"), (0.25, "LIVE"), (1.0, "LIVE")])
def test_a_retry_decides_by_itself_whatever_was_before(rate: float, state: str) -> None:
    difficulty = windowed(20, estimate="mean", hard={"park_after": 2})
    visit(difficulty, 3, 0.0, 0.0, 0.0)
    visit(difficulty, 3, rate, step=101)
    assert difficulty.state(3) is ItemState[state]
    assert difficulty.estimate(3) == rate


def test_min_obs_keeps_an_item_from_being_judged_early() -> None:
    difficulty = windowed(20, min_obs=4, easy={"retire_after": 1})
    visit(difficulty, 0, 1.0, 1.0, 1.0)
    assert difficulty.state(0) is ItemState.LIVE
    visit(difficulty, 0, 1.0)
    assert difficulty.state(0) is ItemState.RETIRED


def test_zero_turns_retiring_or_parking_off() -> None:
    difficulty = windowed(20, easy={"retire_after": 0}, hard={"park_after": 0})
    visit(difficulty, 0, *[1.0] * 9)
    visit(difficulty, 1, *[0.0] * 9)
    assert difficulty.snapshot().live == 20


def test_estimates_are_what_their_names_say() -> None:
    ema, mean = windowed(9, decay=0.75), windowed(9, estimate="mean")
    for difficulty in (ema, mean):
        for rate, rollouts in ((1.0, 8), (0.5, 4), (0.0, 4)):
            seen = Observation(item=0, pass_rate=rate, rollouts=rollouts)
            difficulty.observe(1, [seen])
    assert ema.estimate(0) == pytest.approx((1 * 0.75 + 0.5 * 0.25) * 0.75)
    assert mean.estimate(0) == pytest.approx(10 / 16)
    assert mean.estimate(1) is None


def test_the_bounds_belong_to_the_window() -> None:
    difficulty = windowed(20, decay=0.0, easy={"retire_after": 1}, hard={"park_after": 1})
    visit(difficulty, 0, 0.8, 0.8, 0.8)
    visit(difficulty, 1, 0.2, 0.2, 0.2)
    assert difficulty.snapshot().live == 20


def test_a_retired_item_is_tried_again_only_where_asked_and_comes_back_when_forgotten() -> None:
    never = windowed(20, easy={"retire_after": 2})
    visit(never, 0, 1.0, 1.0)
    assert never.due(10**6, ()) is None
    again = windowed(20, easy={"retire_after": 2, "retry_every": 50})
    visit(again, 0, 1.0, 1.0)
    assert again.due(51, ()) == 0
    visit(again, 0, 0.5, step=51)
    assert again.state(0) is ItemState.LIVE


def test_offline_rates_bench_from_the_start_and_retries_are_spread() -> None:
    rates: list[float | None] = [0.0] * 50 + [0.5] * 20 + [1.0] * 20 + [None] * 10
    difficulty = windowed(100, offline=rates, hard={"retry_every": 25})
    counts = difficulty.snapshot()
    assert (counts.live, counts.parked, counts.retired, counts.unseen) == (30, 50, 20, 10)
    due_by_step = Counter[int]()
    for step in range(1, 26):
        while (item := difficulty.due(step, ())) is not None:
            difficulty.drawn(item, step)
            due_by_step[step] += 1
    assert due_by_step == dict.fromkeys(range(1, 26), 2)


def test_an_offline_rate_counts_as_the_first_visit() -> None:
    difficulty = windowed(20, offline=[0.4] * 20, min_obs=2, easy={"retire_after": 1})
    visit(difficulty, 0, 1.0)
    assert difficulty.estimate(0) == pytest.approx(0.7)
    visit(difficulty, 0, 1.0)
    assert difficulty.state(0) is ItemState.RETIRED


def test_the_floor_widens_to_the_nearest_and_warns_once() -> None:
    difficulty = windowed(6, decay=0.0, min_live=4, easy={"retire_after": 1})
    for item, rate in enumerate((1.0, 0.95, 0.9, 0.85)):
        visit(difficulty, item, rate, rate)
    counts = difficulty.snapshot()
    assert (counts.live, counts.widened, counts.retired) == (4, 2, 2)
    assert [difficulty.eligible[item] for item in range(4)] == [False, False, True, True]
    warning = difficulty.take_warning()
    assert warning is not None and (warning.live, warning.floor) == (2, 4)
    assert "2 items are live by difficulty.window, fewer than 4" in str(warning)
    visit(difficulty, 2, 0.5, step=2)
    counts = difficulty.snapshot()
    assert (counts.live, counts.widened) == (4, 1)
    assert difficulty.take_warning() is None
    visit(difficulty, 3, 0.5, step=3)
    assert difficulty.snapshot().widened == 0
    assert difficulty.take_warning() is None
    visit(difficulty, 3, 1.0, 1.0, step=4)
    assert difficulty.take_warning() is not None  # it binds anew


@pytest.mark.parametrize(
    ("keys", "size", "floor"),
    [
        ({}, 1000, 8),
        ({}, 5, 5),
        ({"min_live": 3}, 1000, 3),
        ({"min_live_share": 0.25}, 1001, 251),
        ({"min_live": 400, "min_live_share": 0.25}, 1000, 400),
    ],
)
def test_the_floor_is_the_larger_of_number_and_share(
    keys: dict[str, object], size: int, floor: int
) -> None:
    assert floor_of(DifficultyConfig.model_validate(keys), size) == floor


def test_an_observation_without_rollouts_is_refused() -> None:
    with pytest.raises(ValueError, match="not an observation"):
        windowed(3).observe(1, [Observation(item=0, pass_rate=0.0, rollouts=0)])
    with pytest.raises(ValueError, match="not an observation"):
        windowed(3).observe(1, [Observation(item=0, pass_rate=math.nan, rollouts=1)])


@pytest.mark.parametrize("seed", range(20))
def test_counts_agree_with_states_and_the_floor_holds_whatever_is_observed(seed: int) -> None:
    dice = random.Random(seed)
    size = dice.randint(1, 30)
    difficulty = windowed(
        size,
        min_live=dice.randint(1, size),
        easy={"retire_after": dice.randint(0, 3), "retry_every": dice.randint(0, 5)},
        hard={"park_after": dice.randint(0, 3), "retry_every": dice.randint(1, 5)},
        estimate=dice.choice(["ema", "mean"]),
    )
    floor = floor_of(difficulty._cfg, size)  # pyright: ignore[reportPrivateUsage]
    for step in range(1, 80):
        items = dice.sample(range(size), dice.randint(0, size))
        for item in items:
            difficulty.drawn(item, step)
        rates = [dice.choice([0.0, 0.0, 0.5, 1.0, 1.0]) for _ in items]
        before = difficulty.eligible.copy()
        came = difficulty.observe(
            step,
            [
                Observation(item=i, pass_rate=r, rollouts=4)
                for i, r in zip(items, rates, strict=True)
            ],
        )
        assert came == np.flatnonzero(difficulty.eligible & ~before).tolist()
        counts = difficulty.snapshot()
        states = Counter(difficulty.state(item) for item in range(size))
        assert counts.live + counts.parked + counts.retired == size
        assert counts.live == difficulty.num_eligible == int(difficulty.eligible.sum()) >= floor
        assert counts.widened == max(0, floor - states[ItemState.LIVE])
        assert counts.unseen == sum(difficulty.estimate(i) is None for i in range(size))


def test_sampling_stays_within_the_window() -> None:
    rates = [item / 199 for item in range(200)]
    pool = LivePool("s", windowed(200, hard={"retry_every": 1000}), seed=3)
    run = Run(pool, lambda item, _: rates[item], draws=8)
    for _ in range(300):
        run.plan()
    late = [rates[item] for _ in range(100) for item, _ in run.plan()]
    assert np.mean([0.1 <= rate <= 0.9 for rate in late]) > 0.95
    assert {rate for rate in rates if 0.4 < rate < 0.6} < set(late)  # not a corner of it alone
    counts = pool.difficulty.snapshot()
    assert counts.retired > 20 and counts.parked > 20 and counts.widened == 0


def test_the_hopeless_are_tried_again_on_schedule_and_come_back_when_they_are_learnt() -> None:
    pool = LivePool("s", windowed(40, hard={"park_after": 2, "retry_every": 20}), seed=5)
    hopeless = set(range(8))
    run = Run(pool, lambda item, step: float(item not in hopeless or step > 300) * 0.5)
    visits: dict[int, list[int]] = {item: [] for item in hopeless}
    for _ in range(300):
        for item, _ in run.plan():
            if item in hopeless:
                visits[item].append(run.step)
    assert pool.difficulty.snapshot().parked == 8
    gaps = [b - a for steps in visits.values() for a, b in pairwise(steps[1:])]
    assert len(gaps) > 60 and set(gaps) <= {20, 21, 22}
    for _ in range(60):
        run.plan()
    assert pool.difficulty.snapshot().parked == 0


def test_retries_leave_most_draws_to_the_living() -> None:
    offline: list[float | None] = [0.0] * 900 + [0.5] * 100
    difficulty = windowed(1000, offline=offline, hard={"retry_every": 10}, retry_share=0.25)
    run = Run(LivePool("s", difficulty, seed=1), lambda item, _: 0.5 * (item >= 900), draws=8)
    drawn = [item for _ in range(50) for item, _ in run.plan()]
    assert sum(item < 900 for item in drawn) == len(drawn) // 4


@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_small_source_never_empties_nor_repeats_within_a_step(rate: float, ahead: int) -> None:
    pool = LivePool("s", windowed(12, min_live=2, hard={"retry_every": 30}), seed=2)
    run = Run(pool, lambda *_: rate, draws=5, ahead=ahead)
    drawn = Counter[int]()
    for _ in range(400):
        step = [item for item, _ in run.plan()]
        assert len(set(step)) == 5
        drawn.update(step)
        assert pool.difficulty.snapshot().live >= 2
    assert set(drawn) == set(range(12))
    assert max(drawn.values()) < 3 * min(drawn.values())  # the held ones take turns


def test_a_source_of_mastered_and_open_items_trains_on_the_open_ones() -> None:
    pool = LivePool("s", windowed(12, min_live=4), seed=2)
    run = Run(pool, lambda item, _: 1.0 if item < 8 else 0.5, draws=4)
    for _ in range(100):
        run.plan()
    late = Counter(item for _ in range(100) for item, _ in run.plan())
    assert sum(late[item] for item in range(8, 12)) > 0.9 * late.total()


def test_a_round_visits_each_live_item_once_in_an_order_of_the_seed() -> None:
    def order(seed: int, name: str = "s") -> list[int]:
        pool = LivePool(name, windowed(50), seed)
        return [drawn[0] for _ in range(100) if (drawn := pool.take(())) is not None]

    first = order(1)
    assert sorted(first[:50]) == sorted(first[50:]) == list(range(50))
    assert first[:50] != first[50:] and first == order(1)
    assert first != order(2) and first != order(1, "other")


def test_draws_of_an_item_are_numbered_and_bounded_in_all() -> None:
    pool = LivePool("s", windowed(3), seed=1)
    drawn = [pool.take((), end=7) for _ in range(9)]
    assert drawn[7:] == [None, None] and pool.take_spare((), end=7) is None
    assert sorted(d for d in drawn if d is not None) == sorted(
        [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (drawn[6] or (0, 0))]
    )
    assert pool.taken == 7 and pool.epoch == pytest.approx(7 / 3)


def test_where_all_items_are_in_the_step_there_is_no_other() -> None:
    pool = LivePool("s", windowed(3), seed=1)
    assert pool.take([0, 1, 2]) is None
    assert pool.take([0, 2]) is not None


def test_a_spare_is_live_or_there_is_none() -> None:
    pool = LivePool("s", windowed(6, min_live=1, easy={"retire_after": 1}), seed=1)
    pool.observe(1, [Observation(item=i, pass_rate=1.0, rollouts=4) for i in range(3)] * 2)
    spares = []
    while (spare := pool.take_spare(spares)) is not None:
        spares.append(spare[0])
    assert sorted(spares) == [3, 4, 5]
    assert (pool.take(spares) or (9, 9))[0] in (0, 1, 2)


@pytest.mark.parametrize("seed", range(12))
def test_resume_at_any_moment_gives_the_same_sequence(seed: int) -> None:
    dice = random.Random(seed)
    size, ahead = dice.choice([5, 12, 60]), dice.choice([0, 1, 3])
    keys: dict[str, object] = {
        "easy": {"retire_after": 2, "retry_every": dice.choice([0, 9])},
        "hard": {"park_after": 2, "retry_every": 7},
        "min_live": dice.randint(1, size),
    }
    offline: list[float | None] | None = None
    if dice.random() < 0.5:
        offline = [dice.choice([None, 0.0, 0.5, 1.0]) for _ in range(size)]

    def pool() -> LivePool:
        return LivePool("s", windowed(size, offline=offline, **keys), seed)

    def rate(item: int, step: int) -> float:
        return min(1.0, (item % 7) / 6 + step / 400)

    whole = Run(pool(), rate, ahead=ahead)
    expected = [whole.plan() for _ in range(160)]
    run, found = Run(pool(), rate, ahead=ahead), []
    cuts = set(dice.sample(range(160), 8))
    for step in range(160):
        if step in cuts:
            fresh = pool()
            fresh.load_state_dict(json.loads(json.dumps(run.pool.state_dict())))
            run.pool = fresh
        found.append(run.plan())
    assert found == expected and run.warned == whole.warned
    assert run.pool.state_dict() == whole.pool.state_dict()
    assert run.pool.difficulty.snapshot() == whole.pool.difficulty.snapshot()


def test_state_holds_the_observed_items_alone() -> None:
    pool = LivePool("s", windowed(100_000, offline=[0.0, 0.5] * 50_000), seed=1)
    run = Run(pool, lambda *_: 0.5)
    for _ in range(5):
        run.plan()
    assert len(json.dumps(pool.state_dict())) < 4000
