"""The judge client against a server that misbehaves on demand."""

import asyncio
import json
import logging
import random

import pytest
from aiohttp import web

from configs.errors import ConfigError
from rewards.judges.client import Judged
from rewards.judges.endpoint import EndpointTransport
from rewards.judges.reading import Verdict
from rewards.judges.request import JudgeRequest, Unreadable
from rewards.score import FailureKind, GradeFailed
from tests.unit.rewards.judges.asking import (
    ask,
    endpoint_judge,
    failure,
    hang,
    request,
    slow_verdict,
)

SERVER, REFUSAL, PARSE = (
    FailureKind.JUDGE_SERVER,
    FailureKind.JUDGE_REFUSAL,
    FailureKind.JUDGE_PARSE,
)


def test_what_is_sent_and_what_comes_back(fake):
    async def scenario():
        async with fake.judging(lambda body, n: fake.verdict(result=0.75)) as (panel, server):
            found: Judged[float] = await ask(panel["j"], temperature=0.0, seed=5)
            return found, server, panel["j"].meter.take()

    found, server, counts = asyncio.run(scenario())
    assert (found.value, found.model, found.cached) == (0.75, "fake-2026", False)
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (100, 10)
    assert found.usage.cached_tokens == 40
    (body,) = server.asked
    assert server.authorised == {f"Bearer {fake.key}"}
    assert body["model"] == "fake"
    assert body["messages"] == [{"role": "user", "content": "how good?"}]
    assert (body["temperature"], body["seed"]) == (0.0, 5)
    assert body["max_completion_tokens"] == 1024
    wanted = body["response_format"]["json_schema"]
    assert wanted["strict"] is True
    assert wanted["schema"]["required"] == ["result"]
    assert "minimum" not in json.dumps(wanted)
    assert (counts["verdicts"], counts["tries"], counts["prompt_tokens"]) == (1, 1, 100)


