"""When the reference follows the policy: each so many steps, after the update, and not without."""

import asyncio
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.refresh import RefreshConfig
from orchestrator.loop import _refresh_reference


@pytest.mark.parametrize(
    ("refresh", "due"),
    [
        (None, []),
        (RefreshConfig(every=1), [1, 2, 3, 4, 5, 6]),
        (RefreshConfig(every=3, mode="ema"), [3, 6]),
        (RefreshConfig(every=7), []),
    ],
)
def test_it_follows_when_that_is_due(
    refresh: RefreshConfig | None, due: list[int], tmp_path: Path
) -> None:
    step, seen = 0, list[tuple[str, int]]()

    async def write(folder: Path) -> None:
        (folder / "weights").write_text("")
        seen.append(("written", step))

    async def follow(folder: Path) -> None:
        assert (folder / "weights").is_file()
        seen.append(("followed", step))

    parts: Any = SimpleNamespace(
        cfg=SimpleNamespace(reference=SimpleNamespace(refresh=refresh)),
        cluster=SimpleNamespace(
            trainer=SimpleNamespace(write_policy=write), reference=SimpleNamespace(follow=follow)
        ),
        clock=SimpleNamespace(phase=lambda name: nullcontext()),
        recorder=SimpleNamespace(path=tmp_path),
    )
    for step in range(1, 7):
        asyncio.run(_refresh_reference(parts, step))
    assert seen == [(what, s) for s in due for what in ("written", "followed")]
    assert not list(tmp_path.iterdir()), "what was read is not kept"
