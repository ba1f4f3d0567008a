"""An OpenAI-compatible server in the test's own event loop, which misbehaves on demand."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web

from configs.graders.union import GRADER
from configs.judges import EndpointConfig, JudgeConfig
from rewards.evaluate import evaluate
from rewards.judges.calibration import JudgesAlone
from rewards.judges.client import Judge
from rewards.judges.panel import Panel, close_judges, open_judges
from rewards.score import GradeFailed, Score
from rewards.subject import Subject
from rollouts.types import Message

KEY = "sk-very-secret-0123456789"
KEY_ENV = "FAKE_JUDGE_KEY"
Body = dict[str, Any]


def completion(content: str | None, *, finish: str = "stop", refusal: str | None = None) -> Body:
    """Return a chat completion."""
    return {
        "id": "x",
        "object": "chat.completion",
        "model": "fake-2026",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": content, "refusal": refusal},
            }
        ],
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 40},
        },
    }


def verdict(**fields: object) -> web.Response:
    """Return a verdict as the server would send it."""
    return web.json_response(completion(json.dumps(fields)))


def status(code: int, message: str = "no", **headers: str) -> web.Response:
    """Return an error as OpenAI words it."""
    return web.json_response({"error": {"message": message}}, status=code, headers=headers)


@dataclass
class FakeServer:
    """Answers by `reply`, and remembers what it was asked."""

    reply: Callable[[Body, int], web.StreamResponse | Awaitable[web.StreamResponse]]
    asked: list[Body] = field(default_factory=list[Body])
    authorised: set[str | None] = field(default_factory=set[str | None])
    in_flight: int = 0
    most_in_flight: int = 0
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = len(self.asked)
        self.asked.append(body)
        self.authorised.add(request.headers.get("Authorization"))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            made = self.reply(body, number)
            return await made if asyncio.iscoroutine(made) else made  # type: ignore[return-value]
        finally:
            self.in_flight -= 1


@asynccontextmanager
async def serving(
    reply: Callable[[Body, int], Any],
) -> AsyncIterator[FakeServer]:
    """Serve on a free port of this machine."""
    server = FakeServer(reply)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.2, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


def judge_config(
    url: str, *, key: bool = True, structured: str = "auto", **more: Any
) -> JudgeConfig:
    """Return a judge on the server that waits next to nothing between tries."""
    endpoint = EndpointConfig.model_validate(
        {
            "base_url": url,
            "model": "fake",
            "api_key_env": KEY_ENV if key else None,
            "private": True,
            "structured": structured,
        }
    )
    settings: dict[str, Any] = {"backoff_s": 0.001, "max_backoff_s": 0.01, "timeout_s": 60, **more}
    return JudgeConfig(endpoint=endpoint, **settings)


@asynccontextmanager
async def judging(
    reply: Callable[[Body, int], Any], **settings: Any
) -> AsyncIterator[tuple[Panel[Judge], FakeServer]]:
    """Serve, and open one judge called `j`."""
    async with serving(reply) as server:
        panel = open_judges({"j": judge_config(server.url, **settings)}, _no_engines)
        try:
            yield panel, server
        finally:
            await close_judges(panel)


def _no_engines(name: str, cfg: JudgeConfig) -> Any:
    raise AssertionError(f"{name} has an endpoint")


def grade(
    grader: object,
    reply: Callable[[Body, int], Any],
    *,
    text: str = "42",
    item: Any = None,
    **more: Any,
) -> tuple[Any, list[Body]]:
    """Grade one answer; return the score or the failure, and what the judge was asked."""
    cfg = GRADER.validate_json(json.dumps(grader))
    subject = Subject.of_text({"answer": "42"} if item is None else item, text)
    prompt = (Message(role="user", content="What is 6 x 7?"),)
    subject = Subject(task=replace(subject.task, prompt=prompt), rollout=subject.rollout)

    async def scenario() -> tuple[Any, list[Body]]:
        async with judging(reply, **{"retries": 0, **more}) as (panel, server):
            try:
                found: Score | GradeFailed = await evaluate(cfg, subject, JudgesAlone(panel), "s/r")
            except GradeFailed as failed:
                found = failed
            return found, server.asked

    return asyncio.run(scenario())


def said(body: Body, role: str) -> str:
    """Return all that was said in a role."""
    return "\n".join(m["content"] for m in body["messages"] if m["role"] == role)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """Put the key where the judge looks for it."""
    monkeypatch.setenv(KEY_ENV, KEY)
    return KEY


@dataclass(frozen=True)
class Fake:
    """What tests make servers and answers with."""

    key: str = KEY
    completion: Callable[..., Body] = completion
    verdict: Callable[..., web.Response] = verdict
    status: Callable[..., web.Response] = status
    serving: Callable[..., Any] = serving
    judging: Callable[..., Any] = judging
    judge_config: Callable[..., JudgeConfig] = judge_config
    grade: Callable[..., tuple[Any, list[Body]]] = grade
    said: Callable[[Body, str], str] = said


@pytest.fixture
def fake() -> Fake:
    """Return the makers of fakes."""
    return Fake()
