"""An OpenAI-compatible server, asked over HTTP.

The address is the recipe's alone: no redirect is followed, no address out of data is called, and a
private one only where the recipe says so (`rewards.judges.resolver`).
The key is read from the environment when the transport is made, goes into one header, and is cut
out of every message that leaves here.
"""

import asyncio
import email.utils
import json
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, JsonValue

from configs.errors import ConfigError, Problem
from configs.judges import EndpointConfig
from configs.redact import HIDDEN, hide_variable, redact
from configs.validate_judges import check_address
from rewards.judges.request import (
    NO_TOKENS,
    ChatMessage,
    JudgeRefused,
    JudgeRejected,
    JudgeRequest,
    JudgeUnavailable,
    Reply,
)
from rewards.judges.schemas import without_bounds
from rewards.score import Usage

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

_MAX_BODY_BYTES = 4 * 2**20
_BUSY = frozenset({408, 409, 425, 429})
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Tokens(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Completion(BaseModel):
    """What is read of a chat completion."""

    choices: Annotated[tuple[_Choice, ...], Field(min_length=1)]
    model: str | None = None
    usage: _Tokens | None = None


class EndpointTransport:
    """Chat completions of one model on one server. Use from one event loop.

    Raises:
        ConfigError: the key's environment variable is not set on this machine, or the address
            may not be called.
    """

    def __init__(self, name: str, cfg: EndpointConfig, *, max_tokens: int):
        if problems := list(check_address(cfg, f"judges.{name}.endpoint")):
            raise ConfigError(problems)
        self._cfg, self._max_tokens = cfg, max_tokens
        self._key = _read_key(name, cfg)
        self._url = cfg.base_url.rstrip("/") + "/chat/completions"
        self._session: ClientSession | None = None
        self._structured = cfg.structured != "text"
        self._limit_name = "max_completion_tokens"
        self._unknown: set[str] = set()

    def __repr__(self) -> str:
        return f"EndpointTransport({self._url}, {self._cfg.model})"

    @property
    def identity(self) -> str:
        """Address and model."""
        return f"{self._url} {self._cfg.model}"

    async def send(self, request: JudgeRequest) -> Reply:
        """Ask once; where the server does not know a parameter, once more without it, also where
        that was learnt from another question in the meantime."""
        import aiohttp

        try:
            sent = self._body(request)
            status, headers, body = await self._post(sent)
            while status in (400, 422) and (self._adapt(sent, body) or sent != self._body(request)):
                sent = self._body(request)
                status, headers, body = await self._post(sent)
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            why = self._safe(f"{type(error).__name__}: {error}")
            raise JudgeUnavailable(f"no connection: {why}") from None
        if status != 200:
            self._raise_status(status, headers, body)
        return self._reply(body)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, body: Mapping[str, JsonValue]) -> tuple[int, Mapping[str, str], str]:
        session = self._open()
        async with session.post(self._url, json=body, allow_redirects=False) as answer:
            return answer.status, answer.headers, await _read_body(answer)

    def _open(self) -> "ClientSession":
        if self._session is None:
            import aiohttp

            from rewards.judges.resolver import FencedResolver

            host = urlsplit(self._url).hostname or ""
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._session = aiohttp.ClientSession(
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None),  # the client has the deadline
                connector=aiohttp.TCPConnector(
                    limit=0,  # the client has the limit too
                    resolver=FencedResolver(host, private=self._cfg.private),
                ),
                trust_env=host not in _LOCAL,  # proxies
            )
        return self._session

    def _body(self, request: JudgeRequest) -> dict[str, JsonValue]:
        messages = request.messages if self._structured else _with_schema(request)
        settings = request.sampling.to_json()
        limit = settings.pop("max_tokens", self._max_tokens)
        body: dict[str, JsonValue] = {
            "model": self._cfg.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            self._limit_name: limit,
            **settings,
        }
        if self._structured:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": request.schema_name,
                    "strict": True,
                    "schema": without_bounds(dict(request.schema)),
                },
            }
        return {key: value for key, value in body.items() if key not in self._unknown}

    def _adapt(self, sent: Mapping[str, JsonValue], body: str) -> bool:
        """Leave out what the server says that it does not know; False if that is nothing of what
        was sent.

        Remembered, so that only the first requests are sent twice."""
        if self._structured and self._cfg.structured == "auto" and _names(body, _FORMAT):
            self._structured = False
            return True
        if self._limit_name == "max_completion_tokens" and "max_completion_tokens" in body:
            self._limit_name = "max_tokens"
            return True
        unknown = {p for p in _OPTIONAL if p in sent and re.search(rf"\b{p}\b", body)}
        self._unknown |= unknown
        return bool(unknown)

    def _raise_status(self, status: int, headers: Mapping[str, str], body: str) -> None:
        why = self._safe(f"HTTP {status}: {_message(body)}")
        if status in _BUSY or status >= 500:
            raise JudgeUnavailable(why, retry_after_s=_retry_after_s(headers))
        if 300 <= status < 400:
            why += " (redirects are not followed)"
        if "content_filter" in body or "content_policy" in body:
            raise JudgeRefused(why)
        raise JudgeRejected(why)

    def _reply(self, body: str) -> Reply:
        """Take the reply out of a chat completion."""
        try:
            data = _Completion.model_validate(_loads(body))
        except ValueError:
            why = self._safe(f"not a chat completion: {body[:200]!r}")
            raise JudgeUnavailable(why) from None
        choice, usage = data.choices[0], _usage(data.usage)
        if choice.message.refusal:
            raise JudgeRefused(self._safe(f"refused: {choice.message.refusal[:200]}"), usage)
        if choice.finish_reason == "content_filter":
            raise JudgeRefused("refused: stopped by the server's content filter", usage)
        notes: list[str] = []
        if not self._structured and self._cfg.structured == "auto":
            notes.append("the server refused response_format; JSON was read out of text")
        if self._unknown:
            notes.append(f"the server does not know {', '.join(sorted(self._unknown))}")
        return Reply(
            text=choice.message.content or "",
            model=data.model or self._cfg.model,
            usage=usage,
            notes=tuple(notes),
        )

    def _safe(self, text: str) -> str:
        return redact(text.replace(self._key, HIDDEN) if self._key else text)


