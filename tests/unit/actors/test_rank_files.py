"""What ranks write into a checkpoint must be where the driver seals it."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from actors import groups
from actors.errors import ActorFailure
from actors.groups import ReferenceFleet, TrainerGroup
from actors.ranks import file_sizes
from actors.supervisor import Member, Supervisor
from configs.schema import HealthConfig


class Rank:
    """An actor on a node.

    Args:
        disk: what stands there where the driver has `seen`.
        late_s: seconds until others see what was written.
    """

    def __init__(self, number: int, seen: Path, disk: Path, late_s: float = 0.0):
        self._name, self._seen, self._disk, self._late_s = f"rank_{number}", seen, disk, late_s
        self.save: Any = self

    async def remote(self, folder: Path) -> Mapping[str, int]:
        mine = self._disk / folder.relative_to(self._seen) / "state" / self._name
        mine.parent.mkdir(parents=True, exist_ok=True)
        if self._late_s:
            later = asyncio.get_running_loop().call_later
            later(self._late_s, mine.write_bytes, b"1234")
            return {f"state/{self._name}": 4}
        mine.write_bytes(b"1234")
        return file_sizes(self._disk / folder.relative_to(self._seen))


def members(*ranks: Rank) -> list[Member]:
    handles: list[Any] = list(ranks)
    return [
        Member(role="trainer", index=i, handle=handle, node=f"node-{i}")
        for i, handle in enumerate(handles)
    ]


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(groups, "ARRIVAL_S", 60)
    monkeypatch.setattr(groups, "ARRIVAL_POLL_S", 0.01)
    folder = tmp_path / "shared" / "trainer"
    folder.mkdir(parents=True)
    return folder


def test_a_rank_that_writes_to_a_disk_of_its_own_is_named(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "ARRIVAL_S", 0.3)

    async def save() -> None:
        health = HealthConfig()
        apart = Rank(1, shared, tmp_path / "own")
        ranks = members(Rank(0, shared, shared), apart)
        group = TrainerGroup(ranks, Supervisor(health), health)
        with pytest.raises(ActorFailure, match=r"trainer\[1\] on node-1, .*state/rank_1") as caught:
            await group.save(shared)
        assert "storage" in caught.value.remedy
        alone = ReferenceFleet(members(apart), Supervisor(health), health)
        with pytest.raises(ActorFailure, match="state/rank_1"):
            await alone.save(shared)

    asyncio.run(asyncio.wait_for(save(), 90))


def test_what_comes_late_is_waited_for(shared: Path) -> None:
    async def save() -> None:
        health = HealthConfig()
        ranks = members(Rank(0, shared, shared), Rank(1, shared, shared, late_s=0.1))
        await TrainerGroup(ranks, Supervisor(health), health).save(shared)
        assert file_sizes(shared).keys() == {"state/rank_0", "state/rank_1"}

    asyncio.run(asyncio.wait_for(save(), 90))
