"""The teacher actor: logprobs of the policy's own tokens under a frozen teacher.

A reward actor asks as soon as it has graded a group, so that teachers work while others still
sample. torch and transformers are imported when it starts: the driver imports this module too.
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from actors.errors import RunError
from actors.heartbeat import Heartbeat, beat
from configs.errors import ConfigError
from configs.redact import guard_output
from configs.schema import RunConfig
from configs.teachers import TeacherConfig
from configs.validate_teachers import same_tokenizer
from rollouts.packing import assemble, within_budget
from rollouts.types import F32, TrainingSample

if TYPE_CHECKING:
    from trainer.scorer import ReferenceModel


class TeacherActor:
    """One copy of a teacher. Heartbeats run in a thread of their own."""

    def __init__(self, cfg: RunConfig, name: str):
        guard_output()
        self._run, self._name, self._cfg = cfg, name, cfg.teachers[name]
        self._model: ReferenceModel | None = None
        self._scored = 0

    def start(self) -> Heartbeat:
        """Load the model.

        Raises:
            ConfigError: it cannot be loaded, or its ids mean something else than the policy's.
        """
        from trainer.determinism import make_deterministic
        from trainer.scorer import ReferenceModel

        if self._run.deterministic:
            make_deterministic()
        try:
            self._model = ReferenceModel(
                self._cfg.model,
                packing=self._run.batch.packing,
                logprob_chunk=self._run.trainer.logprob_chunk,
            )
        except ConfigError as error:
            at = f"teachers.{self._name}"
            raise ConfigError(
                [replace(p, where=f"{at}.{p.where}") for p in error.problems]
            ) from error
        # A model of the hub was not there to be compared before it was loaded.
        if (problem := same_tokenizer(self._run, self._name)) is not None:
            raise ConfigError(problem)
        return beat(0)

    def score(self, samples: tuple[TrainingSample, ...]) -> tuple[F32, ...]:
        """Return the logprobs [L] of each sample's loss tokens at its temperature, 0 elsewhere."""
        assert self._model is not None, "start() was not called"
        scores: list[F32] = []
        for some in within_budget(samples, self._cfg.max_tokens_per_batch):
            batch = assemble(some, None)
            (flat,) = self._model.token_logprobs([batch])
            scores.extend(flat[a:b] for a, b in itertools.pairwise(batch.cu_seqlens))
            self._scored += len(some)
        return tuple(scores)

    @ray.method(concurrency_group="control")
    def heartbeat(self) -> Heartbeat:
        """Answer that the actor lives."""
        return beat(self._scored)


class TeacherLink:
    """The way of one reward actor to the actors of a teacher."""

    def __init__(self, name: str, cfg: TeacherConfig, handles: Sequence[ActorHandle]):
        self._name, self._cfg = name, cfg
        self._handles = list(handles)
        self._asked = [0] * len(handles)

    async def score(self, samples: tuple[TrainingSample, ...]) -> tuple[F32, ...]:
        """Have the least busy actor score samples.

        Raises:
            RunError: no answer in time; what the actor raised is passed on.
        """
        at = min(range(len(self._asked)), key=self._asked.__getitem__)
        tokens = sum(len(s.token_ids) for s in samples)
        self._asked[at] += tokens
        try:
            async with asyncio.timeout(self._cfg.timeout_s):
                asking: Any = self._handles[at].score.remote(samples)
                return await asking
        except TimeoutError:
            raise RunError(
                f"teacher {self._name}: no logprobs of {tokens} tokens within "
                f"{self._cfg.timeout_s:g} s; raise teachers.{self._name}.timeout_s or actors.count"
            ) from None
        finally:
            self._asked[at] -= tokens
