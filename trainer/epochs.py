"""In which order a training step passes over its mini-batches."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Order of the optimizer steps of a training step."""

    order: tuple[int, ...]
    """Place of each one's mini-batch."""
    epochs: int


def plan_passes(minibatches: int, *, epochs: int, seed: int, step: int) -> Passes:
    """Return the order: as planned in the first epoch, then shuffled anew in each.

    A mini-batch keeps its samples, so that what was scored of it before the step still fits. The
    order is the same on every rank, and in a resumed run.
    """
    order = list(range(minibatches))
    for epoch in range(1, epochs):
        dice = np.random.default_rng([seed % 2**64, step, epoch])
        order += dice.permutation(minibatches).tolist()
    return Passes(order=tuple(order), epochs=epochs)
