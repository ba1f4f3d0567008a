"""The reward-model actor: scores conversations by a sequence classifier, many in one pass.

Conversations that come while a pass runs wait for the next one, which takes as many as fit into
`max_tokens_per_batch`. torch and transformers are imported when it starts: the driver imports this
module too.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from actors.errors import last_line
from actors.heartbeat import Heartbeat, beat
from configs.judges import RewardModelConfig
from configs.redact import guard_output
from configs.schema import RunConfig
from rewards.score import FailureKind, GradeFailed
from rollouts.types import Message

if TYPE_CHECKING:
    from trainer.reward_scorer import RewardScorer

Waiting = tuple[list[int], asyncio.Future[float]]


class Copy:
    """One copy of a reward model, asked from one event loop."""

    def __init__(self, name: str, cfg: RewardModelConfig):
        self.name, self.cfg = name, cfg
        self._scorer: RewardScorer | None = None
        self._waiting: deque[Waiting] = deque()
        self._running: asyncio.Task[None] | None = None
        self.scored = 0

    def load(self) -> None:
        """Load the model.

        Raises:
            ConfigError: it is no sequence classifier with a chat template.
        """
        from trainer.reward_scorer import RewardScorer

        where = f"reward_models.{self.name}.model.path"
        self._scorer = RewardScorer(self.cfg.model, label=self.cfg.label, where=where)

    async def score(self, conversation: Sequence[Message]) -> float | str:
        """Return the model's number, or why there is none."""
        assert self._scorer is not None, "load() was not called"
        try:
            row = self._scorer.encode(conversation)
        except ValueError as error:
            return str(error)
        done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((row, done))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await done

    async def _run(self) -> None:
        """Score all that wait, batch by batch."""
        assert self._scorer is not None
        while self._waiting:
            batch = take_batch(self._waiting, self.cfg.max_tokens_per_batch)
            try:
                scores = await asyncio.to_thread(self._scorer.score, [row for row, _ in batch])
            except Exception as error:  # noqa: BLE001 - out of memory or not: those who wait must hear
                for _, done in batch:
                    if not done.done():
                        done.set_exception(RuntimeError(f"reward_models.{self.name}: {error}"))
                continue
            self.scored += len(batch)
            for (_, done), score in zip(batch, scores, strict=True):
                if not done.done():
                    done.set_result(score)


class RewardModelActor:
    """The Ray actor of one copy. Heartbeats run in a thread of their own."""

    def __init__(self, cfg: RunConfig, name: str):
        guard_output()
        self.copy = Copy(name, cfg.reward_models[name])

    async def start(self) -> Heartbeat:
        """Load the model; ConfigError as `Copy.load`."""
        self.copy.load()
        return beat(0)

    async def score(self, conversation: Sequence[Message]) -> float | str:
        """Return the model's number, or why there is none."""
        return await self.copy.score(conversation)

    @ray.method(concurrency_group="control")
    async def heartbeat(self) -> Heartbeat:
        """Answer that the actor lives."""
        return beat(self.copy.scored)


class LocalRewardModel:
    """A reward model in this very process, without Ray: for the command line. It is loaded at the
    first question."""

    def __init__(self, name: str, cfg: RewardModelConfig):
        self._copy = Copy(name, cfg)
        self._loading: asyncio.Task[None] | None = None

    async def score(self, conversation: Sequence[Message]) -> float:
        """Return the model's number (`rewards.judges.panel`)."""
        if self._loading is None:
            self._loading = asyncio.create_task(asyncio.to_thread(self._copy.load))
        await asyncio.shield(self._loading)
        return await _answered(self._copy.name, self._copy.cfg, self._copy.score(conversation))


def take_batch(waiting: deque[Waiting], max_tokens: int) -> list[Waiting]:
    """Take from the front as many as fit into a padded batch, and at least one."""
    batch = [waiting.popleft()]
    width = len(batch[0][0])
    while waiting:
        width = max(width, len(waiting[0][0]))
        if width * (len(batch) + 1) > max_tokens:
            break
        batch.append(waiting.popleft())
    return batch


class RewardModelLink:
    """The way of one reward actor to a group of reward models."""

    def __init__(self, name: str, cfg: RewardModelConfig, handles: Sequence[ActorHandle]):
        self._name, self._cfg = name, cfg
        self._handles = list(handles)
        self._asked = [0] * len(handles)

    async def score(self, conversation: Sequence[Message]) -> float:
        """Return the model's number (`rewards.judges.panel`)."""
        at = min(range(len(self._asked)), key=self._asked.__getitem__)
        self._asked[at] += 1
        try:
            asking: Any = self._handles[at].score.remote(tuple(conversation))
            return await _answered(self._name, self._cfg, asking)
        finally:
            self._asked[at] -= 1


async def _answered(name: str, cfg: RewardModelConfig, asking: Awaitable[float | str]) -> float:
    """Return a model's number.

    Raises:
        GradeFailed: it gave none in time, or said why there is none.
    """
    try:
        async with asyncio.timeout(cfg.timeout_s):
            answer = await asking
    except TimeoutError:
        why = f"reward model {name}: no score within {cfg.timeout_s:g} s"
        raise GradeFailed(FailureKind.JUDGE_SERVER, why) from None
    except (RayError, RuntimeError) as error:
        why = f"reward model {name} did not answer: {last_line(error)}"
        raise GradeFailed(FailureKind.JUDGE_SERVER, why) from error
    if isinstance(answer, str):
        raise GradeFailed(FailureKind.JUDGE_SERVER, f"reward model {name}: {answer}")
    return answer
