"""Judges behind endpoints: asked one question each, as a run would ask it."""

import asyncio
import json
from collections.abc import Iterator

from configs.errors import ConfigError
from configs.judges import EndpointConfig, JudgeConfig
from configs.validate_judges import check_judge
from orchestrator.doctor.findings import Finding, Level, Patient
from rewards.judges.endpoint import EndpointTransport
from rewards.judges.request import (
    ChatMessage,
    JudgeRefused,
    JudgeRejected,
    JudgeRequest,
    JudgeSampling,
    JudgeUnavailable,
    Reply,
)
from rewards.judges.schemas import record

PATIENCE_S = 30.0
"""Most seconds that one judge gets here, whatever its `timeout_s`."""
_QUESTION = JudgeRequest(
    messages=(ChatMessage(role="user", content='Is 2 more than 1? Reply {"met": true}.'),),
    schema=record(met={"type": "boolean"}),
    schema_name="met",
    sampling=JudgeSampling(temperature=0.0, max_tokens=256),
)


def check_judges(patient: Patient) -> Iterator[Finding]:
    """Ask each endpoint: is it reached, does it let us in, does it answer in the form asked for?"""
    asked = {n: j for n, j in patient.judges.items() if j.endpoint is not None}
    wrong = {name: list(check_judge(name, judge)) for name, judge in asked.items()}
    for name, problems in wrong.items():
        for problem in problems:
            yield _judge(name, Level.FAILED, f"{problem.where} {problem.what}", problem.fix)
    good = {name: judge for name, judge in asked.items() if not wrong[name]}
    yield from asyncio.run(_ask_all(good))


async def _ask_all(judges: dict[str, JudgeConfig]) -> list[Finding]:
    return list(await asyncio.gather(*(_ask(name, judge) for name, judge in judges.items())))


async def _ask(name: str, judge: JudgeConfig) -> Finding:
    endpoint = judge.endpoint
    assert endpoint is not None
    patience = min(PATIENCE_S, judge.timeout_s)
    try:
        transport = EndpointTransport(name, endpoint, max_tokens=judge.max_tokens)
    except ConfigError as error:
        (problem,) = error.problems
        return _judge(name, Level.FAILED, f"{problem.where} {problem.what}", problem.fix)
    try:
        async with asyncio.timeout(patience):
            reply = await transport.send(_QUESTION)
    except TimeoutError:
        fix = "Look whether it is overloaded; raise the judge's timeout_s if it is only slow."
        return _judge(name, Level.FAILED, f"no answer within {patience:g} s", fix)
    except JudgeUnavailable as error:
        fix = f"Look whether {endpoint.base_url} is right, running, and reached from here."
        return _judge(name, Level.FAILED, str(error), fix)
    except (JudgeRejected, JudgeRefused) as error:
        key = endpoint.api_key_env or "its api_key_env, which is not given"
        fix = f"Look at {key} and at `model: {endpoint.model}`."
        return _judge(name, Level.FAILED, str(error), fix)
    finally:
        await transport.close()
    return _judged(name, endpoint, reply)


def _judged(name: str, endpoint: EndpointConfig, reply: Reply) -> Finding:
    try:
        verdict = json.loads(reply.text)
    except (ValueError, RecursionError):
        verdict = None
    if not isinstance(verdict, dict) or not isinstance(verdict.get("met"), bool):
        fix = "Serve it with structured output (json_schema), or take a model that writes JSON."
        return _judge(name, Level.FAILED, f"answers, but not as JSON: {reply.text[:80]!r}", fix)
    if reply.notes:
        fix = "Set `structured: text` to say that this is known, or serve it with json_schema."
        return _judge(name, Level.WARNING, f"answers; {'; '.join(reply.notes)}", fix)
    return _judge(name, Level.OK, f"{reply.model} at {endpoint.base_url} answers as asked")


def _judge(name: str, level: Level, detail: str, remedy: str = "") -> Finding:
    return Finding(section="judges", name=name, level=level, detail=detail, remedy=remedy)
