"""The reference actor: logprobs of samples under the reference policy.

torch and transformers are imported when it starts: the driver imports this module too.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from actors.fetch import fetch_samples
from actors.heartbeat import Heartbeat, beat
from actors.ranks import file_sizes
from configs.redact import guard_output
from configs.schema import RunConfig
from rollouts.distance import Distance, distance
from rollouts.packing import assemble, within_budget
from rollouts.samples import bare_samples
from rollouts.types import MicroBatchPlan, Ref, RolloutGroup

if TYPE_CHECKING:
    from trainer.reference_weights import Follower
    from trainer.scorer import ReferenceModel


class ReferenceActor:
    """One copy of the reference policy. Heartbeats run in a thread of their own."""

    def __init__(self, cfg: RunConfig):
        guard_output()
        self._cfg = cfg
        self._model: ReferenceModel | None = None
        self._follower: Follower | None = None
        self._scored = 0

    def start(self) -> Heartbeat:
        """Load the model."""
        from trainer.determinism import make_deterministic
        from trainer.reference_weights import Follower
        from trainer.scorer import ReferenceModel

        cfg = self._cfg
        if cfg.deterministic:
            make_deterministic()
        model = cfg.model
        if cfg.reference.path not in (None, model.path):  # whose code nobody has pinned
            other = {"path": cfg.reference.path, "trust_remote_code": None}
            model = model.model_copy(update=other)
        self._model = ReferenceModel(
            model, packing=cfg.batch.packing, logprob_chunk=cfg.trainer.logprob_chunk
        )
        if (refresh := cfg.reference.refresh) is not None:
            self._follower = Follower(self._model.network, average=refresh.mode == "ema")
        return beat(self._scored)

    @property
    def follower(self) -> "Follower":
        """The weights, where they follow the policy."""
        assert self._follower is not None, "reference.refresh is not set"
        return self._follower

    def follow(self, folder: Path) -> str:
        """Take over the policy that the trainer wrote; return a digest of the weights then."""
        refresh = self._cfg.reference.refresh
        assert refresh is not None
        return self.follower.follow(folder, decay=refresh.decay)

    def save(self, folder: Path) -> Mapping[str, int]:
        """Write the weights into a checkpoint's folder; return what it sees of it then."""
        self.follower.save(folder)
        return file_sizes(folder)

    def load(self, folder: Path) -> str:
        """Set the weights of a checkpoint; return a digest of them."""
        return self.follower.load(folder)

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

    def distance(self, refs: tuple[Ref, ...]) -> Distance:
        """Return how far the policy that wrote some groups is from the reference.

        Args:
            refs: to graded RolloutGroups.
        """
        assert self._model is not None, "start() was not called"
        budget, found = self._cfg.batch.max_tokens_per_microbatch, Distance()
        groups: list[RolloutGroup] = ray.get(list(refs), timeout=self._cfg.health.train_s)  # type: ignore[call-overload]
        samples = [
            s for g in groups for s in bare_samples(g, self._cfg.source(g.request.task.source))
        ]
        for piece in within_budget(samples, budget):
            batch = assemble(piece, None)
            (scores,) = self._model.token_logprobs([batch])
            found += distance(batch, scores)
            self._scored += len(piece)
        return found

    @ray.method(concurrency_group="control")
    def heartbeat(self) -> Heartbeat:
        """Answer that the actor lives."""
        return beat(self._scored)
