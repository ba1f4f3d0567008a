"""Grades rollouts: every part of a source's reward, then what they come to.

A rollout leaves with a finite reward or as INVALID with the reason; never with a 0 in place of a
failure.
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue

from configs.graders.union import GraderConfig
from configs.schema import RewardConfig, RewardGroupConfig, SourceConfig
from rewards.canary import CANARY_PASSED
from rewards.compute import ComputePool, GraderStartError
from rewards.evaluate import evaluate
from rewards.judges.client import Judge
from rewards.judges.panel import NO_JUDGES, NO_REWARD_MODELS, Panel, RewardModel
from rewards.monitors.traits import count_noted
from rewards.objective import Total, prepare_total
from rewards.registry import leaves
from rewards.score import FailureKind, GradeFailed, Score
from rewards.subject import Subject
from rollouts.credit import aggregate, check_spans
from rollouts.types import Boundary, Gold, Rollout, RolloutError, RolloutStatus, SpanScore, Task

__all__ = ["GraderPool", "GraderStartError"]


class GraderPool:
    """Grades rollouts of the sources. Use from one event loop."""

    def __init__(
        self,
        cfg: RewardGroupConfig,
        sources: Sequence[SourceConfig],
        *,
        judges: Panel[Judge] = NO_JUDGES,
        reward_models: Panel[RewardModel] = NO_REWARD_MODELS,
    ):
        self.judges, self.reward_models = judges, reward_models
        self._rewards = {source.name: source.rewards for source in sources}
        self._totals = {source.name: prepare_total(source) for source in sources}
        self._golds = {source.name: source.gold for source in sources if source.gold}
        self._compute = ComputePool(cfg, _leaves(sources))

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the live workers."""
        return self._compute.pids

    async def start(self) -> None:
        """Start all workers and wait until they have loaded their graders.

        Raises:
            GraderStartError: one could not start; all are killed.
        """
        await self._compute.start()

    async def grade(self, rollout: Rollout, task: Task) -> Rollout:
        """Return the rollout with its reward, or INVALID with the reason.

        An incoming INVALID rollout is returned as it is.

        Raises:
            GraderStartError: a killed worker could not be replaced.
        """
        if rollout.status is RolloutStatus.INVALID:
            return rollout
        subject = Subject(task=task, rollout=rollout)
        parts = self._rewards[task.source]
        found = await asyncio.gather(*(self._score(subject, part) for part in parts))
        scores: dict[str, Score] = {}
        for part, score in zip(parts, found, strict=True):
            if isinstance(score, GradeFailed):
                return _invalid(rollout, score.kind, f"{part.name}: {score.message}")
            scores[part.name] = score
        try:
            found = _graded(rollout, parts, scores, self._totals[task.source])
        except GradeFailed as failed:
            found = _invalid(rollout, failed.kind, failed.message)
        return replace(found, reward_notes=_notes(scores))

    async def gold(self, rollout: Rollout, task: Task) -> Gold:
        """Return what the source's gold grader says of a rollout; the source has one."""
        cfg = self._golds[task.source]
        subject = Subject(task=task, rollout=rollout)
        try:
            score = await evaluate(cfg.grader, subject, self, _gold_path(task.source))
        except GradeFailed as failed:
            return Gold(score=None, failure=str(failed))
        return Gold(score=cfg.weight * score.value)

    async def close(self) -> None:
        """Kill all workers and reap them. Gradings under way become INVALID."""
        await self._compute.close()

    async def compute(self, path: str, subject: Subject) -> Score:
        """Have a COMPUTE grader grade (`rewards.services`)."""
        return await self._compute.compute(path, subject)

    async def _score(self, subject: Subject, part: RewardConfig) -> Score | GradeFailed:
        path = f"{subject.task.source}/{part.name}"
        try:
            return await evaluate(part.definition, subject, self, path)
        except GradeFailed as failed:
            return failed


def _leaves(sources: Sequence[SourceConfig]) -> dict[str, GraderConfig]:
    roots = [(f"{s.name}/{p.name}", p.definition) for s in sources for p in s.rewards]
    roots += [(_gold_path(s.name), s.gold.grader) for s in sources if s.gold]
    return {path: leaf for at, root in roots for path, leaf in leaves(root, at)}


def _gold_path(source: str) -> str:
    return f"{source}/:gold"  # no part of the reward can be called so


def _graded(
    rollout: Rollout, parts: Sequence[RewardConfig], scores: dict[str, Score], total: Total
) -> Rollout:
    """Return the rollout with its reward, the parts as they were graded, and their spans.

    Raises:
        GradeFailed: a span lies nowhere in the text, or the parts come to no finite number.
    """
    values: dict[str, float] = {}
    spans: list[SpanScore] = []
    for part in parts:
        score = scores[part.name]
        if (wrong := check_spans(score.spans, rollout)) is not None:
            raise GradeFailed(FailureKind.BAD_SPAN, f"{part.name}: {wrong}")
        spans.extend(replace(span, part=part.name) for span in score.spans)
        values[part.name] = score.value
        if score.spans and part.credit is not None and part.credit.aggregate is not None:
            values[part.name] = aggregate(score.spans, part.credit)
    reward = total(values)
    if not math.isfinite(reward):
        raise GradeFailed(FailureKind.NOT_A_NUMBER, f"{values} come to {reward}")
    found = replace(rollout, reward=reward, reward_parts=values, spans=tuple(spans))
    noted = [score.notes for score in scores.values()]
    return replace(
        found,
        tampering=sum(count_noted(notes, "tampering") for notes in noted),
        canaries_passed=sum(count_noted(notes, CANARY_PASSED) for notes in noted),
    )


def _notes(scores: Mapping[str, Score]) -> dict[str, JsonValue]:
    """Return what the graders of a rollout had to say besides their scores."""
    notes: dict[str, JsonValue] = {}
    for name, score in scores.items():
        parts: dict[str, JsonValue] = {"parts": dict(score.parts)} if score.parts else {}
        if said := {**parts, **score.notes}:
            notes[name] = said
    return notes


def _invalid(rollout: Rollout, kind: str, message: str) -> Rollout:
    return replace(
        rollout,
        status=RolloutStatus.INVALID,
        reward=None,
        error=RolloutError(boundary=Boundary.REWARD, kind=str(kind), message=message),
    )
