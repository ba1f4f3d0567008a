"""The reward actor: grades a group, turns it into training samples, keeps the text for the record.

Grading runs in killable processes (`rewards.pool`); this actor only shepherds. It puts samples
and graded groups into the object store itself, so that tokens never pass through the driver.
"""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from actors.heartbeat import Heartbeat, beat
from actors.judge import EngineTransport
from actors.reward_model import RewardModelLink
from actors.teacher import TeacherLink
from configs.judges import JudgeConfig
from configs.redact import guard_output, redact_known
from configs.schema import RunConfig
from rewards.judges.panel import Panel, close_judges, open_judges
from rewards.judges.request import Transport
from rewards.monitors.traits import answer_hash, in_slice, text_traits
from rewards.pool import GraderPool
from rollouts.advantages import resolve_advantage
from rollouts.distill import teach, teacher_gap
from rollouts.record import Spelled, record
from rollouts.samples import (
    GroupCredits,
    chunk_for_store,
    credit_group,
    plain_stats,
    rollout_stats,
    to_training_samples,
    without_baseline,
)
from rollouts.scopes import estimator_plug, sample_handle, scaled
from rollouts.types import (
    GeneratedGroup,
    GroupRequest,
    GroupSummary,
    Ref,
    Rollout,
    RolloutGroup,
    RolloutStats,
    SampleHandle,
    TrainingSample,
)

STORE_CHUNK_BYTES = 256 * 1024
"""Samples are put together up to this size: small groups cost one object, long samples one each,
so that a trainer rank fetches little that is not its own."""


