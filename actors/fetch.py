"""Fetch the samples of a micro-batch plan: out of Ray's object store, or from files of a replay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from rollouts.packing import assemble
from rollouts.sample_files import SampleFile, StoredSample, read_samples
from rollouts.scopes import scaled
from rollouts.types import MicroBatch, MicroBatchPlan, Ref, SampleHandle, TrainingSample


def fetch_samples(
    handles: Sequence[SampleHandle], *, timeout_s: float
) -> tuple[TrainingSample, ...]:
    """Fetch samples in order; each stored object travels once."""
    objects = _get_all([h.ref for h in handles], timeout_s=timeout_s)
    return tuple(objects[h.ref][h.row] for h in handles)


def fetch_stored(
    plans: Sequence[MicroBatchPlan], *, timeout_s: float
) -> list[tuple[StoredSample, ...]]:
    """Fetch what one rank's micro-batches are made of, advantages scaled as planned."""
    refs = [h.ref for p in plans for h in p.samples]
    refs += [p.ref_logprobs for p in plans if p.ref_logprobs is not None]
    objects = _get_all(refs, timeout_s=timeout_s)

    def stored(plan: MicroBatchPlan, place: int) -> StoredSample:
        handle = plan.samples[place]
        found = objects[handle.ref][handle.row]
        if isinstance(found, StoredSample):
            return found
        scores = None if plan.ref_logprobs is None else objects[plan.ref_logprobs][place]
        sample = scaled(found, handle.advantage_scale)
        return StoredSample(sample=sample, ref_logprobs=scores)

    return [tuple(stored(p, i) for i in range(len(p.samples))) for p in plans]


def lay_out(stored: Sequence[StoredSample]) -> MicroBatch:
    """Lay out one micro-batch; the reference's scores are of all its samples, or of none."""
    scores = [s.ref_logprobs for s in stored if s.ref_logprobs is not None]
    return assemble([s.sample for s in stored], scores if stored and scores else None)


def _get_all(refs: Sequence[Ref], *, timeout_s: float) -> dict[Ref, Any]:
    unique: list[Any] = list(dict.fromkeys(refs))
    files = [r for r in unique if isinstance(r, SampleFile)]
    found: dict[Ref, Any] = {r: read_samples(Path(r.path)) for r in files}
    remote = [r for r in unique if not isinstance(r, SampleFile)]
    found.update(zip(remote, ray.get(remote, timeout=timeout_s), strict=True))
    return found
