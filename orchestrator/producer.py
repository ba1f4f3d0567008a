"""Sampling and grading, run ahead of training by at most `max_staleness` steps.

    what        produces            waits for                     unblocked by
    _dispatch   the groups of step  step <= version + 1 + staleness   advance() after a trained step
    _produce    one graded group    an engine, then a grader      Ray; a failure fails the buffer
    _turn_of    another task        its step to be the next one   advance(), _dispatch

Invariants:
- every dispatched group is pending until its step is trained; a checkpoint carries the pending
  requests, so that a resumed run samples them again and none is lost;
- what becomes of a group is entered in the ledger in the same moment of the driver, and the
  pending requests are what the ledger holds to be in flight;
- a group without one valid rollout is sampled again, `max_attempts` times, then another task of
  the same source takes its place; both are counted, and too many end the run;
- another task for step s is drawn after step s + staleness is planned and before the next one is:
  so whichever group fails first, each step has the same tasks, and a resumed run has them too;
- a group whose rewards are all equal is replaced where its source asks for it, by a task that was
  set aside for its place when the step was planned: who finishes first changes nothing;
- grading starts as soon as a group is sampled, while others still generate.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from pydantic import JsonValue, TypeAdapter

from actors.errors import RunError
from actors.groups import RewardFleet, RolloutFleet
from configs.schema import RunConfig
from mixing.allocator import MixExhausted
from mixing.ledger import Ledger
from mixing.ledger_events import Reason
from mixing.mixer import Mixer
from orchestrator.buffer import GroupBuffer
from orchestrator.clock import PhaseClock
from rewards.rates import ErrorRates, GraderErrorRateExceeded
from rollouts.staleness import may_dispatch
from rollouts.types import GroupRequest, GroupSummary, TrainBatch

log = logging.getLogger("braid.producer")
_REQUESTS = TypeAdapter(tuple[GroupRequest, ...])


class RolloutProducer:
    """Keeps the buffer filled. Use as `async with`; a crash inside fails the buffer."""

    def __init__(
        self,
        cfg: RunConfig,
        *,
        mixer: Mixer,
        ledger: Ledger,
        rollout: RolloutFleet,
        reward: RewardFleet,
        buffer: GroupBuffer,
        clock: PhaseClock,
        version: int,
        pending: Sequence[GroupRequest] = (),
    ):
        self._cfg, self._mixer, self._buffer, self._clock = cfg, mixer, buffer, clock
        self._rollout, self._reward = rollout, reward
        self.ledger = ledger
        self._version = version
        self._next_step = version + 1
        self._restored = {
            step: tuple(r for r in pending if r.step == step) for step in {r.step for r in pending}
        }
        self._pending = {r.group_id: r for r in pending}
        """By the group_id under which the place was announced; the value is its latest request."""
        self._moved = asyncio.Event()
        """Set, and replaced, whenever the version or the next step to dispatch changes."""
        self._tasks: set[asyncio.Future[None]] = set()
        self._rates = ErrorRates(cfg.reward.max_error_rate)
        self._rejected: dict[int, list[GroupSummary]] = {}

    async def __aenter__(self) -> Self:
        self._start(self._dispatch())
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
        """Tell that the engines now hold policy `version`: more steps may be sampled."""
        self._version = version
        self._tell_moved()

    def trained(
        self, step: int, version: int, groups: Sequence[GroupSummary], batch: TrainBatch
    ) -> None:
        """Tell that `step` was trained on `batch`, made of `groups`; they are no longer pending.

        Args:
            version: of the weights after the step.

        Raises:
            LedgerError: a group or sample was lost or used twice.
        """
        self.ledger.trained(step, version, groups, batch)
        self._pending = {p: r for p, r in self._pending.items() if r.step != step}
        self.check_ledger()
        for warning in self._mixer.observe_rewards(step):
            log.warning("%s", warning)

    def check_ledger(self) -> None:
        """Raise LedgerError unless dispatched = trained + rejected + what is pending here."""
        self.ledger.check(self._pending.values())

    def take_rejected(self, step: int) -> tuple[GroupSummary, ...]:
        """Return, once, the groups that were graded for `step` and are not trained on."""
        return tuple(self._rejected.pop(step, ()))

    def pending_state(self) -> JsonValue:
        """Return the dispatched, untrained requests for the checkpoint, in dispatch order."""
        return _REQUESTS.dump_python(tuple(self._pending.values()), mode="json")

    @staticmethod
    def parse_pending(state: JsonValue) -> tuple[GroupRequest, ...]:
        """Read back what `pending_state` returned."""
        return _REQUESTS.validate_python(state)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            failing = asyncio.ensure_future(self._buffer.fail(error))
            self._tasks.add(failing)
            failing.add_done_callback(self._tasks.discard)

    async def _dispatch(self) -> None:
        while self._next_step <= self._cfg.num_steps:
            step = self._next_step
            while not may_dispatch(step, self._version, self._cfg.batch.max_staleness):
                await self._moved.wait()
            try:
                await self._send(step)
            except MixExhausted:
                while self._version < step - 1:  # what is under way is trained on first
                    await self._moved.wait()
                raise
            self._next_step += 1
            self._tell_moved()

    async def _send(self, step: int) -> None:
        with self._clock.phase("dispatch"):
            requests = self._restored.pop(step, ()) or self._mixer.plan_step(step)
            self._pending.update((r.group_id, r) for r in requests)
            self.ledger.dispatched(requests, self._version)
            await self._buffer.expect(step, tuple(r.group_id for r in requests))
            for request in requests:
                self._start(self._produce(request))

    async def _produce(self, first: GroupRequest) -> None:
        """Sample and grade until the place announced by `first` has a group worth training on."""
        request = first
        while True:
            summary = await sample_and_grade(self._rollout, self._reward, self._clock, request)
            self._count_invalid(summary)
            if summary.samples:
                fresh = self._mixer.graded(request, summary)
                if fresh is None:
                    self.ledger.accepted(summary)
                    await self._buffer.put(first.group_id, summary)
                    return
                self._reject(summary, Reason.ZERO_VARIANCE, "all rewards are equal")
                self._redirect(first.group_id, fresh)
                request = fresh
            else:
                request = await self._after_failure(first.group_id, request, summary)

    def _count_invalid(self, summary: GroupSummary) -> None:
        try:
            self._rates.observe(summary)
        except GraderErrorRateExceeded as error:
            raise RunError(str(error)) from error

    async def _after_failure(
        self, place: str, request: GroupRequest, summary: GroupSummary
    ) -> GroupRequest:
        """Return what is sampled for the place instead: the same task, or another one."""
        errors = [r.error for r in summary.rollouts if r.error is not None]
        why = f"{errors[0].boundary}: {errors[0].message}" if errors else "no valid rollout"
        log.warning("group %s failed (%s)", request.group_id, why)
        again = self._mixer.retry(request)
        if again is None:
            await self._turn_of(request.step)
        self._reject(summary, Reason.FAILED if again else Reason.GIVEN_UP, why)
        if self.ledger.failed_groups > self._cfg.batch.max_failed_groups:
            raise RunError(
                f"{self.ledger.failed_groups} groups failed, more than batch.max_failed_groups="
                f"{self._cfg.batch.max_failed_groups}; the last was {request.group_id}: {why}"
            )
        following = again or self._mixer.replace(request)
        self._redirect(place, following)
        return following

    def _reject(self, summary: GroupSummary, reason: Reason, why: str) -> None:
        # The metrics want its numbers alone: let go of its tokens.
        self._rejected.setdefault(summary.step, []).append(replace(summary, group_ref=None))
        self.ledger.rejected(summary, reason, why)

    def _redirect(self, place: str, request: GroupRequest) -> None:
        """Have `request` sampled for a place whose group was rejected."""
        self._pending[place] = request
        self.ledger.dispatched((request,), self._version)

    async def _turn_of(self, step: int) -> None:
        """Wait until `step` is the next to train and all that may run ahead of it is planned."""
        planned = min(step + self._cfg.batch.max_staleness, self._cfg.num_steps)
        while self._version < step - 1 or self._next_step <= planned:
            await self._moved.wait()

    def _tell_moved(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


async def sample_and_grade(
    rollout: RolloutFleet, reward: RewardFleet, clock: PhaseClock, request: GroupRequest
) -> GroupSummary:
    """Have one group sampled by the least busy engine and graded by the least busy grader."""
    with clock.phase("generate"):
        generated = await rollout.generate(request)
    with clock.phase("grade"):
        return await reward.grade(generated)
