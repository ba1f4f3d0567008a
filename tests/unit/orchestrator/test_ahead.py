"""Slow sources ahead of the others, late groups, and more groups than needed: in virtual time.

A driver with the real mixer, ledger and producer, on an event loop whose clock jumps to the next
timer: hours of sampling take no time, and what a step takes is exact.
"""

import asyncio
import json
import random
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from mixing.ledger.account import Account
from mixing.ledger.events import Moved, Trained, from_row
from mixing.ledger.ledger import Ledger, read_account, rows
from mixing.mixer import Mixer
from mixing.quota.allocator import MixEvent
from orchestrator.clock import PhaseClock
from orchestrator.producer import RolloutProducer
from rollouts.packing import plan_minibatches
from rollouts.types import GeneratedGroup, GroupRequest, GroupSummary, TrainBatch
from tests.unit.orchestrator.fakes import MadeSource, generated, graded

TRAIN_S = 1.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: where nothing is ready its clock goes to the next timer."""

    def __init__(self) -> None:
        super().__init__(_Selector(self))
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop):
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("everybody waits for ever")
        self._loop.now += timeout
        return super().select(0)


def in_virtual_time(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A source, and how its groups fare."""

    weight: float = 1.0
    size: int = 500
    seconds: float = 1.0
    """To sample a group, on average."""
    flat: float = 0.0
    """Share of groups that teach nothing, which are replaced."""
    bound: int | None = None
    group_size: int = 2
    queue_s: float = 0.0
    """Longest that a group waits for an engine."""


Kinds = Mapping[str, Kind]


def recipe(
    kinds: Kinds, *, steps: int, groups: int, staleness: int = 0, **mix: object
) -> RunConfig:
    sources = [
        {
            "name": name,
            "data": {"procedural": "reasoning_gym/lcm", "size": kind.size},
            "rewards": [{"name": "r", "use": "exact"}],
            "weight": kind.weight,
            "group_size": kind.group_size,
            "max_staleness": kind.bound,
            "difficulty": {"drop_zero_variance": kind.flat > 0},
        }
        for name, kind in kinds.items()
    ]
    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": steps,
            "model": {"path": "m"},
            "sources": sources,
            "batch": {"groups_per_step": groups, "max_staleness": staleness},
            "mix": mix,
        }
    )


class Engines:
    """Engines that take up to `spread` times as long or as short, by dice of their own; whether a
    group is flat is its own matter."""

    def __init__(self, kinds: Kinds, seed: int, *, spread: float):
        self._kinds, self._dice, self._spread = kinds, random.Random(seed), spread
        self.version = 0
        self.sampled: Counter[str] = Counter()

    async def generate(self, request: GroupRequest) -> GeneratedGroup:
        kind = self._kinds[request.task.source]
        self.sampled[request.task.source] += 1
        await asyncio.sleep(kind.queue_s * self._dice.random())
        version = self.version
        await asyncio.sleep(kind.seconds * self._dice.uniform(1 / self._spread, self._spread))
        return generated(request, (request, version))

    async def grade(self, group: GeneratedGroup) -> GroupSummary:
        request, version = group.ref  # type: ignore[misc]
        assert isinstance(request, GroupRequest)
        share = self._kinds[request.task.source].flat
        flat = random.Random(request.group_id.rpartition("a")[0]).random() < share
        rewards = [float(index == 0 and not flat) for index in range(request.group_size)]
        return graded(request, rewards, version=version, newest=self.version)