_OPTIONAL = ("seed", "reasoning_effort")
_FORMAT = ("response_format", "json_schema", "structured output", "guided")


def _names(body: str, words: tuple[str, ...]) -> bool:
    lower = body.lower()
    return any(word in lower for word in words)


def _read_key(name: str, cfg: EndpointConfig) -> str:
    if cfg.api_key_env is None:
        return ""
    hide_variable(cfg.api_key_env)
    key = os.environ.get(cfg.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            Problem(
                where=f"judges.{name}.endpoint.api_key_env",
                what=f"names the environment variable {cfg.api_key_env}, which is not set on "
                f"{os.uname().nodename}",
                fix="Set it where braid runs and, on a cluster, on the nodes of the reward actors.",
            )
        )
    return key


def _with_schema(request: JudgeRequest) -> tuple[ChatMessage, ...]:
    """Ask in words for what response_format would have asked for."""
    wish = (
        "Reply with one JSON object that follows this JSON schema, and nothing else:\n"
        + json.dumps(dict(request.schema))
    )
    return (*request.messages, ChatMessage(role="user", content=wish))


async def _read_body(answer: "ClientResponse") -> str:
    body = bytearray()
    async for chunk in answer.content.iter_chunked(65536):
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            raise JudgeUnavailable(f"an answer of more than {_MAX_BODY_BYTES} bytes")
    return body.decode("utf-8", errors="replace")


def _message(body: str) -> str:
    """Return the server's own words on an error."""
    try:
        words = _loads(body)
    except ValueError:
        words = body
    for key in ("error", "message"):
        if isinstance(words, dict):
            words = words.get(key, words)
    return " ".join(str(words).split())[:300]


def _loads(body: str) -> JsonValue:
    """Read JSON; ValueError where it is none."""
    try:
        return json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After: seconds, or a date."""
    given = headers.get("Retry-After")
    if given is None:
        return None
    try:
        return max(0.0, float(given))
    except ValueError:
        when = email.utils.parsedate_tz(given)
        return None if when is None else max(0.0, email.utils.mktime_tz(when) - time.time())


def _usage(given: "_Tokens | None") -> Usage:
    if given is None:
        return NO_TOKENS
    details = given.prompt_tokens_details
    return Usage(
        prompt_tokens=given.prompt_tokens,
        completion_tokens=given.completion_tokens,
        cached_tokens=0 if details is None else details.cached_tokens or 0,
    )
