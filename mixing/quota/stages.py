"""Which weights hold at a step: the sources' own, the stage's over them, live edits over both."""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import TypedDict

from configs.mix import StageConfig, UntilConfig
from configs.schema import RunConfig
from mixing.quota.shares import exact


class ScheduleState(TypedDict):
    """A schedule's state, as JSON."""

    stage: int
    began: int
    streak: int
    edited: dict[str, float]


class Schedule:
    """Walks the stages. Steps come in rising order, evaluations too.

    A stage that ends by step has its last one there; one that ends by a metric ends when enough
    evaluations in a row, made since it began, were at the threshold. The last stage's weights
    stay to the end of the run.
    """

    def __init__(self, cfg: RunConfig):
        self._own = {s.name: exact(s.weight) for s in cfg.sources}
        self._group_size = {s.name: s.group_size for s in cfg.sources}
        self._stages = cfg.stages
        self._stage, self._began, self._streak = 0, 1, 0
        self._edited: dict[str, float] = {}

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        return self._stage

    @property
    def edited(self) -> Mapping[str, float]:
        """Weights that live edits have set, by source."""
        return self._edited

    def edit(self, weights: Mapping[str, float | None]) -> None:
        """Set weights from the next step on; None gives one back to recipe and stages."""
        for name, weight in weights.items():
            self._edited.pop(name, None)
            if weight is not None:
                self._edited[name] = weight

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of the evaluation after `step`."""
        until = self._until()
        if until is None or until.metric is None or step < self._began - 1:
            return
        value = metrics.get(until.metric, math.nan)
        self._streak = self._streak + 1 if _is_there(until, value) else 0

    def enter(self, step: int) -> bool:
        """Go to the stage of `step`; return whether it is another one than before."""
        before = self._stage
        while self._stage + 1 < len(self._stages) and self._is_over(step):
            self._stage, self._began, self._streak = self._stage + 1, step, 0
        return self._stage != before

    def weights(self, step: int) -> dict[str, Fraction]:
        """Return every source's weight at `step`, which lies in the current stage."""
        weights = self.declared(self._stage)
        if self._stages and self._stages[self._stage].ramp == "linear":
            before = self.declared(self._stage - 1)
            gone = self._gone(step)
            weights = {n: before[n] + (w - before[n]) * gone for n, w in weights.items()}
        return weights | {name: exact(weight) for name, weight in self._edited.items()}

    def declared(self, stage: int) -> dict[str, Fraction]:
        """Return the weights that a stage declares; the sources' own before the first."""
        if stage < 0 or not self._stages:
            return dict(self._own)
        return declared_weights(self._own, self._stages[stage])

    def group_sizes(self, stage: int | None = None) -> dict[str, int]:
        """Return every source's group size in a stage; in the current one if none is given."""
        index = self._stage if stage is None else stage
        own = self._stages[index].group_size if self._stages else {}
        return self._group_size | own

    def _until(self) -> UntilConfig | None:
        return self._stages[self._stage].until if self._stages else None

    def _is_over(self, step: int) -> bool:
        until = self._until()
        if until is None:
            return False
        if until.step is not None:
            return step > until.step
        return self._streak >= until.patience

    def _gone(self, step: int) -> Fraction:
        """Return the part of the current stage that is over with `step`."""
        until = self._until()
        assert until is not None and until.step is not None  # a ramp ends at a step
        length = max(1, until.step - self._began + 1)
        return min(Fraction(1), Fraction(step - self._began + 1, length))

    def state_dict(self) -> ScheduleState:
        """Return the place among the stages, and the edits that hold."""
        return {
            "stage": self._stage,
            "began": self._began,
            "streak": self._streak,
            "edited": dict(self._edited),
        }

    def load_state_dict(self, state: ScheduleState) -> None:
        """Go to the place that `state_dict` returned."""
        self._stage, self._began = state["stage"], state["began"]
        self._streak, self._edited = state["streak"], dict(state["edited"])


def declared_weights(own: Mapping[str, Fraction], stage: StageConfig) -> dict[str, Fraction]:
    """Return the weights of a stage: its own for the sources it names, else the source's."""
    return dict(own) | {name: exact(weight) for name, weight in stage.weights.items()}


def _is_there(until: UntilConfig, value: float) -> bool:
    if until.gte is not None:
        return value >= until.gte
    return until.lte is not None and value <= until.lte
