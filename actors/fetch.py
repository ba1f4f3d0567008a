"""Fetch the samples of a micro-batch plan: out of Ray's object store, or from files of a replay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from rollouts.gae import joined
from rollouts.packing import assemble
from rollouts.sample_files import SampleFile, StoredSample, read_samples
from rollouts.scopes import scaled
from rollouts.types import F32, MicroBatch, MicroBatchPlan, Ref, SampleHandle, TrainingSample
from rollouts.values import ValueBatch, ValueTargets


def fetch_samples(
    handles: Sequence[SampleHandle], *, timeout_s: float
) -> tuple[TrainingSample, ...]:
    """Fetch samples in order; each stored object travels once."""
    objects = _get_all([h.ref for h in handles], timeout_s=timeout_s)
    return tuple(objects[h.ref][h.row] for h in handles)


def fetch_stored(
    plans: Sequence[MicroBatchPlan], *, timeout_s: float
) -> list[tuple[StoredSample, ...]]:
    """Fetch what one rank's micro-batches are made of, advantages normalised as planned."""
    refs = [h.ref for p in plans for h in p.samples]
    refs += [r for p in plans for r in (p.ref_logprobs, p.advantages) if r is not None]
    objects = _get_all(refs, timeout_s=timeout_s)

    def stored(plan: MicroBatchPlan, place: int) -> tuple[StoredSample, ...]:
        handle = plan.samples[place]
        found = objects[handle.ref][handle.row]
        if isinstance(found, StoredSample):
            return (found,)
        if isinstance(found, tuple):  # a pair, which stays side by side
            return tuple(StoredSample(sample=sample, ref_logprobs=None) for sample in found)
        if plan.advantages is not None and (own := objects[plan.advantages][place]) is not None:
            found = replace(found, advantages=own, gae=None)
        scores = None if plan.ref_logprobs is None else objects[plan.ref_logprobs][place]
        sample = scaled(found, handle.advantage_scale, handle.advantage_shift)
        return (StoredSample(sample=sample, ref_logprobs=scores),)

    return [tuple(s for i in range(len(p.samples)) for s in stored(p, i)) for p in plans]


def lay_out(stored: Sequence[StoredSample], *, with_reference: bool = False) -> MicroBatch:
    """Lay out one micro-batch; the reference's scores are of all its samples, or of none.

    Args:
        with_reference: whether a reference scores the run's samples. An empty micro-batch then has
            its stream too, as on all ranks the losses must give the same metrics.
    """
    scores = [s.ref_logprobs for s in stored if s.ref_logprobs is not None]
    return assemble([s.sample for s in stored], scores if scores or with_reference else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticSamples:
    """The samples of a micro-batch that need values, and what lies beside each."""

    places: tuple[int, ...]
    """In the plan."""
    samples: tuple[TrainingSample, ...]
    ref_logprobs: tuple[F32 | None, ...]


def fetch_for_critic(plans: Sequence[MicroBatchPlan], *, timeout_s: float) -> list[CriticSamples]:
    """Fetch of each micro-batch what is to be scored."""
    refs = [h.ref for p in plans for h in p.samples if h.needs_values]
    refs += [p.ref_logprobs for p in plans if p.ref_logprobs is not None]
    objects = _get_all(refs, timeout_s=timeout_s)

    def one(plan: MicroBatchPlan) -> CriticSamples:
        places = [i for i, handle in enumerate(plan.samples) if handle.needs_values]
        own = [plan.samples[i] for i in places]
        scores = None if plan.ref_logprobs is None else objects[plan.ref_logprobs]
        return CriticSamples(
            places=tuple(places),
            samples=tuple(objects[h.ref][h.row] for h in own),
            ref_logprobs=tuple(None if scores is None else scores[i] for i in places),
        )

    return [one(plan) for plan in plans]


def fetch_value_batches(plans: Sequence[MicroBatchPlan], *, timeout_s: float) -> list[ValueBatch]:
    """Fetch and lay out what one rank of the critic trains on."""
    fetched = fetch_for_critic(plans, timeout_s=timeout_s)
    refs = [p.targets for p in plans if p.targets is not None]
    objects = _get_all(refs, timeout_s=timeout_s)
    batches: list[ValueBatch] = []
    for plan, own in zip(plans, fetched, strict=True):
        targets: list[ValueTargets] = [objects[plan.targets][i] for i in own.places]
        batches.append(
            ValueBatch(
                tokens=assemble(own.samples, None),
                values=joined([t.values for t in targets]),
                returns=joined([t.returns for t in targets]),
            )
        )
    return batches


def _get_all(refs: Sequence[Ref], *, timeout_s: float) -> dict[Ref, Any]:
    unique: list[Any] = list(dict.fromkeys(refs))
    files = [r for r in unique if isinstance(r, SampleFile)]
    found: dict[Ref, Any] = {r: read_samples(Path(r.path)) for r in files}
    remote = [r for r in unique if not isinstance(r, SampleFile)]
    found.update(zip(remote, ray.get(remote, timeout=timeout_s), strict=True))
    return found
