"""The end of supervision, whatever is under way at that moment."""

import asyncio
from typing import Any

from actors.heartbeat import Heartbeat
from actors.supervisor import Member, Supervisor
from configs.schema import HealthConfig

ALIVE = Heartbeat(progress=1, stuck_s=0.0, processes=(), node="here", node_id="0")


class Asked:
    """An actor's method whose answer is given by hand."""

    def __init__(self) -> None:
        self.answers: list[asyncio.Future[Heartbeat]] = []

    def remote(self) -> asyncio.Future[Heartbeat]:
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]


class Handle:
    def __init__(self) -> None:
        self.heartbeat = Asked()


def test_it_ends_though_an_answer_comes_at_that_very_moment():
    async def scenario() -> None:
        handle: Any = Handle()
        supervisor = Supervisor(HealthConfig(heartbeat_s=0.01, silence_s=60))
        supervisor.watch([Member(role="rollout", index=0, handle=handle)])
        while not handle.heartbeat.answers:
            await asyncio.sleep(0.005)
        handle.heartbeat.answers[-1].set_result(ALIVE)
        await supervisor.close()
        asked = len(handle.heartbeat.answers)
        await asyncio.sleep(0.05)
        assert len(handle.heartbeat.answers) == asked

    asyncio.run(asyncio.wait_for(scenario(), 10))
