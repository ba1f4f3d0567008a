"""What a run keeps of its training batches: `replay/step_N/`, a file of each rank and the plan.

The plan is written last, so a step without one is not there.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from configs.errors import ConfigError, Problem
from orchestrator.records.files import write_atomically
from rollouts.sample_files import SampleFile, rank_file
from rollouts.types import GroupSummary, SampleHandle, TrainBatch, UpdateBounds

_PLAN = "plan.json"
_STEP = re.compile(r"^step_(\d+)$")


@dataclass(frozen=True, kw_only=True)
class KeptSample:
    """Where a sample lies, and what planning needs to know of it."""

    rank: int
    row: int
    """Its place in that rank's file."""
    num_tokens: int
    num_loss_tokens: int


@dataclass(frozen=True, kw_only=True)
class KeptStep:
    """What one step trained on."""

    step: int
    bounds: dict[str, float | bool | None]
    """`UpdateBounds`; None for infinity."""
    samples: tuple[KeptSample, ...]
    """In the order in which they were planned."""

    def update_bounds(self) -> UpdateBounds:
        """Return what the updates might be."""
        given = {k: np.inf if v is None else v for k, v in self.bounds.items()}
        return UpdateBounds(**given)  # type: ignore[arg-type]


_KEPT = TypeAdapter(KeptStep)


def begin_step(folder: Path, step: int) -> Path:
    """Return the folder that takes the step's files; empty."""
    path = folder / f"step_{step}"
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)
    return path


def end_step(
    path: Path, groups: Sequence[GroupSummary], batch: TrainBatch, *, keep: int | None
) -> None:
    """Write the plan, now that the ranks have written what they trained on, and prune older steps.

    Args:
        groups: what the batch was planned of, in that order.
    """
    places = {
        id(sample): (rank, row)
        for rank in range(len(batch.minibatches[0].grid))
        for row, sample in enumerate(
            s for m in batch.minibatches for plan in m.grid[rank] for s in plan.samples
        )
    }
    samples = [s for g in groups for s in g.samples]
    kept = KeptStep(
        step=batch.step,
        bounds={k: None if v == float("inf") else v for k, v in asdict(batch.bounds).items()},
        samples=tuple(
            KeptSample(
                rank=places[id(s)][0],
                row=places[id(s)][1],
                num_tokens=s.num_tokens,
                num_loss_tokens=s.num_loss_tokens,
            )
            for s in samples
        ),
    )
    write_atomically(path / _PLAN, _KEPT.dump_json(kept).decode() + "\n")
    if keep is not None:
        for step in kept_steps(path.parent):
            if step <= batch.step - keep:
                shutil.rmtree(path.parent / f"step_{step}")


def kept_steps(folder: Path) -> tuple[int, ...]:
    """Return the steps that are there whole, in order."""
    found = (m for p in folder.glob("step_*") if (m := _STEP.match(p.name)))
    steps = (int(m[1]) for m in found)
    return tuple(sorted(s for s in steps if (folder / f"step_{s}" / _PLAN).is_file()))


def read_step(folder: Path, step: int) -> tuple[KeptStep, tuple[SampleHandle, ...]]:
    """Return a step, and handles to its samples in the order of planning.

    Raises:
        ConfigError: the plan or a rank's file is missing or damaged.
    """
    path = folder / f"step_{step}"
    try:
        kept = _KEPT.validate_json((path / _PLAN).read_bytes())
    except (OSError, ValueError) as error:
        what = f"cannot be read ({type(error).__name__})"
        raise ConfigError(Problem(where=str(path / _PLAN), what=what)) from error
    for rank in sorted({s.rank for s in kept.samples}):
        _check_file(path / rank_file(rank), [s for s in kept.samples if s.rank == rank])
    handles = (
        SampleHandle(
            ref=SampleFile(str((path / rank_file(s.rank)).resolve())),
            row=s.row,
            num_tokens=s.num_tokens,
            num_loss_tokens=s.num_loss_tokens,
        )
        for s in kept.samples
    )
    return kept, tuple(handles)


def _check_file(path: Path, samples: Sequence[KeptSample]) -> None:
    try:
        with np.load(path, allow_pickle=False) as file:
            lengths = file["token_ids/length"].tolist()
    except (OSError, ValueError, KeyError) as error:
        what = f"is missing or damaged ({type(error).__name__})"
        raise ConfigError(Problem(where=str(path), what=what)) from error
    if any(s.row >= len(lengths) or lengths[s.row] != s.num_tokens for s in samples):
        raise ConfigError(Problem(where=str(path), what="has not the samples of the step's plan"))
