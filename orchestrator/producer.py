"""Sampling and grading, run ahead of training by at most each source's `max_staleness` steps.

    what        produces           waits for                         unblocked by
    advance     requests           step <= version + 1 + staleness   a trained step
    _produce    one graded group   an engine, then a grader          Ray; a failure is `take`'s
    take        a step's groups    the mixer's lineup                groups, or `mix.max_wait_s`

Invariants:
- every dispatched group is pending until it is trained on or rejected; a checkpoint carries the
  pending requests, so that a resumed run samples them again and none is lost;
- what becomes of a group is entered in the ledger in the same moment of the driver, and the
  pending requests are what the ledger holds to be in flight;
- a group without one valid rollout is sampled again, `max_attempts` times, then another task of
  the same source takes its place; both are counted, and too many end the run;
- what is ordered is asked of the mixer at fixed moments: when a policy is new, all that it allows;
  then, for the step that trains next, fresh tasks for those that came to nothing. So whichever
  group fails first, each step has the same tasks, and a resumed run has them too;
- no group is trained on that is older than its source's bound;
- grading starts as soon as a group is sampled, while others still generate.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from pydantic import JsonValue, TypeAdapter

from actors.errors import RunError
from actors.groups import RewardFleet, RolloutFleet
from configs.schema import RunConfig
from mixing.ledger.events import MoveReason, Reason
from mixing.ledger.ledger import Ledger
from mixing.mixer import Mixer
from orchestrator.buffer import GroupBuffer
from orchestrator.clock import PhaseClock
from rewards.rates import ErrorRates, GraderErrorRateExceeded
from rollouts.filters import Verdict
from rollouts.staleness import staleness
from rollouts.types import GroupRequest, GroupSummary, TrainBatch

log = logging.getLogger("braid.producer")
_TICK_S = 1e-3
"""A wait that has less than this left is over."""
_REQUESTS = TypeAdapter(tuple[GroupRequest, ...])
_SUMMARIES = TypeAdapter(tuple[GroupSummary, ...])


class RolloutProducer:
    """Has groups sampled and graded, and gives each step its own. Use as `async with`; a crash
    inside is raised by `take`."""

    def __init__(
        self,
        cfg: RunConfig,
        *,
        mixer: Mixer,
        ledger: Ledger,
        rollout: RolloutFleet,
        reward: RewardFleet,
        clock: PhaseClock,
        version: int,
        pending: Sequence[GroupRequest] = (),
        rejected: Sequence[GroupSummary] = (),
        invalid: JsonValue = None,
    ):
        self._cfg, self._mixer, self._clock = cfg, mixer, clock
        self._rollout, self._reward = rollout, reward
        self._buffer = GroupBuffer()
        self._bounds = {s.name: cfg.max_staleness(s) for s in cfg.sources}
        self.ledger = ledger
        self._version = version
        self._pending = {r.group_id: r for r in pending}
        self._tasks: set[asyncio.Future[None]] = set()
        self._rates = ErrorRates(cfg.reward.max_error_rate)
        self._rates.load_state_dict(invalid or {})
        self._rejected: dict[int, list[GroupSummary]] = {}
        for group in rejected:
            self._rejected.setdefault(group.step, []).append(group)

    async def __aenter__(self) -> Self:
        restored = tuple(r for r in self._pending.values() if r.step <= self._cfg.num_steps)
        self._send(restored)
        self.advance(self._version)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def advance(self, version: int) -> None:
        """Tell that the engines now hold policy `version`: more may be sampled."""
        self._version = version
        self._order()
        end = self._mixer.exhausted
        if end is not None and end.step == version + 1:  # what was under way is trained on
            self._buffer.fail(end)

    async def take(self, step: int) -> tuple[GroupSummary, ...]:
        """Wait for the groups of `step`, the next to train, and return them in dispatch order.

        Once it has waited `mix.max_wait_s`, the step goes without those that are not there, unless
        it would have none.
        """
        most = self._cfg.mix.max_wait_s
        loop = asyncio.get_running_loop()
        ends = None if most is None else loop.time() + most
        self._buffer.raise_failure()
        while (lineup := self._mixer.casting.lineup(step)) is None:
            left = None if ends is None else ends - loop.time()
            if left is not None and left < _TICK_S:
                if self._defer(step):
                    continue
                left = None  # until something comes, which the step can be made of
            await self._buffer.news(left)
        groups = tuple(replace(g, step=step) for g in self._buffer.take(lineup))
        for group in groups:
            age, bound = staleness(group, step - 1), self._bounds[group.source]
            if age > bound:
                raise RunError(
                    f"group {group.group_id} is {age} steps old, more than the {bound} that source "
                    f"{group.source} allows; this is a bug of ours"
                )
        return groups

    def trained(
        self, step: int, version: int, groups: Sequence[GroupSummary], batch: TrainBatch
    ) -> None:
        """Tell that `step` was trained on `batch`, made of `groups`; they are no longer pending.
        What else was sampled for the step moves on to a later one, or is rejected.

        Args:
            version: of the weights after the step.

        Raises:
            LedgerError: a group or sample was lost or used twice.
        """
        closed = self._mixer.casting.close(step)
        for group_id, to in closed.moved.items():
            self._move(group_id, to, MoveReason.SURPLUS)
        for group_id in closed.surplus:
            del self._pending[group_id]
            self.ledger.dropped(group_id, Reason.SURPLUS, f"step {step} had enough without it")
            if (graded := self._buffer.drop(group_id)) is not None:
                self._keep_rejected(graded, step)
        self.ledger.trained(step, version, groups, batch)
        for group in groups:
            del self._pending[group.group_id]
        self.check_ledger()
        for warning in closed.warnings:
            log.warning("%s", warning)

    def check_ledger(self) -> None:
        """Raise LedgerError unless dispatched = trained + rejected + what is pending here."""
        self.ledger.check(self._pending.values())

    def take_rejected(self, step: int) -> tuple[GroupSummary, ...]:
        """Return, once, the groups that were graded for `step` and are not trained on."""
        groups = self._rejected.pop(step, [])
        return tuple(sorted(groups, key=lambda g: g.group_id))  # whichever was graded first

    def pending_state(self) -> JsonValue:
        """Return the dispatched, untrained requests for the checkpoint, in dispatch order."""
        return _REQUESTS.dump_python(tuple(self._pending.values()), mode="json")

    @staticmethod
    def parse_pending(state: JsonValue) -> tuple[GroupRequest, ...]:
        """Read back what `pending_state` returned."""
        return _REQUESTS.validate_python(state)

    def rejected_state(self) -> JsonValue:
        """Return for the checkpoint what `take_rejected` has yet to return."""
        kept = tuple(group for groups in self._rejected.values() for group in groups)
        return _SUMMARIES.dump_python(kept, mode="json")

    @staticmethod
    def parse_rejected(state: JsonValue) -> tuple[GroupSummary, ...]:
        """Read back what `rejected_state` returned."""
        return _SUMMARIES.validate_python(state)

    def invalid_state(self) -> JsonValue:
        """Return for the checkpoint how many rollouts were invalid of late."""
        return self._rates.state_dict(self._pending)

    def _order(self) -> None:
        """Have sampled what the mixer orders now."""
        with self._clock.phase("dispatch"):
            requests = self._mixer.order(self._version)
            self._pending.update((r.group_id, r) for r in requests)
            self._send(requests)

    def _send(self, requests: Sequence[GroupRequest]) -> None:
        self.ledger.dispatched(requests, self._version)
        for request in requests:
            task = asyncio.ensure_future(self._produce(request))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._buffer.fail(error)

    async def _produce(self, request: GroupRequest) -> None:
        """Sample and grade a task until it is worth training on, or given up. A group that was
        rejected meanwhile is let go."""
        while True:
            summary = await sample_and_grade(self._rollout, self._reward, self._clock, request)
            if request.group_id not in self._pending:
                return
            self._count_invalid(summary)
            if summary.samples:
                self._graded(summary)
                return
            again = self._after_failure(request, summary)
            if again is None:
                return
            request = again

    def _graded(self, summary: GroupSummary) -> None:
        """Enter a group with a valid rollout."""
        verdict = self._mixer.casting.graded(summary)
        if verdict is None:
            self._reject(summary, Reason.STALE, f"sampled by policy {summary.oldest_version}")
        elif verdict is Verdict.RESAMPLE:
            self._reject(summary, Reason.ZERO_VARIANCE, "all rewards are equal")
        else:
            self.ledger.accepted(summary)
            self._buffer.put(summary)
            return
        self._order()
        self._buffer.tell()

    def _count_invalid(self, summary: GroupSummary) -> None:
        try:
            self._rates.observe(summary)
        except GraderErrorRateExceeded as error:
            raise RunError(str(error)) from error

    def _after_failure(self, request: GroupRequest, summary: GroupSummary) -> GroupRequest | None:
        """Return the next attempt at the same task; None where another task takes its place."""
        errors = [r.error for r in summary.rollouts if r.error is not None]
        why = f"{errors[0].boundary}: {errors[0].message}" if errors else "no valid rollout"
        log.warning("group %s failed (%s)", request.group_id, why)
        again = self._mixer.retry(self._pending[request.group_id])
        self._reject(summary, Reason.FAILED if again else Reason.GIVEN_UP, why)
        if self.ledger.failed_groups > self._cfg.batch.max_failed_groups:
            raise RunError(
                f"{self.ledger.failed_groups} groups failed, more than batch.max_failed_groups="
                f"{self._cfg.batch.max_failed_groups}; the last was {request.group_id}: {why}"
            )
        if again is None:
            self._mixer.casting.give_up(request.group_id)
            self._order()
            self._buffer.tell()
            return None
        self._pending[again.group_id] = again
        self.ledger.dispatched((again,), self._version)
        return again

    def _reject(self, summary: GroupSummary, reason: Reason, why: str) -> None:
        request = self._pending.pop(summary.group_id)
        self._keep_rejected(summary, request.step)
        self.ledger.rejected(summary, reason, why)

    def _keep_rejected(self, summary: GroupSummary, step: int) -> None:
        # The metrics want its numbers alone: let go of its tokens.
        samples = tuple(replace(sample, ref=None) for sample in summary.samples)
        graded = replace(summary, step=step, group_ref=None, samples=samples)
        self._rejected.setdefault(step, []).append(graded)

    def _defer(self, step: int) -> bool:
        """Let `step` go without what is not there; return whether it can."""
        moved = self._mixer.casting.defer(step)
        for group_id, to in (moved or {}).items():
            log.info("group %s is late: step %d goes without it", group_id, step)
            self._move(group_id, to, MoveReason.LATE)
        return moved is not None

    def _move(self, group_id: str, to: int, reason: MoveReason) -> None:
        self._pending[group_id] = replace(self._pending[group_id], step=to)
        self.ledger.moved(group_id, to, reason)


async def sample_and_grade(
    rollout: RolloutFleet, reward: RewardFleet, clock: PhaseClock, request: GroupRequest
) -> GroupSummary:
    """Have one group sampled by the least busy engine and graded by the least busy grader."""
    with clock.phase("generate"):
        generated = await rollout.generate(request)
    with clock.phase("grade"):
        return await reward.grade(generated)
