"""The producer against fake fleets: order, staleness, failure, and what a checkpoint carries."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from actors.errors import RunError
from configs.schema import RunConfig
from mixing.ledger.ledger import Ledger, LedgerError, read_account
from mixing.mixer import Mixer
from orchestrator.clock import PhaseClock
from orchestrator.producer import RolloutProducer
from rollouts.types import (
    GeneratedGroup,
    GroupRequest,
    GroupSummary,
    MicroBatchPlan,
    MinibatchPlan,
    Task,
    TrainBatch,
)
from tests.unit.orchestrator.fakes import generated, graded, made_task


def config(*, difficulty: dict[str, object] | None = None, **batch: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "fake",
            "num_steps": 4,
            "model": {"path": "nowhere"},
            "sources": [
                {
                    "name": "a",
                    "data": {"procedural": "reasoning_gym/chain_sum"},
                    "rewards": [{"name": "r", "use": "exact"}],
                    "group_size": 2,
                    "difficulty": difficulty or {},
                }
            ],
            "batch": {"groups_per_step": 2, "max_attempts": 1, **batch},
            "mix": {"over_dispatch": 1},
        }
    )


class NumberedSource:
    """Names its tasks 1, 2, 3, ... in the order in which they are asked for first."""

    size = 1000
    fingerprint = "numbered"

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    @property
    def drawn(self) -> int:
        """Tasks so far."""
        return len(self._numbers)

    def task(self, index: int) -> Task:
        number = self._numbers.setdefault(index, len(self._numbers) + 1)
        return made_task("a", number)

    def held_out(self) -> tuple[Task, ...]:
        return ()


@dataclass
class FakeFleets:
    """Samples and grades at once; `fails` names tasks without a valid rollout, `flat` those with
    equal rewards, and `hold` waits. The policy's version is the steps that were trained."""

    fails: set[str] = field(default_factory=set)
    flat: set[str] = field(default_factory=set)
    version: int = 0
    requests: list[GroupRequest] = field(default_factory=list)
    hold: asyncio.Event | None = None
    crash: bool = False

    async def generate(self, request: GroupRequest) -> GeneratedGroup:
        self.requests.append(request)
        if self.hold is not None:
            await self.hold.wait()
        if self.crash:
            raise RunError("rollout[0] is gone")
        return generated(request)

    async def grade(self, group: GeneratedGroup) -> GroupSummary:
        request = group.ref
        assert isinstance(request, GroupRequest)
        task_id = request.task.task_id
        rewards: Sequence[float | None] = (1.0, 1.0) if task_id in self.flat else (1.0, 0.0)
        if task_id in self.fails:
            rewards = (None, None)
        return graded(request, rewards, version=self.version, tokens=1)


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture
def producing(ledger_path: Path):
    """Return a maker of producers, with a ledger that knows of `pending` and a mixer at `state`."""

    def make(
        cfg: RunConfig, fleets: FakeFleets, version: int = 0, pending=(), state=None, rejected=()
    ):
        with Ledger.open(ledger_path, attempt=1, step=0, offset=0, pending=()) as before:
            before.dispatched(pending, version)
            if version:
                before.trained(version, version, (), plan(version, ()))
            offset = before.offset
        mixer = Mixer(cfg, {"a": NumberedSource()})
        if state is not None:
            mixer.load_state_dict(state)
        fleets.version = version
        return RolloutProducer(
            cfg,
            mixer=mixer,
            ledger=Ledger.open(
                ledger_path, attempt=2, step=version, offset=offset, pending=pending
            ),
            rollout=fleets,  # type: ignore[arg-type]
            reward=fleets,  # type: ignore[arg-type]
            clock=PhaseClock(),
            version=version,
            pending=pending,
            rejected=rejected,
        )

    return make


def plan(step: int, groups) -> TrainBatch:
    """Put all samples into one micro-batch."""
    samples = tuple(s for g in groups for s in g.samples)
    grid = ((MicroBatchPlan(samples=samples),),)
    return TrainBatch(
        step=step, minibatches=(MinibatchPlan(grid=grid, num_loss_tokens=1, num_samples=1),)
    )


def train(producer: RolloutProducer, step: int, groups) -> None:
    producer.trained(step, step, groups, plan(step, groups))


