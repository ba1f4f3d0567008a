"""Sampling and grading, run ahead of training by at most `max_staleness` steps.

    what        produces            waits for                     unblocked by
    _dispatch   the groups of step  step <= version + 1 + staleness   advance() after a trained step
    _produce    one graded group    an engine, then a grader      Ray; a failure fails the buffer

Invariants:
- every dispatched group is pending until `trained` names it; a checkpoint carries the pending
  requests, so that a resumed run samples them again and none is lost;
- a group without one valid rollout is sampled again, `max_attempts` times, then another task of
  the same source takes its place; both are counted, and too many end the run;
- a group whose rewards are all equal is replaced likewise where its source asks for it, by a task
  that was set aside for its place when the step was planned: who finishes first changes nothing;
- grading starts as soon as a group is sampled, while others still generate.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from pydantic import JsonValue, TypeAdapter

from actors.errors import RunError
from actors.groups import RewardFleet, RolloutFleet
from configs.schema import RunConfig
from mixing.mixer import Mixer
from orchestrator.buffer import GroupBuffer
from orchestrator.clock import PhaseClock
from rewards.rates import ErrorRates, GraderErrorRateExceeded
from rollouts.staleness import may_dispatch
from rollouts.types import GroupRequest, GroupSummary

log = logging.getLogger("braid.producer")
_REQUESTS = TypeAdapter(tuple[GroupRequest, ...])


class RolloutProducer:
    """Keeps the buffer filled. Use as `async with`; a crash inside fails the buffer."""

    def __init__(
        self,
        cfg: RunConfig,
        *,
        mixer: Mixer,
        rollout: RolloutFleet,
        reward: RewardFleet,
        buffer: GroupBuffer,
        clock: PhaseClock,
        version: int,
        pending: Sequence[GroupRequest] = (),
    ):
        self._cfg, self._mixer, self._buffer, self._clock = cfg, mixer, buffer, clock
        self._rollout, self._reward = rollout, reward
        self._version = version
        self._next_step = version + 1
        self._restored = {
            step: tuple(r for r in pending if r.step == step) for step in {r.step for r in pending}
        }
        self._pending: dict[str, GroupRequest] = {}
        """By the group_id under which the place was announced; the value is its latest request."""
        self._advanced = asyncio.Event()
        self._tasks: set[asyncio.Future[None]] = set()
        self._rates = ErrorRates(cfg.reward.max_error_rate)
        self.failed_groups = 0

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
        self._advanced.set()

    def trained(self, step: int) -> None:
        """Tell that the groups of `step` were trained on; they are no longer pending."""
        self._pending = {p: r for p, r in self._pending.items() if r.step != step}
        for warning in self._mixer.observe_rewards(step):
            log.warning("%s", warning)

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
            while not may_dispatch(self._next_step, self._version, self._cfg.batch.max_staleness):
                self._advanced.clear()
                await self._advanced.wait()
            step = self._next_step
            with self._clock.phase("dispatch"):
                requests = self._restored.pop(step, ()) or self._mixer.plan_step(step)
                self._pending.update((r.group_id, r) for r in requests)
                await self._buffer.expect(step, tuple(r.group_id for r in requests))
                for request in requests:
                    self._start(self._produce(request))
            self._next_step += 1

    async def _produce(self, first: GroupRequest) -> None:
        """Sample and grade until the place announced by `first` has a group worth training on."""
        request = first
        while True:
            summary = await sample_and_grade(self._rollout, self._reward, self._clock, request)
            self._count_invalid(summary)
            if summary.samples:
                fresh = self._mixer.graded(request, summary)
                if fresh is None:
                    await self._buffer.put(first.group_id, summary)
                    return
                request = fresh
            else:
                request = self._after_failure(request, summary)
            self._pending[first.group_id] = request

    def _count_invalid(self, summary: GroupSummary) -> None:
        try:
            self._rates.observe(summary)
        except GraderErrorRateExceeded as error:
            raise RunError(str(error)) from error

    def _after_failure(self, request: GroupRequest, summary: GroupSummary) -> GroupRequest:
        self.failed_groups += 1
        errors = [r.error for r in summary.rollouts if r.error is not None]
        why = f"{errors[0].boundary}: {errors[0].message}" if errors else "no valid rollout"
        log.warning("group %s failed (%s)", request.group_id, why)
        if self.failed_groups > self._cfg.batch.max_failed_groups:
            raise RunError(
                f"{self.failed_groups} groups failed, more than batch.max_failed_groups="
                f"{self._cfg.batch.max_failed_groups}; the last was {request.group_id}: {why}"
            )
        return self._mixer.retry(request) or self._mixer.replace(request)


async def sample_and_grade(
    rollout: RolloutFleet, reward: RewardFleet, clock: PhaseClock, request: GroupRequest
) -> GroupSummary:
    """Have one group sampled by the least busy engine and graded by the least busy grader."""
    with clock.phase("generate"):
        generated = await rollout.generate(request)
    with clock.phase("grade"):
        return await reward.grade(generated)
