"""Which rows are trained on and which are held out; a prompt is never on both sides."""

import numpy as np

from configs.data import DataConfig
from configs.errors import ConfigError, Problem
from mixing.tables.scan import I64, U64, Rows

_SHOWN = 5


def split_by_hash(rows: Rows, data: DataConfig, at: str) -> tuple[Rows, Rows]:
    """Return the training rows, and one row of each of the `held_out` prompts of least hash.

    The choice does not depend on the order of rows, and rows with the same prompt stay together.
    """
    distinct, first = _distinct(rows.prompts)
    if len(distinct) <= data.held_out:
        some = max(1, len(distinct) // 5)
        raise ConfigError(
            Problem(
                where=f"{at}.held_out",
                what=f"there are {len(distinct)} different prompts; {data.held_out} held out "
                "leave none to train on",
                fix=f"Lower `held_out`, say to {some}, or add rows."
                if len(distinct) > 1
                else "Add rows.",
            )
        )
    held_out = first[: data.held_out]
    training = np.flatnonzero(rows.prompts > distinct[data.held_out - 1])
    return rows.take(training), rows.take(held_out)


def split_as_given(training: Rows, held_out: Rows, data: DataConfig, at: str) -> tuple[Rows, Rows]:
    """Return the training rows, and at most `held_out` of the others, one a prompt.

    Args:
        at: the field that makes the split.
    """
    if not len(training):
        raise ConfigError(Problem(where=at, what="takes every row, which leaves none to train on"))
    _refuse_leaks(training, held_out, at)
    _, first = _distinct(held_out.prompts)
    return training, held_out.take(first[: data.held_out])


def take_part(training: Rows, data: DataConfig) -> Rows:
    """Return the rows of as many prompts as `fraction` and `max_prompts` leave, those of greatest
    hash."""
    distinct, _ = _distinct(training.prompts)
    count = max(1, round(data.fraction * len(distinct)))
    count = min(count, data.max_prompts or count)
    if count == len(distinct):
        return training
    return training.take(np.flatnonzero(training.prompts >= distinct[len(distinct) - count]))


def _distinct(prompts: U64) -> tuple[U64, I64]:
    """Return the different hashes, rising, and the first row of each."""
    distinct, first = np.unique(prompts, return_index=True)
    return distinct, first.astype(np.int64)


def _refuse_leaks(training: Rows, held_out: Rows, at: str) -> None:
    both, in_training, in_held_out = np.intersect1d(
        training.prompts, held_out.prompts, return_indices=True
    )
    if not len(both):
        return
    pairs = sorted(zip(map(int, in_training), map(int, in_held_out), strict=True))
    shown = "; ".join(f"{training.where(t)} and {held_out.where(h)}" for t, h in pairs[:_SHOWN])
    rest = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    raise ConfigError(
        Problem(
            where=at,
            what=f"the split leaks: {len(pairs)} prompt(s) are on both sides, in training and "
            f"held out: {shown}{rest}",
            fix="Remove them from one side, or leave the split to the hash of prompts: remove "
            f"`{at.rpartition('.')[2]}`.",
        )
    )
