"""The judge actor: one vLLM engine that writes verdicts, and the way to a group of them.

It is a rollout engine that weight sync never opens: its weights stay those of its own folder.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from pydantic import JsonValue
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.errors import RunError, last_line
from actors.heartbeat import Heartbeat, beat
from actors.rollout_engine import RolloutEngine
from actors.rollout_render import ChatRenderer
from configs.engines import EngineSettings
from configs.judges import JudgeConfig, JudgeEnginesConfig
from configs.redact import guard_output
from configs.schema import RunConfig
from environments.play import EngineDead
from rewards.judges.request import (
    ChatMessage,
    JudgeRejected,
    JudgeRequest,
    JudgeUnavailable,
    Reply,
)
from rewards.judges.schemas import with_limits
from rewards.score import Usage
from rollouts.types import Message

if TYPE_CHECKING:
    from vllm.engine.arg_utils import AsyncEngineArgs

_SYSTEM = ("system", "developer")


class JudgeEngine(RolloutEngine):
    """An engine whose output is held to a JSON schema."""

    def __init__(self, name: str, judge: JudgeConfig, *, seed: int = 0, index: int = 0):
        engines = judge.engines
        assert engines is not None
        own = EngineSettings(model=engines.model, rollout=engines, seed=seed)
        super().__init__(own, index, role=f"judges.{name}")
        self._max_tokens, self._engines = judge.max_tokens, engines
        self._renderer = ChatRenderer(engines.model, where=f"judges.{name}.engines.model.path")

    async def send(self, request: JudgeRequest) -> Reply:
        """Write one verdict.

        Raises:
            JudgeRejected: the question does not fit into the model.
            EngineDead: the engine died.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        prompt = self._renderer.render(plain(request.messages, self._renderer.break_up))
        room = self._engines.model.max_model_len - len(prompt)
        if room <= 0:
            raise JudgeRejected(
                f"a question of {len(prompt)} tokens leaves no room in engines.model.max_model_len "
                f"{self._engines.model.max_model_len}"
            )
        wish = request.sampling
        schema = with_limits(dict(request.schema), self._engines.max_chars)
        params = SamplingParams(
            temperature=1.0 if wish.temperature is None else wish.temperature,
            top_p=1.0 if wish.top_p is None else wish.top_p,
            max_tokens=min(wish.max_tokens or self._max_tokens, room),
            seed=request.seed,
            structured_outputs=StructuredOutputsParams(json=json.dumps(schema)),
            detokenize=False,
            stop_token_ids=self.stop_ids,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        done = await self.sample(prompt.tolist(), params)
        usage = Usage(prompt_tokens=len(prompt), completion_tokens=len(done.token_ids))
        text = self._renderer.decode(np.asarray(done.token_ids, np.int32))
        return Reply(text=text, model=self._engines.model.path, usage=usage)

    def args(self) -> "AsyncEngineArgs":
        """Return vLLM's arguments: no weight transfer, and JSON without idle white space."""
        from vllm.config import StructuredOutputsConfig

        structured = StructuredOutputsConfig(backend="xgrammar", disable_any_whitespace=True)
        return replace(
            super().args(),
            structured_outputs_config=structured,
            worker_extension_cls="",
            weight_transfer_config=None,
        )


class JudgeActor:
    """The Ray actor. Heartbeats run in a thread of their own (`control`)."""

    def __init__(self, cfg: RunConfig, name: str, index: int):
        guard_output()
        self._engine = JudgeEngine(name, cfg.judges[name], seed=cfg.seed, index=index)
        self._dead = ""

    async def start(self) -> Heartbeat:
        """Start vLLM; as `RolloutActor.start`."""
        await self._engine.start()
        return beat(0)

    async def send(self, request: JudgeRequest) -> Reply | JudgeRejected:
        """Write one verdict, or say why it cannot be asked for."""
        try:
            return await self._engine.send(request)
        except JudgeRejected as rejected:
            return rejected
        except EngineDead as error:
            self._dead = str(error)
            raise

    @ray.method(concurrency_group="control")
    async def heartbeat(self) -> Heartbeat:
        """Answer that the actor lives, and whether it is stuck.

        Raises:
            RunError: its engine died.
        """
        if self._dead:
            raise RunError(self._dead)
        return beat(self._engine.progress()[0], self._engine.stuck_s())

    async def close(self) -> None:
        """End the engine and its processes."""
        await self._engine.shutdown()


class EngineTransport:
    """The way of one reward actor to a judge's engines: the one with the fewest questions of ours
    is asked."""

    def __init__(self, engines: JudgeEnginesConfig, handles: Sequence[ActorHandle]):
        self.identity = identity(engines)
        self._handles = list(handles)
        self._asked = [0] * len(handles)

    async def send(self, request: JudgeRequest) -> Reply:
        """Ask once."""
        at = min(range(len(self._asked)), key=self._asked.__getitem__)
        self._asked[at] += 1
        try:
            asking: Any = self._handles[at].send.remote(request)
            answer: Reply | JudgeRejected = await asking
        except RayError as error:
            why = f"its engine did not answer: {last_line(error)}"
            raise JudgeUnavailable(why) from error
        finally:
            self._asked[at] -= 1
        if isinstance(answer, JudgeRejected):
            raise answer
        return answer

    async def close(self) -> None:
        """Do nothing: the engines are the cluster's."""


def identity(engines: JudgeEnginesConfig) -> str:
    """Return model, numbers, and the files as they are now."""
    model = engines.model
    return f"engines {model.path} {model.dtype} {_files(model.path)}"


def _files(path: str) -> str:
    """Return a hash of names, sizes and times of a model's files; empty for a hub name."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return ""
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.iterdir())]
    return hashlib.sha256(repr(files).encode()).hexdigest()[:16]


def plain(messages: Sequence[ChatMessage], break_up: Callable[[str], str]) -> list[Message]:
    """Return the messages as chat templates take them: one system message in front, texts alone.

    Raises:
        JudgeRejected: one holds something else than text.
    """
    system = [_text(m.content) for m in messages if m.role in _SYSTEM]
    rest = [Message(role=m.role, content=_text(m.content)) for m in messages]
    said = [m for m in rest if m.role not in _SYSTEM]
    head = [Message(role="system", content="\n".join(system))] if system else []
    return [replace(m, content=break_up(m.content)) for m in (*head, *said)]


def _text(content: JsonValue) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for block in content if isinstance(content, list) else []:
        text = block.get("text") if isinstance(block, dict) else None
        if not isinstance(text, str):
            raise JudgeRejected("engines of our own read text alone, and there is another block")
        texts.append(text)
    return "\n".join(texts)
