"""Dead, frozen and stuck actors, and rooms that do not exist: all named, none waited for."""

import asyncio
import os
import signal
import time

import pytest
import ray

from actors import processes
from actors.errors import ActorFailure, RunError
from actors.heartbeat import Heartbeat, beat
from actors.placement import BundleDemand, Seat, reserve
from actors.supervisor import Member, Supervisor
from configs.errors import ConfigError, Problem
from configs.schema import HealthConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Worker:
    """Works, sleeps, raises or dies on request."""

    def __init__(self) -> None:
        self.stuck = 0.0

    def heartbeat(self) -> Heartbeat:
        return beat(0, self.stuck)

    def pretend_stuck(self) -> None:
        self.stuck = 77.0

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def die(self) -> None:
        os._exit(3)

    def refuse(self) -> None:
        raise ConfigError(Problem(where="model.path", what="not there"))

    def divide(self) -> float:
        return 1 / 0


def member() -> Member:
    handle = ray.remote(max_restarts=0, max_concurrency=2)(Worker).options(num_cpus=0.1).remote()
    first = ray.get(handle.heartbeat.remote(), timeout=60)
    return Member(
        role="rollout",
        index=3,
        handle=handle,
        node=first.node,
        node_id=first.node_id,
        processes=first.processes,
    )


def supervised(scenario, *, silence_s: float = 30.0):
    async def run():
        supervisor = Supervisor(HealthConfig(heartbeat_s=0.2, silence_s=silence_s))
        worker = member()
        supervisor.watch([worker])
        try:
            return await scenario(supervisor, worker)
        finally:
            await supervisor.close()
            ray.kill(worker.handle)

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_an_actor_that_dies_in_a_call_fails_that_call_by_name():
    async def scenario(supervisor, worker):
        answer = worker.handle.die.remote()
        await supervisor.call(worker, answer, doing="train_step 7", timeout_s=30)

    with pytest.raises(ActorFailure) as caught:
        supervised(scenario)
    assert caught.value.actor == "rollout[3]"
    assert caught.value.doing == "train_step 7"
    assert "process died" in caught.value.cause
    assert caught.value.node == ray.util.get_node_ip_address()


def test_an_actor_that_dies_idle_is_found_by_its_heartbeat():
    async def scenario(supervisor, worker):
        processes.kill(worker.processes[:1])
        never = asyncio.get_running_loop().create_future()
        await supervisor.until_failed(never, doing="groups of step 1", timeout_s=30)

    with pytest.raises(ActorFailure, match=r"rollout\[3\]"):
        supervised(scenario)


def test_a_frozen_actor_is_silent_then_killed_and_named():
    pids = []

    async def scenario(supervisor, worker):
        pids.append(worker.processes[0])
        os.kill(worker.processes[0].pid, signal.SIGSTOP)
        never = asyncio.get_running_loop().create_future()
        try:
            await supervisor.until_failed(never, doing="groups of step 1", timeout_s=30)
        finally:
            for _ in range(100):
                if processes.identify(pids[0].pid) != pids[0]:
                    break
                await asyncio.sleep(0.1)

    with pytest.raises(ActorFailure, match="silent for 3 s"):
        supervised(scenario, silence_s=3.0)
    assert processes.identify(pids[0].pid) != pids[0]


def test_an_actor_without_progress_is_named():
    async def scenario(supervisor, worker):
        await worker.handle.pretend_stuck.remote()
        never = asyncio.get_running_loop().create_future()
        await supervisor.until_failed(never, doing="groups of step 1", timeout_s=30)

    with pytest.raises(ActorFailure, match="no progress for 77 s"):
        supervised(scenario)


def test_a_call_past_its_deadline_is_named():
    async def scenario(supervisor, worker):
        answer = worker.handle.sleep.remote(5)
        await supervisor.call(worker, answer, doing="save", timeout_s=0.5)

    with pytest.raises(ActorFailure, match=r"save: no answer within 0\.5 s"):
        supervised(scenario)


def test_the_drivers_own_wait_has_a_deadline():
    async def scenario(supervisor, worker):
        never = asyncio.get_running_loop().create_future()
        await supervisor.until_failed(never, doing="the groups of step 4", timeout_s=0.3)

    with pytest.raises(RunError, match=r"the groups of step 4 did not come within 0\.3 s"):
        supervised(scenario)


def test_a_config_error_in_an_actor_stays_one():
    async def scenario(supervisor, worker):
        await supervisor.call(worker, worker.handle.refuse.remote(), doing="start", timeout_s=30)

    with pytest.raises(ConfigError, match=r"model\.path: not there"):
        supervised(scenario)


def test_any_other_exception_names_actor_and_cause():
    async def scenario(supervisor, worker):
        await supervisor.call(worker, worker.handle.divide.remote(), doing="start", timeout_s=30)

    with pytest.raises(ActorFailure, match="ZeroDivisionError: division by zero"):
        supervised(scenario)


def demand(role: str, cpus: float, gpus: float = 0.0, labels=None) -> BundleDemand:
    seat = Seat(role=role, index=0, cpus=cpus, gpus=gpus)
    return BundleDemand(group=role, seats=(seat,), labels=labels or {})


def test_more_gpus_than_the_cluster_has_fails_at_once_bundle_by_bundle():
    bundles = [demand("rollout", 1, gpus=4), demand("trainer", 1, gpus=4)]
    with pytest.raises(ConfigError) as caught:
        asyncio.run(reserve(bundles, timeout_s=30, can_grow=False))
    text = str(caught.value)
    assert "rollout[0]: demands 1 CPU, 4 GPU" in text
    assert "8 GPU demanded in all, 0 there" in text


def test_waiting_for_room_has_a_deadline_and_tells_demand_and_supply():
    bundles = [demand("rollout", 1), demand("trainer", 1, labels={"zone": "mars"})]
    with pytest.raises(ConfigError) as caught:
        asyncio.run(reserve(bundles, timeout_s=5.0, can_grow=True))
    text = str(caught.value)
    assert "no room for group `trainer` within 5 s" in text
    assert "{'zone': 'mars'}" in text
    assert "has 2 CPU in all" in text


def test_reserved_room_seats_an_actor_and_is_given_back():
    async def scenario():
        placement = await reserve([demand("reward", 0.5)], timeout_s=30, can_grow=False)
        handle = ray.remote(Worker).options(**placement.options("reward", 0)).remote()
        first = await handle.heartbeat.remote()
        placement.release()
        return first

    assert asyncio.run(asyncio.wait_for(scenario(), 60)).processes
    for _ in range(100):
        if ray.available_resources().get("CPU") == 2.0:
            break
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2.0