FAILURES = {
    "429": (lambda f: f.status(429), SERVER, 3),
    "500": (lambda f: f.status(500), SERVER, 3),
    "503": (lambda f: f.status(503), SERVER, 3),
    "hang": (lambda f: hang(), SERVER, 3),
    "not JSON": (lambda f: web.Response(text="<html>busy</html>"), SERVER, 3),
    "no choices": (lambda f: web.json_response({"choices": []}), SERVER, 3),
    "401": (lambda f: f.status(401), SERVER, 1),
    "404": (lambda f: f.status(404), SERVER, 1),
    "400": (lambda f: f.status(400, "context length exceeded"), SERVER, 1),
    "redirect": (
        lambda f: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
        SERVER,
        1,
    ),
    "refusal": (
        lambda f: web.json_response(f.completion(None, refusal="I will not judge")),
        REFUSAL,
        3,
    ),
    "filter": (
        lambda f: web.json_response(f.completion("", finish="content_filter")),
        REFUSAL,
        3,
    ),
    "prose": (lambda f: web.json_response(f.completion("about 0.7, I think")), PARSE, 3),
    "empty": (lambda f: web.json_response(f.completion(None)), PARSE, 3),
    "cut off": (
        lambda f: web.json_response(f.completion('{"result": 0.', finish="length")),
        PARSE,
        3,
    ),
    "text": (lambda f: f.verdict(result="0.7"), PARSE, 3),
    "true": (lambda f: f.verdict(result=True), PARSE, 3),
    "null": (lambda f: f.verdict(result=None), PARSE, 3),
    "list": (lambda f: f.verdict(result=[1]), PARSE, 3),
    "NaN": (lambda f: web.json_response(f.completion('{"result": NaN}')), PARSE, 3),
    "huge": (lambda f: web.json_response(f.completion('{"result": 1e999}')), PARSE, 3),
    "digits": (
        lambda f: web.json_response(f.completion('{"result": 1' + "0" * 400 + "}")),
        PARSE,
        3,
    ),
    "missing": (lambda f: f.verdict(score=1), PARSE, 3),
    "twice": (lambda f: web.json_response(f.completion('{"result": 0, "result": 1}')), PARSE, 3),
    "quoted": (
        lambda f: web.json_response(f.completion('It says {"result": 1}. So: {"result": 0}')),
        PARSE,
        3,
    ),
    "deep": (
        lambda f: web.json_response(f.completion('{"result": ' + "[" * 50_000)),
        PARSE,
        3,
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_named_after_its_retries_and_never_a_number(fake, name: str):
    make, kind, tries = FAILURES[name]
    settings = {"retries": 2, "timeout_s": 0.1} if name == "hang" else {"retries": 2}
    sent: list[JudgeRequest] = []

    async def scenario():
        async with fake.judging(lambda body, n: make(fake), **settings) as (panel, server):
            transport = panel["j"]._transport
            send = transport.send

            def counted(asked: JudgeRequest):
                sent.append(asked)
                return send(asked)

            transport.send = counted
            failed = await failure(panel["j"])
            return failed, len(server.asked), panel["j"].meter.take()

    failed, asked, counts = asyncio.run(scenario())
    assert failed.kind == kind
    assert len(sent) == tries
    assert asked == tries or (name == "hang" and asked < tries)  # given up before it was read
    assert counts["verdicts"] == 0
    short = str(kind.name).lower().removeprefix("judge_")
    assert (counts[f"failed_{short}"], counts["retries"]) == (1, tries - 1)


def test_no_connection_is_a_server_failure(fake):
    async def scenario():
        async with fake.serving(lambda body, n: fake.verdict(result=1)) as server:
            cfg = fake.judge_config(server.url, retries=1)
        judge = endpoint_judge(cfg)
        try:
            return await failure(judge)
        finally:
            await judge.close()

    assert asyncio.run(scenario()).kind == SERVER


def test_pauses_grow_and_the_server_may_ask_for_its_own(fake):
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def scenario():
        def reply(body, n):
            headers = {"Retry-After": "7"} if n == 3 else {"Retry-After": "900"} if n == 4 else {}
            return fake.status(429, **headers) if n < 5 else fake.verdict(result=1)

        async with fake.serving(reply) as server:
            cfg = fake.judge_config(
                server.url, retries=5, backoff_s=1.0, max_backoff_s=20.0, deadline_s=1000
            )
            judge = endpoint_judge(cfg, pause=pause)
            try:
                return (await ask(judge)).value
            finally:
                await judge.close()

    assert asyncio.run(scenario()) == 1
    assert [0.5 <= pauses[0] <= 1, 1 <= pauses[1] <= 2, 2 <= pauses[2] <= 4] == [True] * 3
    assert pauses[3:] == [7, 20]


def test_the_deadline_ends_retries_early(fake):
    async def pause(seconds: float) -> None:
        pass

    async def scenario():
        async with fake.serving(lambda body, n: fake.status(500)) as server:
            cfg = fake.judge_config(
                server.url, retries=50, backoff_s=10.0, max_backoff_s=10.0, deadline_s=30
            )
            judge = endpoint_judge(cfg, pause=pause)
            try:
                await failure(judge)
            finally:
                await judge.close()
            return len(server.asked)

    assert 3 <= asyncio.run(scenario()) <= 7


@pytest.mark.parametrize("seed", range(8))
def test_concurrency_never_exceeds_the_limit(fake, seed: int):
    rng = random.Random(seed)
    limit = rng.randint(1, 5)

    async def reply(body, n):
        await asyncio.sleep(rng.random() * 0.01)
        return rng.choice([fake.verdict(result=1), fake.status(500), fake.status(429)])

    async def scenario():
        async with fake.judging(reply, concurrency=limit, retries=3) as (panel, server):
            asking = [ask(panel["j"], f"question {i}") for i in range(40)]
            await asyncio.gather(*asking, return_exceptions=True)
            return server.most_in_flight, len(server.asked)

    most, asked = asyncio.run(scenario())
    assert most == limit
    assert asked >= 40


def test_actors_share_the_limit(fake):
    async def scenario():
        from rewards.judges.panel import close_judges, open_judges

        async with fake.serving(lambda b, n: slow_verdict(fake)) as server:
            cfg = {"j": fake.judge_config(server.url, concurrency=7)}
            panels = [open_judges(cfg, None, share=3) for _ in range(3)]
            try:
                await asyncio.gather(*(ask(p["j"], f"{i}") for p in panels for i in range(9)))
            finally:
                for panel in panels:
                    await close_judges(panel)
            return server.most_in_flight

    assert asyncio.run(scenario()) == 6


@pytest.mark.parametrize(
    "message", ["response_format json_schema is not supported", "unknown field: response_format"]
)
def test_where_response_format_is_refused_json_is_read_from_text(fake, message: str):
    async def scenario():
        def reply(body, n):
            if "response_format" in body:
                return fake.status(400, message)
            return web.json_response(fake.completion('Sure.\n```json\n{"result": 0.5}\n```'))

        async with fake.judging(reply) as (panel, server):
            first, second = await ask(panel["j"]), await ask(panel["j"], "and this?")
            return first, second, server.asked

    first, second, asked = asyncio.run(scenario())
    assert (first.value, second.value, len(asked)) == (0.5, 0.5, 3)
    assert "refused response_format" in first.notes[0]
    assert "JSON schema" in asked[1]["messages"][-1]["content"]


def test_questions_sent_before_the_server_refused_response_format_are_asked_again(fake):
    async def scenario():
        both = asyncio.Event()

        async def reply(body, n):
            if "response_format" not in body:
                return web.json_response(fake.completion('{"result": 0.5}'))
            if n >= 1:
                both.set()
            await asyncio.wait_for(both.wait(), 10)
            return fake.status(400, "unknown field: response_format")

        async with fake.judging(reply) as (panel, server):
            found = await asyncio.gather(ask(panel["j"]), ask(panel["j"], "and this?"))
            return found, len(server.asked)

    found, asked = asyncio.run(scenario())
    assert [f.value for f in found] == [0.5, 0.5] and asked == 4


def test_older_servers_get_max_tokens_and_no_seed(fake):
    async def scenario():
        def reply(body, n):
            for name in ("max_completion_tokens", "seed"):
                if name in body:
                    return fake.status(422, f"unexpected parameter {name}")
            return fake.verdict(result=1)

        async with fake.judging(reply) as (panel, server):
            return await ask(panel["j"], seed=1), server.asked[-1]

    found, body = asyncio.run(scenario())
    assert found.value == 1
    assert body["max_tokens"] == 1024 and "seed" not in body
    assert "does not know seed" in found.notes[0]


def test_a_seed_is_given_up_for_no_other_complaint(fake):
    """Without seeds, votes and redraws would all be the same question."""

    async def scenario():
        async with fake.judging(lambda b, n: fake.status(400, "superseded model")) as (
            panel,
            server,
        ):
            first = await failure(panel["j"])
            with pytest.raises(GradeFailed):
                await ask(panel["j"], seed=5)
            return first, server.asked

    failed, asked = asyncio.run(scenario())
    assert "superseded" in failed.message and len(asked) == 2
    assert asked[1]["seed"] == 5


def test_an_unreadable_verdict_is_asked_for_with_another_seed(fake):
    async def scenario():
        def reply(body, n):
            return web.json_response(fake.completion("?")) if n < 2 else fake.verdict(result=1)

        async with fake.judging(reply) as (panel, server):
            found = await ask(panel["j"], seed=7)
            again = await ask(panel["j"], seed=7)
            return found, again, [b["seed"] for b in server.asked]

    found, again, seeds = asyncio.run(scenario())
    assert len(set(seeds)) == 3 and seeds[0] == 7
    assert found.usage.prompt_tokens == 300
    assert again.cached


def test_the_key_is_in_no_message_log_or_repr(fake, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)

    async def scenario():
        said: list[str] = []
        bodies = [
            fake.status(500, f"bad key {fake.key}"),
            fake.status(401, f"bad key {fake.key}"),
            web.Response(text=f"oops Bearer {fake.key}"),
            web.json_response(fake.completion(None, refusal=f"I saw {fake.key}")),
        ]
        for answer in bodies:
            async with fake.judging(lambda b, n, a=answer: a, retries=0) as (panel, _):
                failed = await failure(panel["j"])
                transport = panel["j"]._transport
                said += [str(failed), repr(failed), repr(panel["j"]), repr(transport)]
                said += [str(failed.__cause__), panel["j"].identity, repr(panel["j"].cfg)]
        return said

    said = asyncio.run(scenario())
    assert not [text for text in [*said, caplog.text] if fake.key in text]
    assert any("[secret]" in text for text in said)


def test_a_missing_key_is_a_config_error_that_names_the_variable(
    fake, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("FAKE_JUDGE_KEY")
    cfg = fake.judge_config("https://judge.example/v1")
    with pytest.raises(ConfigError, match="FAKE_JUDGE_KEY"):
        EndpointTransport("j", cfg.endpoint, max_tokens=5)


def test_a_reader_that_others_do_not_share_fails_alone(fake):
    def strict(verdict: Verdict) -> float:
        raise Unreadable("not for me")

    async def scenario():
        async with fake.judging(lambda b, n: fake.verdict(result=1), retries=1) as (panel, _):
            await ask(panel["j"])
            with pytest.raises(GradeFailed) as failed:
                await panel["j"].ask(request(), ["result"], strict)
            return failed.value.kind

    assert asyncio.run(scenario()) == PARSE
