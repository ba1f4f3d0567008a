"""The training loop. All of it: `max_staleness: 0` makes it synchronous, and there is no other.

Beside it: what one step logs, and how a signal ends a run between two committed states.
"""

import asyncio
import logging
import shutil
import signal
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from actors.groups import CriticGroup, TrainerGroup
from configs.evaluation import due_sources
from configs.schema import RunConfig
from mixing.ledger.ledger import Ledger
from mixing.mixer import Mixer
from mixing.quota.allocator import MixExhausted
from mixing.quota.tokens import tally
from orchestrator.clock import PhaseClock
from orchestrator.cluster import Cluster
from orchestrator.evaluator import evaluate
from orchestrator.producer import RolloutProducer
from orchestrator.publisher import SyncReport, WeightPublisher
from orchestrator.records.recorder import Recorder
from orchestrator.records.run_dir import BATCHES
from orchestrator.records.step_metrics import StepBooks, TrainedStep
from orchestrator.resume.replay_files import begin_step, end_step
from orchestrator.resume.state import REFERENCE, Checkpointer, Restored, load_actors
from orchestrator.rollout_record import record_rollouts
from rollouts.packing import plan_minibatches
from rollouts.scopes import scale_step
from rollouts.types import GroupSummary, StepResult, TrainBatch

log = logging.getLogger("braid.loop")
T = TypeVar("T")
CLEANUP_S = 30.0
"""Seconds that abandoned work gets to clean up."""


class Stopped(Exception):
    """A signal asked the run to end; the step it interrupted was abandoned untrained."""


@dataclass(slots=True)
class StopRequest:
    """Set by SIGINT or SIGTERM."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    signal_number: int = 0

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.signal_number).name

    async def or_else(self, waiting: Awaitable[T]) -> T:
        """Await something that may be abandoned; if a signal comes first, cancel it, let it clean
        up, and raise Stopped."""
        task = asyncio.ensure_future(_awaited(waiting))
        stop = asyncio.ensure_future(self.event.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopped
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=CLEANUP_S)


async def _awaited(waiting: Awaitable[T]) -> T:
    return await waiting


@dataclass(slots=True, kw_only=True)
class Parts:
    """What the loop works with; made by `orchestrator.run`."""

    cfg: RunConfig
    cluster: Cluster
    mixer: Mixer
    ledger: Ledger
    publisher: WeightPublisher
    recorder: Recorder
    checkpoints: Checkpointer
    clock: PhaseClock
    stop: StopRequest


async def train(parts: Parts, restored: Restored) -> None:
    """Train from the restored step to the last one.

    Raises:
        Stopped: a signal came; everything trained is in a committed checkpoint.
        MixExhausted: limits leave too little to train on; so is it then.
        RunError: an actor failed, weights disagree, or too much went wrong.
        LedgerError: a group or sample was lost or used twice, which is a bug of ours.
    """
    cfg, cluster, clock = parts.cfg, parts.cluster, parts.clock
    first = restored.step
    await parts.publisher.open()
    await parts.publisher.publish(first)
    await _evaluate(parts, first, last=first >= cfg.num_steps)  # the start, or one cut off
    producer = RolloutProducer(
        cfg,
        mixer=parts.mixer,
        ledger=parts.ledger,
        rollout=cluster.rollout,
        reward=cluster.reward,
        clock=clock,
        version=first,
        pending=restored.pending,
        rejected=restored.rejected,
        invalid=restored.invalid,
    )
    clock.lap()
    async with producer:
        done = first
        try:
            for step in range(first + 1, cfg.num_steps + 1):
                if (reason := parts.recorder.ends_early()) is not None:
                    parts.recorder.say(reason)
                    break
                groups = await parts.stop.or_else(
                    cluster.supervisor.until_failed(
                        producer.take(step),
                        doing=f"the groups of step {step}",
                        timeout_s=cfg.health.generate_s,
                    )
                )
                rolled_back, sync = await _step(parts, producer, step, groups)
                done = step
                await _log(parts, producer, step, groups, sync)
                if step < cfg.num_steps:
                    await _evaluate(parts, step)
                if (rolled_back or _due(cfg.checkpoint.every, step)) and step < cfg.num_steps:
                    await _checkpoint(parts, producer, step)
                if parts.stop.event.is_set():
                    raise Stopped
        except Stopped:
            await _checkpoint(parts, producer, done, last=True)
            raise
        except MixExhausted as end:
            await _checkpoint(parts, producer, done, last=True)
            if not end.wanted:
                raise
            parts.recorder.say(f"{end}: the run ends after step {done}")
        await _checkpoint(parts, producer, done, last=True)
    await _evaluate(parts, done, last=True)


def _due(every: int, done: int) -> bool:
    return every > 0 and done % every == 0


async def _step(
    parts: Parts, producer: RolloutProducer, step: int, groups: Sequence[GroupSummary]
) -> tuple[bool, SyncReport]:
    """Train one step, undo it where the guards say so, give the engines its weights, and tell all
    who follow the policy. Returns whether it was undone."""
    batch = await _score(parts, _plan(parts, step, groups))
    groups, batch = scale_step(parts.cfg, groups, batch)
    with parts.clock.phase("log"):
        path = parts.recorder.rollouts_path(step)
        await record_rollouts(parts.cfg, parts.cluster, path, step, groups)
    with parts.clock.phase("train"):
        result = await _train(parts, batch)
        if batch.keep_in is not None:
            end_step(batch.keep_in, groups, batch, keep=parts.cfg.replay.keep)
    parts.mixer.observe_trained(step, tally(groups))
    producer.trained(step, result.policy_version, groups, batch)
    parts.recorder.trained(
        TrainedStep(
            step=step,
            groups=groups,
            rejected=producer.take_rejected(step),
            shares=parts.mixer.target_shares(step),
            result=result,
        )
    )
    rolled_back = await _roll_back(parts, producer, step)
    await _refresh_reference(parts, step)
    sync = await parts.publisher.publish(step)
    producer.advance(step)
    return rolled_back, sync


async def _refresh_reference(parts: Parts, step: int) -> None:
    """Have the reference follow the policy, where that is due."""
    refresh, cluster = parts.cfg.reference.refresh, parts.cluster
    if refresh is None or cluster.reference is None or step % refresh.every:
        return
    with parts.clock.phase("reference"):
        folder = begin_step(parts.recorder.path / REFERENCE, step)
        await cluster.trainer.write_policy(folder)
        await cluster.reference.follow(folder)
        await asyncio.to_thread(shutil.rmtree, folder.parent)
    log.info("the reference followed the policy of step %d (%s)", step, refresh.mode)


async def _roll_back(parts: Parts, producer: RolloutProducer, step: int) -> bool:
    """Load the last good checkpoint where an alarm asks for it and there is one; return whether."""
    guards = parts.recorder.guards
    if not guards.wants_rollback():
        return False
    with parts.clock.phase("checkpoint"):
        good = await asyncio.to_thread(parts.checkpoints.good, guards)
        if good is None:
            guards.cannot_roll_back()
            return False
        cluster = parts.cluster
        await load_actors(parts.cfg, good, cluster)
    producer.ledger.rolled_back(step, good.step)
    parts.recorder.rolled_back(good.step)
    return True


def _plan(parts: Parts, step: int, groups: Sequence[GroupSummary]) -> TrainBatch:
    """Lay the step's samples out over ranks and micro-batches."""
    cfg = parts.cfg.batch
    with parts.clock.phase("pack"):
        minibatches = plan_minibatches(
            [s for g in groups for s in g.samples],
            dp=parts.cluster.trainer.dp_size,
            num_minibatches=cfg.num_minibatches,
            max_tokens=cfg.max_tokens_per_microbatch,
        )
        keep = parts.cfg.replay.save
        folder = begin_step(parts.recorder.path / BATCHES, step) if keep else None
    return TrainBatch(
        step=step,
        minibatches=minibatches,
        bounds=parts.recorder.guards.bounds(),
        keep_in=folder,
    )


