"""What a run cost, in device-hours, and which source it was spent on.

Devices are GPUs where the run has any, else CPU cores, as its groups of actors reserve them; they
are held for the whole of a step, whoever works. Of each step's device-time, a source is charged

    engines                 its share of the tokens sampled for the step, rejected groups included
    trainer, reference,
    critic, teachers        its share of the step's loss tokens
    graders and judges      its share of the seconds of grading

What lies outside of trained steps (start, evaluation at the start and end, steps that were undone)
is no source's; so is a step without the numbers that a share is made of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.engines import ActorsConfig
from configs.schema import RunConfig
from orchestrator.report.columns import Columns

_BY_TOKENS, _BY_LOSS, _BY_GRADING = "sampled tokens", "loss tokens", "seconds of grading"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A group of actors and what it reserves."""

    name: str
    actors: ActorsConfig
    basis: str
    """What its time is shared out by."""

    def devices(self, unit: str) -> float:
        """Return how many GPUs or CPU cores it holds."""
        each = self.actors.gpus if unit == "GPU" else self.actors.cpus
        return self.actors.count * each


def roles(cfg: RunConfig) -> tuple[Role, ...]:
    """Return the groups that a recipe starts."""
    found = [
        Role(name="rollout", actors=cfg.rollout.actors, basis=_BY_TOKENS),
        Role(name="trainer", actors=cfg.trainer.actors, basis=_BY_LOSS),
    ]
    if cfg.needs_reference:
        found.append(Role(name="reference", actors=cfg.reference.actors, basis=_BY_LOSS))
    if cfg.needs_critic:
        found.append(Role(name="critic", actors=cfg.critic.actors, basis=_BY_LOSS))
    for name, teacher in cfg.teachers.items():
        found.append(Role(name=f"teacher {name}", actors=teacher.actors, basis=_BY_LOSS))
    found.append(Role(name="reward", actors=cfg.reward.actors, basis=_BY_GRADING))
    for name, judge in cfg.judges.items():
        if judge.engines is not None:
            actors = judge.engines.actors
            found.append(Role(name=f"judge {name}", actors=actors, basis=_BY_GRADING))
    for name, model in cfg.reward_models.items():
        found.append(Role(name=f"reward model {name}", actors=model.actors, basis=_BY_GRADING))
    return tuple(found)


def cost(cfg: RunConfig, columns: Columns, held_s: float | None) -> dict[str, Any]:
    """Return device-hours by role and source.

    Args:
        held_s: seconds from the starts of the attempts to their ends, as far as known.
    """
    groups = roles(cfg)
    unit = "GPU" if any(role.devices("GPU") for role in groups) else "CPU"
    names = [s.name for s in cfg.sources]
    hours = np.nan_to_num(columns.values("time/step")) / 3600
    shares = {
        basis: _shares(columns, names, basis) for basis in (_BY_TOKENS, _BY_LOSS, _BY_GRADING)
    }
    rows: list[dict[str, Any]] = []
    for role in groups:
        spent = hours * role.devices(unit)
        by_source = {n: float((spent * shares[role.basis][n]).sum()) for n in names}
        total = float(spent.sum())
        rows.append(
            {
                "role": role.name,
                "devices": role.devices(unit),
                "basis": role.basis,
                "hours": total,
                "sources": by_source,
                "unassigned": max(0.0, total - sum(by_source.values())),
            }
        )
    outside = None if held_s is None else max(0.0, held_s / 3600 - float(hours.sum()))
    return {
        "unit": unit,
        "roles": rows,
        "step_hours": float(hours.sum()),
        "outside_hours": outside,
        "outside_device_hours": None if outside is None else outside * _held(groups, unit),
        "tokens": {n: _sum(columns, f"source/{n}/all/tokens") for n in names},
    }


def _held(groups: Sequence[Role], unit: str) -> float:
    return sum(role.devices(unit) for role in groups)


def _shares(columns: Columns, names: Sequence[str], basis: str) -> Mapping[str, np.ndarray]:  # type: ignore[type-arg]
    """Return each source's share of each step; 0 where nothing says whose it was."""
    amounts = {n: np.nan_to_num(_amount(columns, n, basis)) for n in names}
    whole = sum(amounts.values(), np.zeros(len(columns.steps)))
    return {
        n: np.divide(a, whole, out=np.zeros_like(a), where=whole > 0) for n, a in amounts.items()
    }


def _amount(columns: Columns, name: str, basis: str) -> np.ndarray:  # type: ignore[type-arg]
    at = f"source/{name}"
    if basis == _BY_TOKENS:
        return columns.values(f"{at}/all/tokens")
    if basis == _BY_LOSS:
        return columns.values(f"{at}/loss_tokens")
    return columns.values(f"{at}/all/grade_s") * columns.values(f"{at}/all/groups")


def _sum(columns: Columns, name: str) -> float:
    return float(np.nansum(columns.values(name)))
