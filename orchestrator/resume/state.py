"""Save and restore a run: every rank's state, the mixer's position, what was not yet trained."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from actors.groups import CriticGroup, ReferenceFleet, TrainerGroup
from configs.errors import ConfigError, Problem
from configs.schema import RunConfig
from mixing.mixer import Mixer
from orchestrator.cluster import Cluster
from orchestrator.guards import Guards
from orchestrator.producer import RolloutProducer
from orchestrator.records.checkpoints import CheckpointError, CheckpointRef, CheckpointStore
from orchestrator.records.run_dir import RunDir
from rollouts.types import GroupRequest, GroupSummary

log = logging.getLogger("braid.resume")
REFERENCE = "reference"
"""A checkpoint's folder with the weights of a reference that follows the policy."""


async def load_actors(cfg: RunConfig, checkpoint: CheckpointRef, cluster: Cluster) -> None:
    """Set the state of all actors that have one from a checkpoint.

    Raises:
        ConfigError: it does not fit the run.
    """
    await cluster.trainer.load(checkpoint.trainer)
    if cluster.critic is not None:
        if checkpoint.critic is None:
            raise ConfigError(
                Problem(
                    where=str(checkpoint.path),
                    what="holds no critic, which the recipe needs",
                    fix="Start a new run with another --run-dir.",
                )
            )
        await cluster.critic.load(checkpoint.critic)
    if cluster.reference is not None and cfg.reference.refresh is not None:
        await cluster.reference.load(checkpoint.path / REFERENCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """Where a run goes on."""

    step: int
    """Steps trained; also the version of the policy."""
    checkpoint: CheckpointRef | None
    """With the actors' state; None at the start of a run."""
    pending: Sequence[GroupRequest]
    """Dispatched before the checkpoint and not trained: sampled again first."""
    rejected: Sequence[GroupSummary]
    """Graded before the checkpoint for later steps, whose metrics count them."""
    ledger_offset: int
    """Length of the ledger then: what was entered later is undone."""
    invalid: JsonValue = None
    """What counts towards `reward.max_error_rate`."""


class Checkpointer:
    """The checkpoints of one run directory."""

    def __init__(self, cfg: RunConfig, directory: RunDir):
        self._cfg, self._directory = cfg, directory
        self._store = CheckpointStore(
            directory.checkpoints, keep=cfg.checkpoint.keep, attempt=directory.attempt
        )
        self._saved: int | None = None

    def newest(self, mixer: Mixer) -> Restored:
        """Take the newest complete checkpoint, and put the mixer where it was."""
        found = self._store.newest_good()
        if found is None:
            return Restored(step=0, checkpoint=None, pending=(), rejected=(), ledger_offset=0)
        self._saved = found.step
        state = found.read_driver()
        mixer.load_state_dict(cast(dict[str, JsonValue], state["mixer"]))
        pending = RolloutProducer.parse_pending(state["pending"])
        log.info("resuming from %s: %d groups are sampled again", found.path, len(pending))
        return Restored(
            step=found.step,
            checkpoint=found,
            pending=pending,
            rejected=RolloutProducer.parse_rejected(state.get("rejected", [])),
            ledger_offset=int(str(state["ledger_offset"])),
            invalid=state.get("invalid"),
        )

    def good(self, guards: Guards) -> CheckpointRef | None:
        """Return the newest checkpoint that verifies and after which nothing alarmed; None where
        there is none."""
        steps = set(self._store.steps())
        while (step := guards.good(steps)) is not None:
            if (found := self._store.find_good(step)) is not None:
                return found
            steps.remove(step)
        return None

    async def save(
        self,
        step: int,
        ranks: Mapping[str, TrainerGroup | CriticGroup],
        mixer: Mixer,
        producer: RolloutProducer,
        *,
        reference: ReferenceFleet | None,
        guards: Guards,
        last: bool,
    ) -> None:
        """Commit a checkpoint of `step`, unless there is one.

        A checkpoint that fails (a full disk) leaves the earlier ones as they are; training goes
        on, and the failure is logged.

        Args:
            ranks: who writes, by the folder that it writes to; the policy's to `trainer`.
            reference: whose weights are part of the state, where they follow the policy.
            guards: say which earlier ones a rollback may need.
            last: nothing comes after this one, so its failure is raised.

        Raises:
            ActorFailure: a rank died or did not write in time.
            LedgerError: the ledger does not add up.
        """
        if step == self._saved or step == 0:
            return
        producer.check_ledger()

        async def write(folder: Path) -> None:
            # One moment of the driver: nothing is dispatched or entered between these lines.
            state: dict[str, JsonValue] = {
                "mixer": cast(JsonValue, mixer.state_dict()),
                "pending": producer.pending_state(),
                "rejected": producer.rejected_state(),
                "ledger_offset": producer.ledger.offset,
                "invalid": producer.invalid_state(),
            }
            self._store.write_driver(step, state)
            for name, group in ranks.items():
                await group.save(folder / name)
            if reference is not None and self._cfg.reference.refresh is not None:
                await reference.save(folder / REFERENCE)
            await asyncio.to_thread(producer.ledger.sync)
            await asyncio.to_thread(self._sync, step)
            keep = guards.keep([*self._store.steps(), step])
            await asyncio.to_thread(self._store.commit, step, tuple(ranks), keep)

        if await self._store.attempt(step, write, last=last):
            self._saved = step

    def _sync(self, step: int) -> None:
        try:
            self._directory.sync()
        except OSError as error:
            self._store.abandon(step)
            raise CheckpointError(f"checkpoint of step {step}: {error}") from error
