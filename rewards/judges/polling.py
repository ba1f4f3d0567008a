"""Several verdicts on one answer: votes, and both orders of a pair."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import JsonValue

from configs.graders.judged import JudgedGrader
from rewards.judges.client import Judge, Judged, Read
from rewards.judges.request import (
    NO_TOKENS,
    ChatMessage,
    JudgeRequest,
    JudgeSampling,
    plus,
)
from rewards.judges.schemas import Schema
from rewards.score import GradeFailed, Usage

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll(Generic[T]):
    """The votes on one question."""

    votes: tuple[Judged[T], ...]
    failed: tuple[GradeFailed, ...]
    """Votes that did not come; fewer than half."""

    @property
    def usage(self) -> Usage:
        """Tokens of all votes."""
        total = NO_TOKENS
        for vote in self.votes:
            total = plus(total, vote.usage)
        return total

    def record(self) -> list[JsonValue]:
        """Return the verdicts for the record."""
        rows: list[JsonValue] = []
        for vote in self.votes:
            row: dict[str, JsonValue] = dict(vote.verdict)
            if vote.cached:
                row["cached"] = True
            if vote.notes:
                row["notes"] = list(vote.notes)
            rows.append(row)
        return [*rows, *({"failed": str(f)} for f in self.failed)]


def question(
    cfg: JudgedGrader, messages: tuple[ChatMessage, ...], schema: Schema, name: str
) -> JudgeRequest:
    """Return the request of a grader."""
    given = cfg.sampling_params
    sampling = JudgeSampling(
        temperature=given.temperature,
        top_p=given.top_p,
        max_tokens=given.max_tokens,
        seed=given.seed,
        reasoning_effort=given.reasoning_effort,
    )
    return JudgeRequest(messages=messages, schema=schema, schema_name=name, sampling=sampling)


async def poll(
    judge: Judge, request: JudgeRequest, votes: int, required: Sequence[str], read: Read[T]
) -> Poll[T]:
    """Ask for `votes` verdicts; those that fail are left out as long as most came.

    Raises:
        GradeFailed: half of them or more did not come; with the first one's reason.
    """
    asked = (_or_failed(judge.ask(request.vote(i), required, read)) for i in range(votes))
    found = await together(*asked)
    came = tuple(f for f in found if not isinstance(f, GradeFailed))
    failed = tuple(f for f in found if isinstance(f, GradeFailed))
    if 2 * len(came) <= votes:
        raise failed[0]
    return Poll(votes=came, failed=failed)


async def together(*waiting: Awaitable[T]) -> list[T]:
    """Await all; the first failure ends the others and is raised."""
    tasks = [asyncio.ensure_future(w) for w in waiting]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _or_failed(asking: Awaitable[Judged[T]]) -> Judged[T] | GradeFailed:
    try:
        return await asking
    except GradeFailed as failed:
        return failed