def advance(producer: RolloutProducer, fleets: FakeFleets, version: int) -> None:
    fleets.version = version
    producer.advance(version)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 10))


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_sampling_runs_ahead_by_exactly_the_staleness(producing, staleness):
    async def scenario():
        fleets = FakeFleets()
        producer = producing(config(max_staleness=staleness), fleets)
        ahead = []
        async with producer:
            for step in range(1, 5):
                groups = await producer.take(step)
                await settle()
                ahead.append(max(r.step for r in fleets.requests) - step)
                train(producer, step, groups)
                advance(producer, fleets, step)
        return ahead

    assert run(scenario()) == [min(staleness, 4 - s) for s in range(1, 5)]


def test_every_group_trained_is_no_longer_pending_and_pending_survives_json(producing):
    async def scenario():
        fleets = FakeFleets()
        producer = producing(config(max_staleness=1), fleets)
        async with producer:
            groups = await producer.take(1)
            await settle()
            before = RolloutProducer.parse_pending(producer.pending_state())
            train(producer, 1, groups)
            return fleets.requests, before, RolloutProducer.parse_pending(producer.pending_state())

    requests, before, after = run(scenario())
    assert list(before) == requests
    assert list(after) == [r for r in requests if r.step == 2]


def test_pending_groups_are_sampled_first_and_nothing_is_planned_for_their_step(producing):
    async def scenario():
        before = Mixer(config(), {"a": NumberedSource()})
        pending = before.order(2)
        fleets = FakeFleets()
        state = before.state_dict()
        producer = producing(config(), fleets, version=2, pending=pending, state=state)
        async with producer:
            groups = await producer.take(3)
        return [g.group_id for g in groups], [r.group_id for r in pending], fleets.requests

    groups, pending, requests = run(scenario())
    assert groups == pending == [r.group_id for r in requests]


def test_a_failed_group_is_sampled_again_then_replaced(producing, ledger_path):
    async def scenario():
        fleets = FakeFleets(fails={"a/train/1"})
        producer = producing(config(), fleets)
        async with producer:
            groups = await producer.take(1)
            state = RolloutProducer.parse_pending(producer.pending_state())
            producer.check_ledger()
        return [g.group_id for g in groups], [r.group_id for r in fleets.requests], state

    groups, requests, pending = run(scenario())
    assert groups == ["a/train/2#e0a0", "a/train/3#e0a0"]
    assert sorted(requests) == [
        "a/train/1#e0a0",
        "a/train/1#e0a1",
        "a/train/2#e0a0",
        "a/train/3#e0a0",
    ]
    assert [r.group_id for r in pending] == groups
    account = read_account(ledger_path)
    assert account.sources["a"].rejected == {"failed": 1, "given_up": 1}
    assert set(account.open) == set(groups)


def test_a_group_that_teaches_nothing_is_replaced_and_is_no_failure(producing, ledger_path: Path):
    async def scenario():
        fleets = FakeFleets(flat={"a/train/1", "a/train/3"})
        cfg = config(max_failed_groups=0, difficulty={"drop_zero_variance": True})
        producer = producing(cfg, fleets)
        async with producer:
            groups = await producer.take(1)
            pending = RolloutProducer.parse_pending(producer.pending_state())
            train(producer, 1, groups)
        return [g.group_id for g in groups], [r.group_id for r in pending]

    groups, pending = run(scenario())
    assert groups == pending == ["a/train/2#e0a0", "a/train/4#e0a0"]
    account = read_account(ledger_path).sources["a"]
    assert account.rejected == {"zero_variance": 2} and account.trained.groups == 2


def test_what_was_graded_and_is_not_trained_on_is_kept_for_its_step_once(producing):
    async def scenario():
        fleets = FakeFleets(fails={"a/train/1", "a/train/3"})
        producer = producing(config(max_staleness=1), fleets)
        async with producer:
            train(producer, 1, await producer.take(1))
            advance(producer, fleets, 1)
            await producer.take(2)
        return [producer.take_rejected(step) for step in (1, 2, 3, 1)]

    first, second, none, again = run(scenario())
    assert [g.group_id for g in first] == ["a/train/1#e0a0", "a/train/1#e0a1"]
    assert [g.group_id for g in second] == ["a/train/3#e0a0", "a/train/3#e0a1"]
    assert none == again == ()