@dataclass
class Run:
    """A run directory, so to say: a ledger, the last checkpoint, and what was seen."""

    cfg: RunConfig
    kinds: Kinds
    ledger: Path
    checkpoint: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0
    trained: list[tuple[str, ...]] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    """Virtual seconds of each step."""
    events: list[MixEvent] = field(default_factory=list)

    def go(self, engines: Engines, *, stop_s: float | None = None) -> "Run":
        """Go on from the checkpoint to the end, or until killed after some virtual seconds."""

        async def work() -> None:
            try:
                await asyncio.wait_for(self._work(engines), stop_s)
            except TimeoutError:
                assert stop_s is not None

        in_virtual_time(work())
        return self

    async def _work(self, engines: Engines) -> None:
        self.attempts += 1
        saved, mixer = self.checkpoint, self._mixer()
        step = saved.get("step", 0)
        pending = RolloutProducer.parse_pending(saved.get("pending", []))
        del self.trained[step:], self.took[step:]
        if saved:
            mixer.load_state_dict(saved["mixer"])
        engines.version = step
        with Ledger.open(
            self.ledger,
            attempt=self.attempts,
            step=step,
            offset=saved.get("offset", 0),
            pending=pending,
        ) as ledger:
            producer = RolloutProducer(
                self.cfg,
                mixer=mixer,
                ledger=ledger,
                rollout=engines,  # type: ignore[arg-type]
                reward=engines,  # type: ignore[arg-type]
                clock=PhaseClock(),
                version=step,
                pending=pending,
            )
            async with producer:
                while step < self.cfg.num_steps:
                    step += 1
                    await self._step(producer, mixer, engines, step)
                    if step % 5 == 0:
                        producer.check_ledger()
                        state = {
                            "step": step,
                            "mixer": mixer.state_dict(),
                            "pending": producer.pending_state(),
                            "offset": ledger.offset,
                        }
                        self.checkpoint = json.loads(json.dumps(state))
            self.events += mixer.take_events()

    async def _step(
        self, producer: RolloutProducer, mixer: Mixer, engines: Engines, step: int
    ) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        groups = await producer.take(step)
        self.trained.append(tuple(g.group_id for g in groups))
        await asyncio.sleep(TRAIN_S)
        samples = [s for g in groups for s in g.samples]
        plan = plan_minibatches(samples, dp=1, num_minibatches=1, max_tokens=10**6)
        engines.version = step
        producer.trained(step, step, groups, TrainBatch(step=step, minibatches=plan))
        producer.advance(step)
        self.took.append(clock() - began)

    def _mixer(self) -> Mixer:
        return Mixer(self.cfg, {n: MadeSource(n, k.size) for n, k in self.kinds.items()})

    @property
    def account(self) -> Account:
        return read_account(self.ledger)


