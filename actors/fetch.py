"""Fetch the samples of a micro-batch plan out of Ray's object store."""

from collections.abc import Sequence
from typing import Any

import ray

from rollouts.packing import assemble
from rollouts.scopes import scaled
from rollouts.types import MicroBatch, MicroBatchPlan, Ref, SampleHandle, TrainingSample


def fetch_samples(
    handles: Sequence[SampleHandle], *, timeout_s: float
) -> tuple[TrainingSample, ...]:
    """Fetch samples in order; each stored object travels once."""
    objects = _get_all([h.ref for h in handles], timeout_s=timeout_s)
    return tuple(objects[h.ref][h.row] for h in handles)


def fetch_micro_batches(plans: Sequence[MicroBatchPlan], *, timeout_s: float) -> list[MicroBatch]:
    """Fetch and lay out one rank's micro-batches, advantages scaled as planned."""
    refs = [h.ref for p in plans for h in p.samples]
    refs += [p.ref_logprobs for p in plans if p.ref_logprobs is not None]
    objects = _get_all(refs, timeout_s=timeout_s)
    return [
        assemble(
            [
                scaled(sample, h.advantage_scale)
                for h in p.samples
                for sample in _both(objects[h.ref][h.row])
            ],
            None if p.ref_logprobs is None else objects[p.ref_logprobs],
        )
        for p in plans
    ]


def _both(stored: TrainingSample | tuple[TrainingSample, ...]) -> tuple[TrainingSample, ...]:
    """Return the samples that a handle stands for: one, or a pair."""
    return stored if isinstance(stored, tuple) else (stored,)


def _get_all(refs: Sequence[Ref], *, timeout_s: float) -> dict[Ref, Any]:
    unique: list[Any] = list(dict.fromkeys(refs))
    return dict(zip(unique, ray.get(unique, timeout=timeout_s), strict=True))
