"""One question, and how a judge is asked it."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from rewards.judges.cache import ReplyCache
from rewards.judges.client import Judge
from rewards.judges.endpoint import EndpointTransport
from rewards.judges.reading import Verdict, number
from rewards.judges.request import ChatMessage, JudgeRequest, JudgeSampling
from rewards.judges.schemas import score_schema
from rewards.score import GradeFailed


def request(text: str = "how good?", **sampling: Any) -> JudgeRequest:
    return JudgeRequest(
        messages=(ChatMessage(role="user", content=text),),
        schema=score_schema(0, 1, explain=False),
        schema_name="score",
        sampling=JudgeSampling(**sampling),
    )


def read(verdict: Verdict) -> float:
    return number(verdict, "result")


def ask(judge: Judge, text: str = "how good?", **sampling: Any):
    return judge.ask(request(text, **sampling), ["result"], read)


async def failure(judge: Judge) -> GradeFailed:
    with pytest.raises(GradeFailed) as failed:
        await ask(judge)
    return failed.value


async def hang() -> web.Response:
    await asyncio.sleep(60)
    return web.Response()


async def slow_verdict(fake):
    await asyncio.sleep(0.01)
    return fake.verdict(result=1)


def endpoint_judge(cfg, **settings) -> Judge:
    transport = EndpointTransport("j", cfg.endpoint, max_tokens=cfg.max_tokens)
    settings = {"cache": ReplyCache(100), "limit": 8, **settings}
    return Judge("j", cfg, transport, **settings)