def test_what_was_rejected_for_a_later_step_is_counted_in_it_after_a_resume(producing):
    async def scenario():
        fleets = FakeFleets(flat={"a/train/3"})
        cfg = config(max_staleness=1, difficulty={"drop_zero_variance": True})
        producer = producing(cfg, fleets)
        async with producer:
            train(producer, 1, await producer.take(1))
            await settle()
            state = json.loads(json.dumps(producer.rejected_state()))
            (expected,) = producer.take_rejected(2)
        pending = tuple(producer.parse_pending(producer.pending_state()))
        rejected = producer.parse_rejected(state)
        resumed = producing(cfg, fleets, 1, pending, rejected=rejected)
        return expected, resumed.take_rejected(2), resumed.rejected_state()

    expected, (found,), left = run(scenario())
    assert found == expected and left == []
    assert found.group_id == "a/train/3#e0a0"
    assert [(s.ref, s.num_loss_tokens) for s in found.samples] == [(None, 1), (None, 1)]


def test_too_many_failed_groups_end_the_run_with_the_reason(producing):
    async def scenario():
        fleets = FakeFleets(fails={f"a/train/{i}" for i in range(1, 100)})
        producer = producing(config(max_failed_groups=5), fleets)
        async with producer:
            await producer.take(1)

    with pytest.raises(RunError, match=r"6 groups failed.*max_failed_groups=5.*too slow"):
        run(scenario())


def test_requests_restored_beyond_the_last_step_stay_pending(producing):
    async def scenario():
        longer = config(max_staleness=2).model_copy(update={"num_steps": 5})
        before = Mixer(longer, {"a": NumberedSource()})
        pending = before.order(2)
        assert {r.step for r in pending} == {3, 4, 5}
        cfg = config(max_staleness=2).model_copy(update={"num_steps": 3})
        fleets = FakeFleets()
        state = before.state_dict()
        producer = producing(cfg, fleets, version=2, pending=pending, state=state)
        async with producer:
            train(producer, 3, await producer.take(3))
            return pending, RolloutProducer.parse_pending(producer.pending_state())

    before, after = run(scenario())
    assert after == before[2:]


def test_a_group_or_sample_that_training_forgot_ends_the_run(producing):
    async def scenario(forget):
        producer = producing(config(), FakeFleets())
        async with producer:
            groups = await producer.take(1)
            producer.trained(1, 1, *forget(groups))

    def a_group(groups):
        return groups[1:], plan(1, groups[1:])

    def a_sample(groups):
        return groups, plan(1, [replace(groups[0], samples=groups[0].samples[:1]), groups[1]])

    with pytest.raises(LedgerError, match="lost were a/train/1#e0a0"):
        run(scenario(a_group))
    with pytest.raises(LedgerError, match=r"trained on 1 samples .* its 2 .*: a/train/1#e0a0"):
        run(scenario(a_sample))


def test_a_group_older_than_its_bound_ends_the_run(producing):
    async def scenario():
        fleets = FakeFleets()
        producer = producing(config(max_staleness=1), fleets)
        async with producer:
            for step in (1, 2, 3):
                train(producer, step, await producer.take(step))
                fleets.version = -1  # of a group that an engine would have held back
                producer.advance(step)
            await producer.take(4)

    with pytest.raises(RunError, match=r"is 3 steps old, more than the 1 that source a allows"):
        run(scenario())


def test_a_high_rate_of_invalid_rollouts_ends_the_run_with_examples(producing):
    async def scenario():
        fleets = FakeFleets(fails={f"a/train/{i}" for i in range(1, 100)})
        producer = producing(config(max_failed_groups=1000), fleets)
        async with producer:
            await producer.take(1)

    with pytest.raises(RunError, match=r"source 'a'.*(?s:.*)timeout: too slow"):
        run(scenario())


def test_a_dead_engine_fails_the_waiting_take(producing):
    async def scenario():
        producer = producing(config(), FakeFleets(crash=True))
        async with producer:
            await producer.take(1)

    with pytest.raises(RunError, match="is gone"):
        run(scenario())


def test_leaving_cancels_what_is_in_flight(producing):
    async def scenario():
        fleets = FakeFleets(hold=asyncio.Event())
        producer = producing(config(), fleets)
        before = asyncio.all_tasks()
        async with producer:
            await settle()
            assert len(fleets.requests) == 2
            assert len(asyncio.all_tasks()) > len(before)
        return asyncio.all_tasks() - before

    assert run(scenario()) == set()
