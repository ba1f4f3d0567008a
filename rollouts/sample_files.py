"""Training samples on disk: what one rank trained on in one step, as one npz.

Every array of a sample is a stream of its own, laid end to end over the samples, with the lengths
beside it; a sample that lacks one has length -1 there. Reading gives back equal samples, bit for
bit.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rollouts.types import F32, TrainingSample

_REFERENCE = "ref_logprobs"
_NAMES = tuple(f.name for f in fields(TrainingSample))


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A `Ref` to samples on disk instead of in the object store."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample:
    """A sample as it was trained on."""

    sample: TrainingSample
    ref_logprobs: F32 | None
    """[L], where a reference was asked."""


def rank_file(rank: int) -> str:
    """Return the name of a rank's file in a step's folder."""
    return f"rank_{rank}.npz"


def write_samples(path: Path, stored: Sequence[StoredSample]) -> None:
    """Write samples in order; the file appears whole."""
    columns: dict[str, Any] = {}
    for name in (*_NAMES, _REFERENCE):
        values = [_value(s, name) for s in stored]
        kind = next((v for v in values if v is not None), None)
        if isinstance(kind, np.ndarray):
            columns[f"{name}/length"] = np.array([-1 if v is None else len(v) for v in values])
            columns[name] = np.concatenate([v for v in values if v is not None])
        elif kind is not None:
            columns[name] = np.array(values)
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        np.savez(file, **columns)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_samples(path: Path) -> tuple[StoredSample, ...]:
    """Read what `write_samples` wrote, in order."""
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files}
    count = len(columns.get("group_id", ()))
    rows: list[dict[str, Any]] = [dict.fromkeys((*_NAMES, _REFERENCE)) for _ in range(count)]
    for name in (*_NAMES, _REFERENCE):
        if f"{name}/length" in columns:
            start = 0
            for row, length in zip(rows, columns[f"{name}/length"].tolist(), strict=True):
                if length >= 0:
                    row[name] = columns[name][start : start + length]
                    start += length
        elif name in columns:
            for row, value in zip(rows, columns[name].tolist(), strict=True):
                row[name] = value
    return tuple(
        StoredSample(ref_logprobs=row.pop(_REFERENCE), sample=TrainingSample(**row)) for row in rows
    )


def _value(stored: StoredSample, name: str) -> Any:
    return stored.ref_logprobs if name == _REFERENCE else getattr(stored.sample, name)