class RewardActor:
    """One grader front end; many groups are graded at once."""

    def __init__(
        self,
        cfg: RunConfig,
        judges: Mapping[str, Sequence[ActorHandle]],
        reward_models: Mapping[str, Sequence[ActorHandle]],
        teachers: Mapping[str, Sequence[ActorHandle]],
    ):
        """Start nothing yet.

        Args:
            judges: engines of each judge that has some.
            reward_models: actors of each reward model.
            teachers: actors of each teacher; none where nothing is trained.
        """
        guard_output()
        self._cfg = cfg
        self._teachers = {
            name: TeacherLink(name, cfg.teachers[name], handles)
            for name, handles in teachers.items()
        }
        self._engines = judges
        links = {
            name: RewardModelLink(name, cfg.reward_models[name], handles)
            for name, handles in reward_models.items()
        }
        self._pool = GraderPool(
            cfg.reward, cfg.sources, reward_models=Panel("reward_models", links)
        )
        self._estimators = {s.name: resolve_advantage(estimator_plug(s)) for s in cfg.sources}
        self._graded = 0

    async def start(self) -> Heartbeat:
        """Start the grader processes.

        Raises:
            ConfigError: the key of a judge is not set on this node.
        """
        self._pool.judges = open_judges(
            self._cfg.judges, self._transport, share=self._cfg.reward.actors.count
        )
        await self._pool.start()
        return await self.heartbeat()

    def _transport(self, name: str, cfg: JudgeConfig) -> Transport:
        assert cfg.engines is not None
        return EngineTransport(cfg.engines, self._engines[name])

    async def grade(self, generated: GeneratedGroup) -> GroupSummary:
        """Grade all rollouts of a group at once.

        Returns:
            The summary, with samples of the valid rollouts unless the group is for evaluation.
        """
        group: RolloutGroup = await generated.ref  # type: ignore[misc]
        began = time.monotonic()
        task = group.request.task
        played = (*group.rollouts, *filter(None, [group.greedy]))
        graded = await asyncio.gather(*(self._grade(r, group.request) for r in played))
        if group.greedy is not None:
            group = replace(group, greedy=graded.pop())
        group = without_baseline(replace(group, rollouts=tuple(graded)))
        credits = self._credit(group) if group.request.step >= 0 else None
        samples: tuple[TrainingSample, ...] = ()
        gaps: dict[int, float] = {}
        if credits is not None:
            samples, gaps = await self._samples(group, credits)
        taught = any(s.taught is not None and s.taught.any() for s in samples)
        self._graded += len(graded)
        versions = [v for r in graded for v in r.versions] or [-1]
        return GroupSummary(
            group_id=group.request.group_id,
            task_id=task.task_id,
            source=task.source,
            step=group.request.step,
            rollouts=rollout_stats(group.rollouts, credits, lambda r: _stats(r, gaps.get(r.index))),
            samples=_stored(samples),
            group_ref=ray.put(group),
            oldest_version=min(versions),
            newest_version=max(versions),
            generate_s=group.generate_s,
            grade_s=time.monotonic() - began,
            has_signal=None if credits is None else taught or credits.has_signal,
            reference=None if task.answer is None else answer_hash(task.answer),
            greedy=None if group.greedy is None else _stats(group.greedy),
        )

    async def _grade(self, rollout: Rollout, request: GroupRequest) -> Rollout:
        """Grade a rollout; one of training's in the source's slice by the gold grader too."""
        graded = await self._pool.grade(rollout, request.task)
        gold = self._cfg.source(request.task.source).gold
        if gold is None or graded.reward is None or request.step < 0:
            return graded
        if not in_slice(f"{request.group_id}/{rollout.index}", gold.fraction):
            return graded
        return replace(graded, gold=await self._pool.gold(graded, request.task))

    def _credit(self, group: RolloutGroup) -> GroupCredits:
        source = self._cfg.source(group.request.task.source)
        return credit_group(group, source, self._estimators[source.name])

    async def _samples(
        self, group: RolloutGroup, credits: GroupCredits
    ) -> tuple[tuple[TrainingSample, ...], dict[int, float]]:
        """Return the group's samples, taught where the source has a teacher, and by rollout how far
        the sampler is from the teacher."""
        source = self._cfg.source(group.request.task.source)
        kl = self._cfg.algorithm.kl
        samples = to_training_samples(
            group,
            source,
            self._cfg.kl_coef(source),
            credits,
            kl_in_reward=kl.placement == "reward",
        )
        if source.distill is None or not samples:
            return samples, {}
        scores = await self._teachers[source.distill.teacher].score(samples)
        pairs = list(zip(samples, scores, strict=True))
        taught = tuple(teach(sample, score, source.distill) for sample, score in pairs)
        return taught, {sample.index: teacher_gap(sample, score) for sample, score in pairs}

    async def answers(
        self, group: RolloutGroup, indices: Sequence[int], limit: int
    ) -> tuple[tuple[int, str], ...]:
        """Return the first texts of a graded group that differ, each with its rollout's index.

        Args:
            group: handed over by reference; Ray puts what it refers to in its place.
            indices: rollouts to look at, best first.
        """
        texts = {r.index: r.last_text for r in group.rollouts}
        distinct: dict[str, int] = {}
        for index in indices:
            distinct.setdefault(texts[index], index)
        return tuple((index, text) for text, index in list(distinct.items())[:limit])

    async def record(
        self,
        path: Path,
        step: int,
        summaries: Sequence[GroupSummary],
        spelled: Sequence[Sequence[Spelled]],
        scores: Sequence[Ref],
    ) -> None:
        """Append the full text of groups to a JSONL file, one rollout a line.

        Args:
            spelled: the groups' tokens as texts, in order.
            scores: each to (group id, rollout's index, the trainer's logprobs) of some samples.
        """
        groups = await _fetch(g.group_ref for g in summaries)
        policy = [score for each in (await _fetch(scores)).values() for score in each]
        chunks = await _fetch(h.ref for g in summaries for h in g.samples)
        lines: list[str] = []
        for summary, own in zip(summaries, spelled, strict=True):
            samples = [
                scaled(chunks[h.ref][h.row], h.advantage_scale, h.advantage_shift)
                for h in summary.samples
                if not h.needs_values  # whose advantages the critic makes later
            ]
            logprobs = {i: values for g, i, values in policy if g == summary.group_id}
            rows = record(
                groups[summary.group_ref], step, own, {s.index: s for s in samples}, logprobs
            )
            lines.extend(json.dumps(row, ensure_ascii=False) for row in rows)
        await asyncio.to_thread(_append, path, lines)

    async def take_judge_counts(self) -> dict[str, dict[str, float]]:
        """Return what each judge did for this actor since the last call."""
        return {name: judge.meter.take() for name, judge in self._pool.judges.members.items()}

    async def heartbeat(self) -> Heartbeat:
        """Answer that the actor lives."""
        return beat(self._graded)

    async def close(self) -> None:
        """Kill the grader processes, and free connections."""
        await close_judges(self._pool.judges)
        await self._pool.close()


def _stored(samples: Sequence[TrainingSample]) -> tuple[SampleHandle, ...]:
    handles: list[SampleHandle] = []
    for chunk in chunk_for_store(samples, STORE_CHUNK_BYTES):
        ref = ray.put(chunk)
        handles.extend(sample_handle(sample, ref=ref, row=row) for row, sample in enumerate(chunk))
    return tuple(handles)


def _stats(rollout: Rollout, teacher_gap: float | None = None) -> RolloutStats:
    return replace(
        plain_stats(rollout),
        traits=text_traits(rollout),
        gold=rollout.gold,
        tampering=rollout.tampering,
        canaries_passed=rollout.canaries_passed,
        teacher_gap=teacher_gap,
    )


async def _fetch(refs: Iterable[Ref]) -> dict[Ref, Any]:
    """Return what references point to; each object travels once."""
    unique = list(dict.fromkeys(refs))
    return dict(zip(unique, await asyncio.gather(*unique), strict=True))  # type: ignore[call-overload]


def _append(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # a lone surrogate, which a judge's JSON can hold, becomes its escape: JSON as well
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines(redact_known(line) + "\n" for line in lines)
