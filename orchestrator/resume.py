"""Save and restore a run: every rank's state, the mixer's position, what was not yet trained."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from actors.errors import ActorFailure
from actors.groups import TrainerGroup
from configs.schema import RunConfig
from mixing.mixer import Mixer
from orchestrator.checkpoints import CheckpointError, CheckpointStore
from orchestrator.producer import RolloutProducer
from orchestrator.run_dir import RunDir
from rollouts.types import GroupRequest, GroupSummary

log = logging.getLogger("braid.resume")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """Where a run goes on."""

    step: int
    """Steps trained; also the version of the policy."""
    trainer: Path | None
    """Folder with the ranks' state; None at the start of a run."""
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
        self._store = CheckpointStore(
            directory.checkpoints, keep=cfg.checkpoint.keep, attempt=directory.attempt
        )
        self._saved: int | None = None

    def newest(self, mixer: Mixer) -> Restored:
        """Take the newest complete checkpoint, and put the mixer where it was."""
        found = self._store.newest_good()
        if found is None:
            return Restored(step=0, trainer=None, pending=(), rejected=(), ledger_offset=0)
        self._saved = found.step
        state = found.read_driver()
        mixer.load_state_dict(cast(dict[str, JsonValue], state["mixer"]))
        pending = RolloutProducer.parse_pending(state["pending"])
        log.info("resuming from %s: %d groups are sampled again", found.path, len(pending))
        return Restored(
            step=found.step,
            trainer=found.trainer,
            pending=pending,
            rejected=RolloutProducer.parse_rejected(state.get("rejected", [])),
            ledger_offset=int(str(state["ledger_offset"])),
            invalid=state.get("invalid"),
        )

    async def save(
        self,
        step: int,
        trainer: TrainerGroup,
        mixer: Mixer,
        producer: RolloutProducer,
        *,
        last: bool,
    ) -> None:
        """Commit a checkpoint of `step`, unless there is one.

        A checkpoint that fails (a full disk) leaves the earlier ones as they are; training goes
        on, and the failure is logged.

        Args:
            last: nothing comes after this one, so its failure is raised.

        Raises:
            ActorFailure: a rank died or did not write in time.
            LedgerError: the ledger does not add up.
        """
        if step == self._saved or step == 0:
            return
        producer.check_ledger()
        try:
            folder = self._store.begin(step)
            # One moment of the driver: nothing is dispatched or entered between these lines.
            state: dict[str, JsonValue] = {
                "mixer": cast(JsonValue, mixer.state_dict()),
                "pending": producer.pending_state(),
                "rejected": producer.rejected_state(),
                "ledger_offset": producer.ledger.offset,
                "invalid": producer.invalid_state(),
            }
            self._store.write_driver(step, state)
            await trainer.save(folder / "trainer")
            await asyncio.to_thread(producer.ledger.sync)
            await asyncio.to_thread(self._store.commit, step)
            self._saved = step
        except CheckpointError as error:
            if last:
                raise
            log.error("%s; training goes on, the next checkpoint tries again", error)
        except ActorFailure:
            self._store.abandon(step)
            raise
