"""Gates between reward parts, and the scale that a step's groups give to their advantages."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from configs.objective import GateConfig
from configs.schema import SourceConfig
from rollouts.types import GroupSummary, TrainingSample

SCALE_EPS = 1e-6
"""Added to the deviation of a step's advantages."""


def gate(
    parts: Mapping[str, float], gates: Sequence[GateConfig]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return each part as it counts behind its gates, and the parts of which a gate is closed.

    A gate looks at a part as that one counts itself, so gates form chains; they have no cycles.
    """
    found: dict[str, float] = {}
    closed: dict[str, None] = {}

    def value(name: str) -> float:
        if name not in found:
            shut = [g for g in gates if g.part == name and value(g.needs) < g.at_least]
            found[name] = shut[0].otherwise if shut else parts[name]
            if shut:
                closed[name] = None
        return found[name]

    return {name: value(name) for name in parts}, tuple(n for n in parts if n in closed)


def scale_step(
    groups: Sequence[GroupSummary], sources: Sequence[SourceConfig]
) -> list[GroupSummary]:
    """Return a step's groups, those of `normalize_then_sum` with advantages of deviation one over
    their source's samples (GDPO, arXiv:2601.05242).

    The paper also takes off the batch's mean; advantages that sum to zero in every group have none.
    """
    scales = {
        s.name: _scale([g for g in groups if g.source == s.name])
        for s in sources
        if s.objective.combine == "normalize_then_sum" and s.objective.batch_std
    }
    return [_scaled(g, scales[g.source]) if g.source in scales else g for g in groups]


def _scale(groups: Sequence[GroupSummary]) -> float:
    known = [r.advantage for g in groups for r in g.rollouts if r.advantage is not None]
    spread = float(np.std(known)) if known else 0.0
    return 1 / (spread + SCALE_EPS) if spread > SCALE_EPS else 1.0


def _scaled(group: GroupSummary, scale: float) -> GroupSummary:
    handles = tuple(replace(s, advantage_scale=scale) for s in group.samples)
    return replace(group, samples=handles)


def scale_sample(sample: TrainingSample, scale: float) -> TrainingSample:
    """Return the sample with its advantages scaled: done before anything is taken from them."""
    if scale == 1.0:
        return sample
    return replace(sample, advantages=sample.advantages * np.float32(scale))