MakeRun = Callable[..., Run]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a maker of runs, each with a ledger of its own."""
    made: list[Run] = []

    def make(kinds: Kinds, **recipe_of: Any) -> Run:
        made.append(Run(recipe(kinds, **recipe_of), kinds, tmp_path / f"{len(made)}.jsonl"))
        return made[-1]

    return make


FIVE: Kinds = {
    "code": Kind(weight=2.0, bound=1),
    "maths": Kind(weight=1.5, bound=0, group_size=4),
    "slow": Kind(weight=1.0, seconds=20.0, bound=14),
    "few": Kind(weight=0.5, size=30, bound=1),
    "half": Kind(weight=1.0, flat=0.5, bound=2),
}


def shares(trained: Sequence[Sequence[str]], sizes: Mapping[str, int]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for step in trained:
        for group in step:
            name = group.split("/")[0]
            counts[name] += sizes[name]
    return {name: counts[name] / counts.total() for name in sizes}


@pytest.mark.parametrize("unit", ["groups", "samples"])
def test_five_unlike_sources_have_their_shares_and_the_slow_one_sets_no_pace(
    make_run: MakeRun, unit: str
) -> None:
    run = make_run(FIVE, steps=200, groups=12, unit=unit)
    run.go(Engines(FIVE, 1, spread=1.3))
    sizes = {n: k.group_size if unit == "samples" else 1 for n, k in FIVE.items()}
    weights = sum(k.weight for k in FIVE.values())
    for name, share in shares(run.trained, sizes).items():
        assert abs(share - FIVE[name].weight / weights) < 0.005, name
    for groups in run.trained:
        assert len({g.split("#")[0] for g in groups}) == len(groups)
    # The first steps wait for the slow source, which could not start before the run did.
    assert sum(run.took[20:]) / 180 < TRAIN_S + 3.0 < FIVE["slow"].seconds
    account = run.account
    assert account.balanced and not account.open and account.trained_twice == []


def test_each_source_starts_as_early_as_its_own_bound_lets_it(make_run: MakeRun) -> None:
    kinds = {"quick": Kind(), "slow": Kind(seconds=10.0, bound=9)}
    run = make_run(kinds, steps=40, groups=4)
    run.go(Engines(kinds, 1, spread=1.0))
    # One second to sample the quick ones, one to train: a step every two, from the sixth on.
    assert run.took[0] == 10.0 + TRAIN_S and run.took[6:] == [2.0] * 34
    together = make_run({"quick": Kind(), "slow": Kind(seconds=10.0)}, steps=40, groups=4)
    together.go(Engines(kinds, 1, spread=1.0))
    assert together.took == [11.0] * 40
    assert [sorted(s) for s in run.trained] == [sorted(s) for s in together.trained]


MIXED: Kinds = {
    "plain": Kind(weight=2.0, size=40),
    "ahead": Kind(weight=1.0, size=60, seconds=6.0, flat=0.4, bound=3),
    "half": Kind(weight=1.0, size=50, flat=0.5, bound=1),
    "hard": Kind(weight=0.7, size=9, flat=0.8, bound=2),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("staleness", [0, 2])
def test_who_finishes_first_and_where_it_was_cut_change_nothing(
    make_run: MakeRun, seed: int, staleness: int
) -> None:
    size = {"steps": 50, "groups": 7, "staleness": staleness}
    whole = make_run(MIXED, **size).go(Engines(MIXED, seed, spread=1.0))
    other = make_run(MIXED, **size).go(Engines(MIXED, seed, spread=9.0))
    assert other.trained == whole.trained

    dice, cut = random.Random(seed), make_run(MIXED, **size)
    for kill in range(5):
        cut.go(Engines(MIXED, 10 * seed + kill, spread=5.0), stop_s=dice.uniform(5, 60))
        assert cut.account.balanced
    cut.go(Engines(MIXED, seed + 99, spread=3.0))
    assert cut.trained == whole.trained and cut.attempts == 6
    for run in (whole, other, cut):
        account = run.account
        assert account.balanced and not account.open
        trained = sum(s.trained.groups for s in account.sources.values())
        assert trained == 50 * 7 == len({g for step in run.trained for g in step})


def test_what_is_not_needed_serves_a_later_step_or_is_counted(make_run: MakeRun) -> None:
    kinds = {"a": Kind(flat=0.5, bound=3), "b": Kind(flat=0.5, bound=0)}
    run = make_run(kinds, steps=100, groups=12).go(Engines(kinds, 3, spread=2.0))
    account = run.account
    a, b = (account.sources[name] for name in "ab")
    assert a.moved["surplus"] > 20 and b.moved.total() == 0
    assert 0 < a.rejected["surplus"] < b.rejected["surplus"]
    assert account.balanced and not account.open
    events = [from_row(r.text) for r in rows(run.ledger)]
    moves = {e.group: e.step for e in events if isinstance(e, Moved)}
    trained = {g.group_id: e.step for e in events if isinstance(e, Trained) for g in e.groups}
    assert sum(trained.get(group) == step for group, step in moves.items()) > 15
    again = {g for g in trained if "r" in g.rpartition("#")[2]}
    assert again  # what was sampled in vain comes back


@pytest.mark.parametrize(("most", "at_once"), [(1.0, False), (2.0, True)])
def test_replacements_are_sampled_beside_the_others_where_they_will_be_needed(
    make_run: MakeRun, most: float, at_once: bool
) -> None:
    kinds = {"half": Kind(flat=0.5)}
    run = make_run(kinds, steps=80, groups=8, over_dispatch=most)
    run.go(Engines(kinds, 5, spread=1.0))
    one_round = sum(took == 2.0 for took in run.took[10:]) / 70
    assert (one_round > 0.5) is at_once
    rejected = run.account.sources["half"].rejected
    assert (rejected["surplus"] > 0) is at_once
    # What is trained on is the same: the first that survive, in dispatch order.
    assert len({len(step) for step in run.trained}) == 1


LATE: Kinds = {
    "quick": Kind(weight=3.0, size=40, seconds=0.1),
    "late": Kind(weight=1.0, size=30, seconds=2.0, bound=3, queue_s=9.0),
    "half": Kind(weight=1.0, size=60, seconds=1.0, flat=0.5, bound=2, queue_s=6.0),
}


@pytest.mark.parametrize("seed", range(8))
def test_late_groups_are_moved_or_come_back_and_nothing_is_lost(
    make_run: MakeRun, seed: int
) -> None:
    run = make_run(LATE, steps=60, groups=10, max_wait_s=1.5)
    dice = random.Random(seed)
    for kill in range(2):
        engines = Engines(LATE, 10 * seed + kill, spread=3.0)
        run.go(engines, stop_s=dice.uniform(20, 60))
        assert run.account.balanced
    run.go(Engines(LATE, seed, spread=3.0))
    account = run.account
    assert account.balanced and not account.open and account.trained_twice == []
    assert len(run.trained) == 60 and all(run.trained)
    late = sum(s.moved["late"] for s in account.sources.values())
    stale = sum(s.rejected["stale"] for s in account.sources.values())
    groups = sum(map(len, run.trained))
    assert late > 0 and groups <= 600 and 600 - groups <= stale + late
    target = {n: k.weight / 5 for n, k in LATE.items()}
    for name, share in shares(run.trained, dict.fromkeys(LATE, 1)).items():
        assert abs(share - target[name]) < 0.05, name


def test_no_step_waits_longer_than_stated_unless_it_would_be_empty(make_run: MakeRun) -> None:
    kinds = {"quick": Kind(), "slow": Kind(seconds=30.0, bound=2)}
    run = make_run(kinds, steps=60, groups=4, max_wait_s=3.0).go(Engines(kinds, 2, spread=1.1))
    assert max(run.took[:-1]) <= 3.0 + TRAIN_S
    alone = {"slow": Kind(seconds=30.0)}
    run = make_run(alone, steps=4, groups=2, max_wait_s=3.0).go(Engines(alone, 2, spread=1.0))
    assert run.took == [30.0 + TRAIN_S] * 4 and all(len(step) == 2 for step in run.trained)


def test_a_source_that_is_late_again_and_again_is_named_with_the_remedy(make_run: MakeRun) -> None:
    kinds = {"quick": Kind(), "slow": Kind(seconds=30.0, bound=2)}
    run = make_run(kinds, steps=20, groups=4, max_wait_s=3.0).go(Engines(kinds, 2, spread=1.0))
    (first, *_) = [e for e in run.events if e.kind == "late"]
    assert first.source == "slow"
    assert "slow was late in 3 of the last 10 steps (mix.max_wait_s is 3)" in first.text
    assert "raise sources.slow.max_staleness above 2" in first.text
    account = run.account
    assert account.sources["slow"].rejected["stale"] > 0 and account.balanced


def test_a_moved_group_is_trained_on_in_addition_if_it_is_young_enough(make_run: MakeRun) -> None:
    kinds = {"quick": Kind(), "held": Kind(seconds=0.5, bound=1)}

    class Held(Engines):
        """One group waits for an engine until the step after its own."""

        async def generate(self, request: GroupRequest) -> GeneratedGroup:
            if request.task.source == "held" and request.step == 5 and not self.sampled["held!"]:
                self.sampled["held!"] += 1
                while self.version < 5:
                    await asyncio.sleep(0.1)
            return await super().generate(request)

    run = make_run(kinds, steps=12, groups=4, max_wait_s=2.0).go(Held(kinds, 1, spread=1.0))
    assert [len(step) for step in run.trained] == [4] * 4 + [3, 5] + [4] * 6
    account = run.account
    assert account.sources["held"].moved == {"late": 1} and account.balanced
    assert shares(run.trained, {"quick": 1, "held": 1}) == {"quick": 0.5, "held": 0.5}
    events = (from_row(row.text) for row in rows(run.ledger))
    (moved,) = (e for e in events if isinstance(e, Moved))
    assert (moved.before, moved.step) == (5, 6) and moved.group in run.trained[5]
