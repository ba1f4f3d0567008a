"""A judge's engine in this very process's care, without Ray: for the command line."""

import asyncio
import os

from actors.judge import JudgeEngine, identity
from configs.judges import JudgeConfig
from environments.play import EngineDead
from rewards.judges.request import JudgeRequest, JudgeUnavailable, Reply


class LocalEngine:
    """Starts one engine at the first question."""

    def __init__(self, name: str, cfg: JudgeConfig):
        assert cfg.engines is not None
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings go to the terminal here
        self.identity = identity(cfg.engines)
        self._engine = JudgeEngine(name, cfg)
        self._starting: asyncio.Task[None] | None = None

    async def send(self, request: JudgeRequest) -> Reply:
        """Ask once."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._engine.start())
        await asyncio.shield(self._starting)
        try:
            return await self._engine.send(request)
        except EngineDead as error:
            raise JudgeUnavailable(str(error)) from error

    async def close(self) -> None:
        """End the engine and its processes, also one that is still starting."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._engine.shutdown()