async def _score(parts: Parts, batch: TrainBatch) -> TrainBatch:
    """Have the reference, then the critic, score the batch, where the objective asks for it."""
    cluster, clock = parts.cluster, parts.clock
    if cluster.reference is not None:
        with clock.phase("reference"):
            batch = await cluster.reference.score(batch)
    if cluster.critic is not None:
        with clock.phase("critic"):
            batch = await cluster.critic.score(batch)
    return batch


async def _train(parts: Parts, batch: TrainBatch) -> StepResult:
    """Train the policy and the critic, side by side; while the critic warms up, it alone."""
    trainer, critic = parts.cluster.trainer, parts.cluster.critic
    if critic is None:
        return await trainer.train_step(batch)
    if batch.step <= parts.cfg.critic.warmup_steps:
        values = await critic.train_step(batch)
        result = StepResult(policy_version=batch.step, metrics={}, seconds={})
    else:
        result, values = await asyncio.gather(trainer.train_step(batch), critic.train_step(batch))
    own = {} if values is None else values.metrics
    return replace(
        result, metrics={**result.metrics, **{f"critic/{name}": v for name, v in own.items()}}
    )


async def _checkpoint(
    parts: Parts, producer: RolloutProducer, step: int, *, last: bool = False
) -> None:
    """Commit a checkpoint of `step`, unless there is one."""
    with parts.clock.phase("checkpoint"):
        cluster = parts.cluster
        ranks: dict[str, TrainerGroup | CriticGroup] = {"trainer": cluster.trainer}
        if cluster.critic is not None:
            ranks["critic"] = cluster.critic
        await parts.checkpoints.save(
            step,
            ranks,
            parts.mixer,
            producer,
            reference=cluster.reference,
            guards=parts.recorder.guards,
            last=last,
        )


async def _evaluate(parts: Parts, step: int, *, last: bool = False) -> None:
    """Evaluate the sources that are due after `step`, but those that an attempt did before; either
    way the mixer hears of it."""
    due = due_sources(parts.cfg, step, last=last)
    sources = [name for name in due if not parts.recorder.has_evaluated(step, name)]
    if sources:
        await _evaluate_now(parts, step, sources)
    if due:
        parts.mixer.observe_eval(step, parts.recorder.eval_metrics(step))


async def _evaluate_now(parts: Parts, step: int, sources: Sequence[str]) -> None:
    parts.recorder.state(f"evaluating at step {step}")
    cluster = parts.cluster
    results = await parts.stop.or_else(
        evaluate(
            parts.cfg,
            sources=sources,
            step=step,
            mixer=parts.mixer,
            rollout=cluster.rollout,
            reward=cluster.reward,
            clock=parts.clock,
            start=cluster.reference if parts.cfg.reference_is_start else None,
        )
    )
    parts.recorder.evaluated(results)


async def _log(
    parts: Parts,
    producer: RolloutProducer,
    step: int,
    groups: Sequence[GroupSummary],
    sync: SyncReport,
) -> None:
    cfg = parts.cfg
    with parts.clock.phase("log"):
        judges = await parts.cluster.reward.judge_metrics() if cfg.judges else {}
    for event in parts.mixer.take_events():
        parts.recorder.say(str(event))
    wall, split = parts.clock.lap()
    parts.recorder.booked(
        StepBooks(
            sync=sync,
            wall_s=wall,
            split=split,
            ledger=producer.ledger.figures(),
            difficulty=parts.mixer.difficulty_metrics(),
            judges=judges,
        )
    )
