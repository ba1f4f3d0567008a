"""A data-parallel rank as an actor: how it meets the others, trains and is saved.

torch and DeepSpeed are imported when it starts: the driver imports this module too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import ray

from actors.heartbeat import Heartbeat, beat
from configs.redact import guard_output
from configs.schema import RunConfig
from rollouts.types import MinibatchPlan, StepResult, UpdateBounds

if TYPE_CHECKING:
    from trainer.zero_engine import StepOutcome, ZeroEngine

E = TypeVar("E", bound="ZeroEngine[Any]")


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank's row of a MinibatchPlan."""

    minibatches: tuple[MinibatchPlan, ...]
    """Each with a grid of this rank's row alone: [1][n]."""
    step: int
    bounds: UpdateBounds
    keep_in: Path | None
    """Folder where this rank keeps what it trains on."""


class RankActor(Generic[E]):
    """One data-parallel rank of a model under training. Heartbeats run in a thread of their own."""

    group: ClassVar[str]
    """Keeps the ranks' store entries apart from those of other groups."""

    def __init__(self, cfg: RunConfig, rank: int, world_size: int):
        guard_output()
        self._cfg, self._rank, self._world = cfg, rank, world_size
        self._engine: E | None = None
        self._progress = 0

    @property
    def engine(self) -> E:
        """The ZeRO engine; only after `start`."""
        assert self._engine is not None, "start() was not called"
        return self._engine

    def start(self, store_host: str, store_port: int) -> Heartbeat:
        """Join the other ranks through the run's store and build the engine."""
        from trainer.determinism import make_deterministic

        if self._cfg.deterministic:
            make_deterministic()
        join_ranks(
            self.group,
            (store_host, store_port),
            rank=self._rank,
            world_size=self._world,
            timeout_s=self._cfg.trainer.collective_timeout_s,
        )
        self._engine = self._engine_class()(
            self._cfg,
            rank=self._rank,
            world_size=self._world,
            total_optimizer_steps=self._optimizer_steps(),
        )
        return beat(self._progress)

    def _engine_class(self) -> "type[E]":
        raise NotImplementedError

    def _optimizer_steps(self) -> int:
        """Return how many the whole run will do."""
        raise NotImplementedError

    def _trained(self, plan: RankPlan, outcome: "StepOutcome", *, fetch_s: float) -> StepResult:
        self._progress += 1
        return StepResult(
            policy_version=plan.step,
            metrics=outcome.metrics,
            seconds={"fetch": fetch_s, **outcome.seconds},
        )

    def save(self, folder: Path) -> Mapping[str, int]:
        """Write this rank's part of a checkpoint; return what it sees of it then."""
        self.engine.save(folder)
        return file_sizes(folder)

    def load(self, folder: Path) -> None:
        """Restore this rank from a checkpoint."""
        self.engine.load(folder)

    @ray.method(concurrency_group="control")
    def heartbeat(self) -> Heartbeat:
        """Answer that the actor lives."""
        return beat(self._progress)


def join_ranks(
    group: str, store: tuple[str, int], *, rank: int, world_size: int, timeout_s: float
) -> None:
    """Join torch.distributed's default group of this process through the run's store.

    Args:
        group: keeps the group apart from others in the store.
        store: host and port.
    """
    import torch

    # Public and documented, but not in the package's own list of names.
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    timeout = timedelta(seconds=timeout_s)
    host, port = store
    torch.distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(group, TCPStore(host, port, is_master=False, timeout=timeout)),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def file_sizes(folder: Path) -> Mapping[str, int]:
    """Return the bytes of every file below a folder that this process sees."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
