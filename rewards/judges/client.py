"""One judge as graders ask it: limited, retried, cached, counted.

Invariants:
- at most `limit` tries are in flight; a pause between tries holds no place;
- equal questions that are asked at once are sent once;
- what is returned was read as a verdict; all else is a GradeFailed, never a number.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from configs.judges import JudgeConfig
from rewards.judges.cache import ReplyCache
from rewards.judges.meter import Meter
from rewards.judges.reading import Verdict, read_object
from rewards.judges.request import (
    NO_TOKENS,
    JudgeRefused,
    JudgeRejected,
    JudgeRequest,
    JudgeUnavailable,
    Reply,
    Transport,
    Unreadable,
    plus,
)
from rewards.score import FailureKind, GradeFailed, Usage

T = TypeVar("T")
Read = Callable[[Verdict], T]
"""Takes what a grader needs out of a verdict; raises Unreadable where it is not there."""
Pause = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Generic[T]):
    """A verdict, and what it took."""

    value: T
    verdict: Verdict
    model: str
    usage: Usage
    """Of all tries; none where the cache or an equal question answered."""
    cached: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    """How a question that was sent ended."""

    reply: Reply
    usage: Usage


@dataclass(frozen=True, slots=True)
class _Flight:
    """A question under way, and those who wait for it."""

    task: asyncio.Task[_Outcome]
    waiting: set[object]


class Judge:
    """Asks one judge. Use from one event loop."""

    def __init__(
        self,
        name: str,
        cfg: JudgeConfig,
        transport: Transport,
        *,
        cache: ReplyCache,
        limit: int,
        pause: Pause = asyncio.sleep,
    ):
        self.name, self.cfg = name, cfg
        self.meter = Meter(cfg.price)
        self._transport = transport
        self._cache = cache
        self._places = asyncio.Semaphore(limit)
        self._pause = pause
        self._jitter = random.Random(name)  # of waiting times alone
        self._flights: dict[str, _Flight] = {}

    @property
    def identity(self) -> str:
        """Where the judge runs and which model it is."""
        return self._transport.identity

    async def ask(self, request: JudgeRequest, required: Sequence[str], read: Read[T]) -> Judged[T]:
        """Return the judge's verdict.

        Args:
            required: keys that a verdict has.

        Raises:
            GradeFailed: there was none after all retries; with the kind of the last failure.
        """
        key = request.key(self.identity)
        kept = self._cache.get(key)
        if kept is not None:
            try:
                verdict = read_object(kept.text, required)
                value = read(verdict)
            except Unreadable:
                pass  # kept for a grader that reads it otherwise
            else:
                self.meter.hits += 1
                return _judged(value, verdict, kept, NO_TOKENS, cached=True)

        def readable(text: str) -> object:
            return read(read_object(text, required))

        outcome, own = await self._once(key, request, readable)
        try:
            verdict = read_object(outcome.reply.text, required)
            value = read(verdict)
        except Unreadable as error:  # by this caller; the one it was sent for could read it
            why = f"judge {self.name}: {error}"
            raise GradeFailed(FailureKind.JUDGE_PARSE, why) from error
        if not own:
            self.meter.hits += 1
        usage = outcome.usage if own else NO_TOKENS
        return _judged(value, verdict, outcome.reply, usage, cached=not own)

    async def close(self) -> None:
        """Give up what is in flight, and free connections."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._cache.close()
        await self._transport.close()

    async def _once(
        self, key: str, request: JudgeRequest, readable: Callable[[str], object]
    ) -> tuple[_Outcome, bool]:
        """Send the question unless it is in flight already; say whether it was sent for this
        caller. It is given up when nobody waits for it any more."""
        own = key not in self._flights
        if own:
            self._flights[key] = _Flight(
                asyncio.create_task(self._send(key, request, readable)), set()
            )
        flight = self._flights[key]
        me = object()
        flight.waiting.add(me)
        try:
            return await asyncio.shield(flight.task), own
        finally:
            flight.waiting.discard(me)
            if not flight.waiting:
                flight.task.cancel()
                if self._flights.get(key) is flight:
                    del self._flights[key]

    async def _send(
        self, key: str, request: JudgeRequest, readable: Callable[[str], object]
    ) -> _Outcome:
        """Try until there is a verdict, and keep it; a judge that wrote one which cannot be read
        is asked with another seed."""
        left_s, usage, redraws = self.cfg.deadline_s, NO_TOKENS, 0
        tried = _Tried()
        for number in range(self.cfg.retries + 1):
            async with self._places:
                began = time.monotonic()
                limit_s = min(self.cfg.timeout_s, left_s)
                tried = await self._try(request.redrawn(redraws), limit_s, readable)
            left_s -= time.monotonic() - began
            usage = plus(usage, tried.usage)
            self.meter.tried(time.monotonic() - began, tried.usage)
            if tried.reply is not None:
                self.meter.verdict()
                self._cache.put(key, tried.reply)
                return _Outcome(reply=tried.reply, usage=usage)
            redraws += tried.answered
            wait_s = 0.0 if tried.answered else self._wait_s(number, tried.retry_after_s)
            left_s -= wait_s
            if tried.final or number == self.cfg.retries or left_s <= 0:
                break
            self.meter.retries += 1
            if wait_s:
                await self._pause(wait_s)
        self.meter.failed(tried.kind)
        raise GradeFailed(tried.kind, f"judge {self.name}: {tried.why}")

    async def _try(
        self, request: JudgeRequest, limit_s: float, readable: Callable[[str], object]
    ) -> "_Tried":
        reply: Reply | None = None
        try:
            async with asyncio.timeout(limit_s):
                reply = await self._transport.send(request)
            readable(reply.text)
        except TimeoutError:
            return _Tried(why=f"no answer within {limit_s:.3g} s")
        except JudgeUnavailable as error:
            return _Tried(why=str(error), retry_after_s=error.retry_after_s)
        except JudgeRejected as error:
            return _Tried(why=str(error), final=True)
        except JudgeRefused as error:
            kind = FailureKind.JUDGE_REFUSAL
            return _Tried(why=str(error), kind=kind, usage=error.usage, answered=True)
        except Unreadable as error:
            assert reply is not None
            kind = FailureKind.JUDGE_PARSE
            return _Tried(why=str(error), kind=kind, usage=reply.usage, answered=True)
        return _Tried(reply=reply, usage=reply.usage, answered=True)

    def _wait_s(self, number: int, asked_s: float | None) -> float:
        """Return the pause before the next try: what the server asks for, or twice the last one
        less up to half of it, so that callers that failed together do not come back together."""
        longest = self.cfg.max_backoff_s
        if asked_s is not None:
            return min(asked_s, longest)
        full = min(self.cfg.backoff_s * 2**number, longest)
        return full * (1 - 0.5 * self._jitter.random())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """What one try gave."""

    reply: Reply | None = None
    usage: Usage = NO_TOKENS
    why: str = "it was never asked"
    kind: FailureKind = FailureKind.JUDGE_SERVER
    """Of the failure, where there is no reply."""
    answered: bool = False
    """Whether the judge spoke, so that only another seed may help."""
    final: bool = False
    """Whether asking again is no use."""
    retry_after_s: float | None = None


def _judged(value: T, verdict: Verdict, reply: Reply, usage: Usage, *, cached: bool) -> Judged[T]:
    return Judged(
        value=value,
        verdict=verdict,
        model=reply.model,
        usage=usage,
        cached=cached,
        notes=reply.notes,
    )
