"""A judge's name is followed where it leads at every connection, and no further."""

import asyncio
import socket
from typing import Any

import pytest

from configs.errors import ConfigError
from configs.judges import EndpointConfig
from rewards.judges.endpoint import EndpointTransport
from rewards.judges.request import ChatMessage, JudgeRejected, JudgeRequest, JudgeSampling
from rewards.judges.resolver import FencedResolver

ASK = JudgeRequest(
    messages=(ChatMessage(role="user", content="?"),),
    schema={"type": "object"},
    schema_name="s",
    sampling=JudgeSampling(),
)


def leading_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(host: str, port: int, *_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", found)


CASES = [
    ("127.0.0.1", False, "private: true"),
    ("10.0.0.1", False, "private: true"),
    ("169.254.169.254", False, "never called"),
    ("169.254.169.254", True, "never called"),
]


@pytest.mark.parametrize(("address", "private", "why"), CASES)
def test_a_public_name_that_leads_inside_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str, private: bool, why: str
):
    leading_to(address, monkeypatch)

    async def ask() -> None:
        cfg = EndpointConfig(base_url="https://judge.example/v1", model="m", private=private)
        transport = EndpointTransport("j", cfg, max_tokens=8)
        try:
            await asyncio.wait_for(transport.send(ASK), 10)
        finally:
            await transport.close()

    with pytest.raises(JudgeRejected, match=why):
        asyncio.run(ask())


def test_a_number_that_is_an_address_in_disguise_is_refused():
    async def ask() -> None:
        cfg = EndpointConfig(base_url="http://0x7f.0.0.1:9/v1", model="m")
        transport = EndpointTransport("j", cfg, max_tokens=8)
        try:
            await asyncio.wait_for(transport.send(ASK), 10)
        finally:
            await transport.close()

    with pytest.raises(JudgeRejected, match="private"):
        asyncio.run(ask())


def test_what_is_written_is_refused_before_anything_is_sent():
    for url in ("http://127.0.0.1:8000/v1", "http://169.254.169.254/v1"):
        with pytest.raises(ConfigError):
            EndpointTransport("j", EndpointConfig(base_url=url, model="m"), max_tokens=8)


def test_a_proxy_may_be_anywhere(monkeypatch: pytest.MonkeyPatch):
    leading_to("10.0.0.1", monkeypatch)

    async def resolve() -> list[Any]:
        fenced = FencedResolver("judge.example", private=False)
        return list(await fenced.resolve("proxy.corp", 3128, socket.AF_INET))

    found = asyncio.run(resolve())
    assert found[0]["host"] == "10.0.0.1"
