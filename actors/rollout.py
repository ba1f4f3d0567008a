"""The rollout actor: plays the episodes of groups on one vLLM engine."""

import asyncio
import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import ray

from actors.heartbeat import Heartbeat, beat
from actors.processes import ProcessId, family
from actors.rollout_args import workers
from actors.rollout_engine import ReceiveReport, RolloutEngine
from actors.rollout_render import ChatRenderer
from actors.sync_plan import Manifest, SyncInit
from configs.estimators import traits
from configs.redact import guard_output
from configs.schema import RunConfig
from environments.environment import Environment
from environments.play import GenerateFn, play
from environments.registry import environment_factory
from rollouts.record import Spelled, room_for, stretches
from rollouts.types import (
    I32,
    Boundary,
    Completion,
    GeneratedGroup,
    GroupRequest,
    Ref,
    Rollout,
    RolloutError,
    RolloutGroup,
    RolloutStatus,
    Sampling,
    TrainingSample,
)

__all__ = ["EngineInfo", "ReceiveReport", "RolloutActor", "RolloutRunner"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What the driver needs to know of a started engine."""

    node: str
    """Address of its node."""
    node_id: str
    processes: tuple[ProcessId, ...]
    num_workers: int
    """TP x PP: ranks it takes in the weight-sync group."""
    device: str
    """`cuda` or `cpu`."""
    max_model_len: int


class RolloutRunner:
    """An engine, a renderer and the sources' environments. Knows no Ray."""

    def __init__(self, cfg: RunConfig, engine_index: int):
        self._cfg = cfg
        self.engine = RolloutEngine(cfg, engine_index)
        self._renderer = ChatRenderer(cfg.model)
        self._environments: dict[str, Callable[[], Environment]] = {
            s.name: environment_factory(s.environment, where=f"sources.{s.name}.environment")
            for s in cfg.sources
        }

    async def play_group(self, request: GroupRequest) -> RolloutGroup:
        """Play all episodes of a group at once.

        Raises:
            EngineDead: the engine died; no rollout is made of that.
        """
        began = time.monotonic()
        make = self._environments[request.task.source]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._play_one(make, request, index))
                for index in range(request.group_size)
            ]
            greedy = None
            if self._needs_greedy(request):
                order = replace(request, sampling=replace(request.sampling, temperature=0.0))
                greedy = group.create_task(self._play_one(make, order, request.group_size))
        return RolloutGroup(
            request=request,
            rollouts=tuple(t.result() for t in tasks),
            greedy=None if greedy is None else greedy.result(),
            generate_s=time.monotonic() - began,
        )

    def _needs_greedy(self, request: GroupRequest) -> bool:
        source = self._cfg.source(request.task.source)
        return request.step >= 0 and traits(source.advantage.use).greedy

    async def _play_one(
        self, make: Callable[[], Environment], request: GroupRequest, index: int
    ) -> Rollout:
        try:
            env = make()
        except Exception as error:  # noqa: BLE001 - a user's environment may raise anything
            what = RolloutError(
                boundary=Boundary.ENVIRONMENT, kind=type(error).__name__, message=str(error)
            )
            return Rollout(
                index=index, turns=(), status=RolloutStatus.INVALID, reward_parts={}, error=what
            )
        return await play(
            env,
            request.task,
            index=index,
            sampling=request.sampling,
            max_model_len=self._cfg.model.max_model_len,
            generate=self._sampler(request, index),
            renderer=self._renderer,
            locate_text=self._cfg.source(request.task.source).credits_tokens,
        )

    async def probe(self, requests: Sequence[GroupRequest]) -> tuple[TrainingSample, ...]:
        """Sample every request's prompt, and put the engine's own logprobs into samples."""
        orders = [(r, i) for r in requests for i in range(r.group_size)]
        prompts = [self._renderer.render(r.task.prompt) for r, _ in orders]
        completions = await asyncio.gather(
            *(self._sampler(r, i)(p, r.sampling) for p, (r, i) in zip(prompts, orders, strict=True))
        )
        return tuple(
            _probe_sample(r, i, p, c)
            for (r, i), p, c in zip(orders, prompts, completions, strict=True)
        )

    def _sampler(self, request: GroupRequest, index: int) -> GenerateFn:
        """Return what samples one rollout's turns. Where the run is to be deterministic, the draws
        of each are a function of the request alone, whatever else is sampled beside it."""
        turns = itertools.count()

        async def generate(prompt_ids: I32, sampling: Sampling) -> Completion:
            turn, seed = next(turns), None
            if self._cfg.deterministic:
                seed = draw_seed(self._cfg.seed, f"{request.group_id}/{index}/{turn}")
            return await self.engine.complete(prompt_ids.tolist(), sampling, seed=seed)

        return generate

    def spell(self, groups: Sequence[RolloutGroup]) -> tuple[tuple[Spelled, ...], ...]:
        """Return the tokens of groups as texts, as many as a record holds."""
        room = room_for(sum(len(g.rollouts) for g in groups))
        return tuple(tuple(self._spell(r, room) for r in g.rollouts) for g in groups)

    def _spell(self, rollout: Rollout, room: int) -> Spelled:
        head, tail, kept = stretches(rollout, room)
        return Spelled(
            pieces=tuple(piece for ids in kept for piece in self._renderer.pieces(ids)),
            head=head,
            tail=tail,
            heard=tuple(self._renderer.decode(t.prompt_ids) for t in rollout.turns[1:]),
        )


