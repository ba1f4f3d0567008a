"""The loop of supervised fine-tuning: encode the next rows while the trainer learns from these."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import JsonValue

from actors.groups import LessonGroup, TrainerGroup
from actors.lessons import EncodedRows
from configs.errors import ConfigError, Problem
from mixing.tables.conversations import rows_of_step
from orchestrator.loop import Stopped, StopRequest
from orchestrator.records.checkpoints import CheckpointStore
from orchestrator.records.display import duration
from orchestrator.records.metrics import MetricSinks
from orchestrator.records.run_dir import RunDir
from orchestrator.sft.plan import Prepared
from rollouts.packing import plan_minibatches
from rollouts.types import SampleHandle, StepResult, TrainBatch

_AT_ONCE = 256
"""Held-out rows that are encoded and scored together."""


class School:
    """Trains on the rows of a prepared recipe, from the newest checkpoint on."""

    def __init__(
        self,
        made: Prepared,
        *,
        lessons: LessonGroup,
        trainer: TrainerGroup,
        directory: RunDir,
        sinks: MetricSinks,
        say: Callable[[str], None],
    ):
        self._made, self._cfg, self._last = made, made.cfg, made.run.num_steps
        self._lessons, self._trainer = lessons, trainer
        self._directory, self._sinks, self._say = directory, sinks, say
        self._store = CheckpointStore(
            directory.checkpoints, keep=self._cfg.checkpoint.keep, attempt=directory.attempt
        )
        self._saved = 0
        self._evaluated: set[int] = set()

    async def train(self, stop: StopRequest) -> None:
        """Train to the last step.

        Raises:
            Stopped: a signal came; everything trained is in a committed checkpoint.
            ConfigError: a row cannot be learnt from.
            RunError: an actor failed.
        """
        done = await self._restore()
        if self._evaluates(done):  # the start, or one that was cut off
            await self._evaluate(done)
        coming = asyncio.create_task(self._encode(done + 1))
        try:
            while done < self._last:
                began = time.monotonic()
                encoded = await stop.or_else(coming)
                step = done + 1
                if step < self._last:
                    coming = asyncio.create_task(self._encode(step + 1))
                waited = time.monotonic() - began
                result = await self._trainer.train_step(self._plan(step, encoded.samples))
                done = step
                self._log(step, encoded, result, time.monotonic() - began, waited)
                await self._after(step)
                if stop.event.is_set():
                    raise Stopped
        except Stopped:
            await self._save(done, last=True)
            raise
        finally:
            coming.cancel()
        await self._save(done, last=True)

    async def _after(self, step: int) -> None:
        """Evaluate and save, where that is due."""
        if self._evaluates(step):
            await self._evaluate(step)
        every = self._cfg.checkpoint.every
        if every and step % every == 0:
            await self._save(step)

    def _evaluates(self, step: int) -> bool:
        every = self._cfg.eval.every
        return step in (0, self._last) or (every > 0 and step % every == 0)

    async def _restore(self) -> int:
        """Load the newest complete checkpoint; return its step, 0 without one."""
        found = self._store.newest_good()
        step = 0 if found is None else found.step
        self._directory.truncate_after(step)
        self._evaluated = {int(str(row["step"])) for row in self._directory.read_eval()}
        if found is not None:
            await self._trainer.load(found.trainer)
            self._say(f"resuming after step {step}")
        self._saved = step
        return step

    async def _encode(self, step: int) -> EncodedRows:
        """Have the rows of a step encoded."""
        rows = self._made.training
        indices = rows_of_step(
            step,
            size=len(rows),
            rows_per_step=self._cfg.batch.rows_per_step,
            seed=self._cfg.seed,
            end=None if self._cfg.num_steps else len(rows) * self._cfg.epochs,
        )
        conversations = await asyncio.to_thread(lambda: [rows[i] for i in indices])
        encoded = await self._lessons.encode(conversations)
        if not encoded.samples:
            raise _all_too_long(f"step {step}")
        return encoded

    def _plan(self, step: int, samples: Sequence[SampleHandle]) -> TrainBatch:
        return TrainBatch(
            step=step,
            minibatches=plan_minibatches(
                samples,
                dp=self._trainer.dp_size,
                num_minibatches=1,
                max_tokens=self._cfg.batch.max_tokens_per_microbatch,
            ),
        )

    def _log(
        self, step: int, encoded: EncodedRows, result: StepResult, wall_s: float, waited_s: float
    ) -> None:
        drawn = min(step * self._cfg.batch.rows_per_step, self._drawn_at_most())
        tokens = sum(s.num_tokens for s in encoded.samples)
        metrics = {
            "step": float(step),
            "epoch": drawn / len(self._made.training),
            "samples": float(len(encoded.samples)),
            "rows/too_long": float(len(encoded.too_long)),
            "tokens": float(tokens),
            "tokens_per_s": tokens / wall_s,
            "time/step": wall_s,
            "time/wait": waited_s,
            **{f"train/{name}": value for name, value in result.metrics.items()},
        }
        self._sinks.log(metrics)
        left = duration((self._last - step) * wall_s)
        self._say(
            f"step {step}/{self._last}  loss {result.metrics['loss']:.4f}  "
            f"{tokens / wall_s:,.0f} tok/s  {wall_s:.1f}s  eta {left}"
        )

    def _drawn_at_most(self) -> float:
        return math.inf if self._cfg.num_steps else len(self._made.training) * self._cfg.epochs

    async def _evaluate(self, step: int) -> None:
        """Score the held-out rows, unless an attempt did so after this step."""
        rows = self._made.held_out
        if not len(rows) or step in self._evaluated:
            return
        sums: dict[str, float] = {}
        for first in range(0, len(rows), _AT_ONCE):
            some = [rows[i] for i in range(first, min(first + _AT_ONCE, len(rows)))]
            samples = (await self._lessons.encode(some)).samples
            if not samples:
                continue
            found = await self._trainer.held_out(self._plan(step, samples))
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
        count = sums.pop("count", 0.0)
        if not count:
            raise _all_too_long("the held-out rows")
        figures: dict[str, JsonValue] = {name: value / count for name, value in sums.items()}
        self._evaluated.add(step)
        where: dict[str, JsonValue] = {"step": step, "source": "held_out", "rows": len(rows)}
        self._sinks.log_eval({**where, **figures, "count": count})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self._say(f"held out after step {step}: {shown} (over {count:.0f})")

    async def _save(self, step: int, *, last: bool = False) -> None:
        """Commit a checkpoint of `step`, unless there is one. One that fails leaves the earlier
        ones as they are, and ends the run only if it is the last."""
        if step in (0, self._saved):
            return

        async def write(folder: Path) -> None:
            self._store.write_driver(step, {})
            await self._trainer.save(folder / "trainer")
            await asyncio.to_thread(self._store.commit, step)

        if await self._store.attempt(step, write, last=last):
            self._saved = step


def _all_too_long(what: str) -> ConfigError:
    return ConfigError(
        Problem(
            where="data.too_long",
            what=f"is drop, and every row of {what} is longer than model.max_model_len",
            fix="Raise model.max_model_len, or shorten the rows.",
        )
    )
