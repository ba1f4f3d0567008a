"""What is asked of a judge, and what it answers."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from pydantic import JsonValue


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

    def drawn_anew(self, times: int) -> "JudgeRequest":
        """Return the same question with another seed; with 0 times, the question itself."""
        if times == 0:
            return self
        seed = self.sampling.seed
        base = int(self.key("")[:7], 16) if seed is None else seed
        return replace(self, sampling=replace(self.sampling, seed=(base + times) % 2**31))


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a judge was sent and wrote."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's, those that the server had seen before."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a judge wrote."""

    text: str
    model: str
    """As the judge calls itself."""
    usage: Usage = Usage()
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

    def __init__(self, message: str, usage: Usage = Usage()):  # noqa: B008 - frozen
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