def draw_seed(seed: int, name: str) -> int:
    """Return the seed of one completion, in [0, 2^63)."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _probe_sample(
    request: GroupRequest, index: int, prompt: I32, completion: Completion
) -> TrainingSample:
    size, start = len(prompt) + len(completion.token_ids), len(prompt)
    mask = np.arange(size) >= start
    logprobs = np.zeros(size, np.float32)
    logprobs[start:] = completion.logprobs
    return TrainingSample(
        group_id=request.group_id,
        index=index,
        token_ids=np.concatenate([prompt, completion.token_ids]).astype(np.int32),
        loss_mask=mask,
        rollout_logprobs=logprobs,
        advantages=np.zeros(size, np.float32),
        loss_weight=np.ones(size, np.float32),
        kl_coef=np.zeros(size, np.float32),
        clip_low=np.full(size, np.nan, np.float32),
        clip_high=np.full(size, np.nan, np.float32),
        temperature=np.full(size, request.sampling.temperature, np.float32),
    )


class RolloutActor:
    """The Ray actor. Heartbeats run in a thread of their own (`control`), so that a busy event
    loop is not taken for a silent engine; they report one that emits no token."""

    def __init__(self) -> None:
        guard_output()
        self._runner: RolloutRunner | None = None

    @property
    def _engine(self) -> RolloutEngine:
        assert self._runner is not None, "start() was not called"
        return self._runner.engine

    async def start(self, cfg: RunConfig, engine_index: int) -> EngineInfo:
        """Start vLLM.

        Raises:
            ConfigError: no tokenizer or chat template.
            RunError: vLLM did not start in `rollout.start_attempts` tries.
        """
        self._runner = RolloutRunner(cfg, engine_index)
        await self._engine.start()
        alive = beat(0)
        return EngineInfo(
            node=alive.node,
            node_id=alive.node_id,
            processes=family(),
            num_workers=workers(cfg),
            device=await self._engine.device(),
            max_model_len=cfg.model.max_model_len,
        )

    async def generate(self, request: GroupRequest) -> GeneratedGroup:
        """Sample one group into the object store."""
        assert self._runner is not None, "start() was not called"
        group = await self._runner.play_group(request)
        return GeneratedGroup(
            group_id=request.group_id,
            ref=ray.put(group),
            num_completion_tokens=sum(
                r.num_completion_tokens for r in (*group.rollouts, *filter(None, [group.greedy]))
            ),
            generate_s=group.generate_s,
        )

    async def sample_probe(self, requests: tuple[GroupRequest, ...]) -> Ref:
        """Return a reference to TrainingSamples that hold this engine's logprobs."""
        assert self._runner is not None, "start() was not called"
        return ray.put(await self._runner.probe(requests))

    async def spell(self, refs: Sequence[Ref]) -> Ref:
        """Return a reference to the tokens of groups as texts."""
        assert self._runner is not None, "start() was not called"
        groups = await asyncio.gather(*refs)  # type: ignore[call-overload]
        return ray.put(self._runner.spell(groups))

    async def open_sync(self, init: SyncInit, manifest: Manifest) -> None:
        """Join a generation of the weight-sync group with all workers."""
        await self._engine.open_sync(init, manifest)

    async def pause(self) -> None:
        """Hold all requests where they are."""
        await self._engine.pause()

    async def receive(self, version: int, manifest_hash: str) -> ReceiveReport:
        """Receive, load, verify and acknowledge weights; waits for the trainer's send."""
        return await self._engine.receive(version, manifest_hash)

    async def resume(self) -> None:
        """Let the requests go on."""
        await self._engine.resume()

    @ray.method(concurrency_group="control")
    async def heartbeat(self) -> Heartbeat:
        """Answer that the actor lives, how many tokens it emitted, and whether it is stuck."""
        if self._runner is None:
            return beat(0)
        return beat(self._engine.progress()[0], self._engine.stuck_s())

    async def close(self) -> None:
        """End the engine and its processes."""
        if self._runner is not None:
            await self._engine.shutdown()
