"""What is asked of a judge, and what it answers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from pydantic import JsonValue

from rewards.score import Usage

NO_TOKENS = Usage()
_REDRAW = 1009
"""Between the seeds of two tries of one vote; above the most votes there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message to the judge."""

    role: str
    """system, developer, user or assistant."""
    content: JsonValue
    """Text, or a list of content blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSampling:
    """How the verdict is drawn; what is None is left to the judge's own default."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    reasoning_effort: str | None = None

    def to_json(self) -> dict[str, JsonValue]:
        """Return the settings that are given."""
        given: dict[str, JsonValue] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "reasoning_effort": self.reasoning_effort,
        }
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRequest:
    """One question to a judge."""

    messages: tuple[ChatMessage, ...]
    schema: Mapping[str, JsonValue]
    """JSON schema of the verdict."""
    schema_name: str
    sampling: JudgeSampling

    def key(self, identity: str) -> str:
        """Return what the verdict is kept under: everything that it depends on.

        Args:
            identity: of the judge: where it runs, and which model.
        """
        asked: JsonValue = [
            identity,
            [[m.role, m.content] for m in self.messages],
            dict(self.schema),
            self.sampling.to_json(),
        ]
        text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def seed(self) -> int:
        """The seed that is given, or else one that the question itself gives."""
        given = self.sampling.seed
        return int(self.key("")[:7], 16) if given is None else given

    def vote(self, number: int) -> "JudgeRequest":
        """Return the question of one vote: number 0 is the question itself."""
        return self._seeded(self.seed + number) if number else self

    def redrawn(self, times: int) -> "JudgeRequest":
        """Return the question with a seed that no other vote has, for another try."""
        return self._seeded(self.seed + _REDRAW * times) if times else self

    def _seeded(self, seed: int) -> "JudgeRequest":
        return replace(self, sampling=replace(self.sampling, seed=seed % 2**31))


def plus(a: Usage, b: Usage) -> Usage:
    """Return the tokens of both."""
    return Usage(
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        completion_tokens=a.completion_tokens + b.completion_tokens,
        cached_tokens=a.cached_tokens + b.cached_tokens,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a judge wrote."""

    text: str
    model: str
    """As the judge calls itself."""
    usage: Usage = NO_TOKENS
    notes: tuple[str, ...] = ()
    """What was not as asked, e.g. a refused response_format."""


class JudgeUnavailable(Exception):
    """The judge did not answer; asking again may help."""

    def __init__(self, message: str, *, retry_after_s: float | None = None):
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Seconds that the server asks to wait."""


class JudgeRejected(Exception):
    """The judge's server does not take the request, and will not the next time either."""


class JudgeRefused(Exception):
    """The judge declined to judge."""

    def __init__(self, message: str, usage: Usage = NO_TOKENS):
        super().__init__(message)
        self.usage = usage


class Unreadable(Exception):
    """The judge's words hold no verdict."""


class Transport(Protocol):
    """A way to one judge. It asks once: retries, limits and the cache are the client's."""

    @property
    def identity(self) -> str:
        """Where the judge runs and which model it is; part of the cache's key."""
        ...

    async def send(self, request: JudgeRequest) -> Reply:
        """Ask once.

        Raises:
            JudgeUnavailable, JudgeRejected, JudgeRefused: no verdict, and why.
        """
        ...

    async def close(self) -> None:
        """Free connections."""
        ...
