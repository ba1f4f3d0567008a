"""One optimizer step, which may be refused: by its loss, or by its gradient's norm.

All that decides is the same on every rank: the loss and the norm are reduced over all of them, and
the bounds come with the plan. A refused step leaves weights, moments and schedule as they were.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import deepspeed
import torch

from rollouts.types import UpdateBounds

_JUDGE = "is_invalid_grad_norm"
"""What DeepSpeed's wrapped optimizers ask about the norm, once it is reduced and before anything
is clipped or updated; where it says yes they drop the gradients on every rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What became of an optimizer step."""

    grad_norm: float
    """Global norm before clipping; not finite where some gradient is not."""
    lr: float
    """Rate that it used, or would have."""
    applied: bool


def refuses_loss(bounds: UpdateBounds, loss: float) -> bool:
    """Return whether a loss alone forbids the update."""
    return not loss <= bounds.loss


def take_step(
    engine: deepspeed.DeepSpeedEngine, bounds: UpdateBounds, *, refused: bool, bare: bool
) -> Update:
    """Clip and update, unless the norm is not finite or above its bound.

    Args:
        refused: drop the gradients whatever their norm is.
        bare: the optimizer is torch's own, which no wrapper of DeepSpeed's guards.
    """
    limit = -math.inf if refused else bounds.grad_norm
    with _learning_rate(engine, bounds.lr_factor) as lr:
        if bare:
            return _bare_step(engine, limit, lr)
        with _refusing(engine, limit) as seen:
            engine.step()
        applied = bool(engine.was_step_applied())
        reported: Any = engine.get_global_grad_norm()
        norm = float(reported) if applied or not seen else seen[0]
        return Update(grad_norm=norm, lr=lr, applied=applied)


def _bare_step(engine: deepspeed.DeepSpeedEngine, limit: float, lr: float) -> Update:
    module: torch.nn.Module = cast(Any, engine).module
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    norm = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads])))
    applied = norm <= limit and math.isfinite(norm)
    if applied:
        engine.step()
        applied = bool(engine.was_step_applied())
    else:
        engine.zero_grad()
    return Update(grad_norm=norm, lr=lr, applied=applied)


@contextmanager
def _learning_rate(engine: deepspeed.DeepSpeedEngine, factor: float) -> Iterator[float]:
    """Scale the rate of one step; yield it. The schedule, a function of its steps, knows nothing
    of it."""
    groups: list[dict[str, Any]] = cast(Any, engine.optimizer).param_groups
    planned = [group["lr"] for group in groups]
    for group in groups:
        group["lr"] *= factor
    scaled = [group["lr"] for group in groups]
    yield float(scaled[0])
    for group, was, mine in zip(groups, planned, scaled, strict=True):
        if group["lr"] == mine:  # the schedule did not move: nothing was applied, or it is constant
            group["lr"] = was


@contextmanager
def _refusing(engine: deepspeed.DeepSpeedEngine, limit: float) -> Iterator[list[float]]:
    """Have the wrapped optimizer drop a gradient whose norm is above `limit`; yields the norms
    that it was asked about."""
    seen: list[float] = []
    optimizer: Any = engine.optimizer
    owner = next(kind for kind in type(optimizer).__mro__ if "step" in vars(kind))
    module: ModuleType = sys.modules[owner.__module__]
    honest = getattr(module, _JUDGE)

    def judge(norm: Any) -> bool:
        invalid = bool(honest(norm))
        seen.append(math.inf if invalid else float(norm))  # it may be -1 for what is not finite
        return invalid or (len(seen) == 1 and seen[0] > limit)

    setattr(module, _JUDGE, judge)
    try:
        yield seen
    finally:
        setattr(module, _JUDGE, honest)
