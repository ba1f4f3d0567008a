"""The reference actor: logprobs of samples under the frozen reference policy.

torch and transformers are imported when it starts: the driver imports this module too.
"""

import itertools
from typing import TYPE_CHECKING

import ray

from actors.fetch import fetch_samples
from actors.heartbeat import Heartbeat, beat
from configs.redact import guard_output
from configs.schema import RunConfig
from rollouts.packing import assemble
from rollouts.types import MicroBatchPlan, Ref

if TYPE_CHECKING:
    from trainer.scorer import ReferenceModel


class ReferenceActor:
    """One copy of the reference policy. Heartbeats run in a thread of their own."""

    def __init__(self, cfg: RunConfig):
        guard_output()
        self._cfg = cfg
        self._model: ReferenceModel | None = None
        self._scored = 0

    def start(self) -> Heartbeat:
        """Load the model."""
        from trainer.scorer import ReferenceModel

        cfg = self._cfg
        model = cfg.model
        if cfg.reference.path not in (None, model.path):  # whose code nobody has pinned
            other = {"path": cfg.reference.path, "trust_remote_code": None}
            model = model.model_copy(update=other)
        self._model = ReferenceModel(
            model, packing=cfg.batch.packing, logprob_chunk=cfg.trainer.logprob_chunk
        )
        return beat(self._scored)

    def score(self, plans: tuple[MicroBatchPlan, ...]) -> tuple[Ref, ...]:
        """Score micro-batches.

        Returns:
            A reference a plan, each to a tuple of F32 [L], one a sample in order. The arrays stay
            in this node's object store; the driver gets the references alone.
        """
        assert self._model is not None, "start() was not called"
        refs: list[Ref] = []
        for plan in plans:
            samples = fetch_samples(plan.samples, timeout_s=self._cfg.health.train_s)
            batch = assemble(samples, None)
            (flat,) = self._model.token_logprobs([batch])
            rows = tuple(flat[a:b] for a, b in itertools.pairwise(batch.cu_seqlens))
            refs.append(ray.put(rows))
            self._scored += len(samples)
        return tuple(refs)

    @ray.method(concurrency_group="control")
    def heartbeat(self) -> Heartbeat:
        """Answer that the actor lives."""
        return beat(self._scored)
