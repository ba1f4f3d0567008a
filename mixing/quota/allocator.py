"""How many groups of each source a step has: stages, units, limits and the quota put together.

Knows the sizes of sources and not their items, so that `braid plan` can ask it too. What training
and evaluation report takes effect at a step that depends on the report's own step alone, never on
when it came: a resumed run decides as the uninterrupted one did.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Literal, TypedDict

from configs.schema import RunConfig, SourceConfig
from configs.validate_mix import check_weights, draws_allowed
from mixing.quota.rounding import Quota
from mixing.quota.shares import Demand, exact, groups_due, temper
from mixing.quota.stages import Schedule, ScheduleState
from mixing.quota.tokens import TokenAccounts, TokensState, Trained

EventKind = Literal[
    "stage",
    "edit",
    "edit_refused",
    "used_up",
    "again",
    "all_items",
    "repeats",
    "substituted",
    "overdrawn",
    "late",
]


class MixExhausted(Exception):
    """No further step can be planned: limits leave too little to train on."""

    def __init__(self, text: str, *, step: int, wanted: bool):
        super().__init__(text)
        self.step = step
        self.wanted = wanted
        """Whether `mix.on_exhausted: stop` asked the run to end so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixEvent:
    """Something that changed the mix."""

    step: int
    """First step that it concerns."""
    kind: EventKind
    source: str | None = None
    text: str

    def __str__(self) -> str:
        return f"mix, from step {self.step}: {self.text}"


class AllocatorState(TypedDict):
    """An allocator's state, as JSON."""

    schedule: ScheduleState
    credit: dict[str, str]
    tokens: TokensState
    ends: dict[str, int | None]
    used_up: list[str]
    whole: list[str]
    repeating: bool
    live: list[str]
    trained: dict[str, dict[str, list[int]]]
    evaluated: dict[str, dict[str, float]]
    last_eval: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A step's groups."""

    counts: Mapping[str, int]
    due: Mapping[str, Fraction]
    """Groups that each live source was due, by share alone."""
    shares: Mapping[str, float]
    """Target share of each source, in `mix.unit`."""
    repeats: bool
    """Whether all sources together have too few items for a step without repeats."""


class Allocator:
    """Splits steps over sources.

    Args:
        sizes: training items of each source; None where they are not known.
    """

    def __init__(self, cfg: RunConfig, sizes: Mapping[str, int | None]):
        self._cfg, self._sizes = cfg, sizes
        self._schedule = Schedule(cfg)
        self._quota = Quota([s.name for s in cfg.sources])
        self._tokens = TokenAccounts({s.name: s.sampling.max_tokens for s in cfg.sources})
        self._allowed = {s.name: _allowed(s, sizes[s.name]) for s in cfg.sources}
        self._ends = dict(self._allowed)
        """Draws after which a source is used up; None for never."""
        self._max_share = {
            s.name: None if s.limits.max_share is None else exact(s.limits.max_share)
            for s in cfg.sources
        }
        self._used_up: list[str] = []
        self._whole: list[str] = []
        """Sources that were said to give all their items to a step."""
        self._repeating = False
        self._live: list[str] = []
        """Sources of the last step."""
        self._trained: dict[int, Mapping[str, Trained]] = {}
        self._evaluated: dict[int, Mapping[str, float]] = {}
        self._last_eval = -1
        self._solved: tuple[dict[str, Demand], dict[str, Fraction] | None] = ({}, None)
        self.events: list[MixEvent] = []

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        return self._schedule.stage

    def end(self, name: str) -> int | None:
        """Return the draw before which a source's draws must lie; None for no bound."""
        return self._ends[name]

    def group_sizes(self) -> Mapping[str, int]:
        """Return the current group size of every source."""
        return self._schedule.group_sizes()

    def observe_trained(self, step: int, trained: Mapping[str, Trained]) -> None:
        """Take what `step` trained on; it counts from step + 1 + most_ahead on."""
        self._trained[step] = trained

    def observe_eval(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take an evaluation's figures, once; they count from step + 2 + most_ahead on.

        One step later than training's, because an evaluation runs while the next step is sampled.
        """
        if step > self._last_eval:
            self._last_eval = step
            self._evaluated[step] = metrics

    def edit(self, step: int, weights: Mapping[str, float | None]) -> str:
        """Apply a live edit from `step` on; return why not, or nothing."""
        unknown = [name for name in weights if name not in self._sizes]
        negative = [name for name, weight in weights.items() if weight is not None and weight < 0]
        if not weights or unknown:
            return f"no source `{unknown[0]}`" if unknown else "it is not readable"
        if negative:
            return f"the weight of {negative[0]} is negative"
        problems = list(check_weights(self._cfg, {**self._schedule.edited, **weights}, step=step))
        if problems:
            return f"{problems[0].where}: {problems[0].what}"
        self._schedule.edit(weights)
        return ""

    def allocate(self, step: int, taken: Mapping[str, int]) -> Allocation:
        """Return the groups of `step`. Steps come in rising order.

        Args:
            taken: draws so far, by source.

        Raises:
            MixExhausted: no draw was planned; the same call would raise again.
        """
        self._take_reports(step)
        if self._schedule.enter(step):
            text = f"stage {self.stage} begins"
            self.events.append(MixEvent(step=step, kind="stage", text=text))
        weights = temper(self._schedule.weights(step), self._cfg.mix.temperature)
        costs = self._costs(self.stage)
        demands, due, repeats = self._fill(step, weights, costs, taken)
        self._live = list(due)
        self._say(step, due, taken, repeats)
        return Allocation(
            counts=self._count(step, due, demands),
            due=due,
            shares=self._shares(due, costs),
            repeats=repeats,
        )

    def declared(self, stage: int) -> Allocation:
        """Return what a stage comes to at its end, were nothing used up yet; no counts."""
        weights = temper(self._schedule.declared(stage), self._cfg.mix.temperature)
        costs, untouched = self._costs(stage), dict.fromkeys(weights, 0)
        _, due, repeats = self._fill(1, weights, costs, untouched)
        return Allocation(counts={}, due=due, shares=self._shares(due, costs), repeats=repeats)

    def _shares(
        self, due: Mapping[str, Fraction], costs: Mapping[str, Fraction]
    ) -> dict[str, float]:
        units = sum(due[name] * costs[name] for name in due)
        return {n: float(due[n] * costs[n] / units) if n in due else 0.0 for n in self._sizes}

    def substitutes(self, name: str) -> Sequence[str]:
        """Return who may give a group in place of `name`, first who is owed most."""
        credit = self._quota.credit
        return sorted((n for n in self._live if n != name), key=lambda n: -credit[n])

    def swapped(self, step: int, planned: str, given: str) -> None:
        """Tell that a group planned for one source was given to another."""
        if self._cfg.mix.strategy == "quota" and self._cfg.mix.unit != "loss_tokens":
            self._quota.swap(planned, given)
        text = f"{given} stands in for {planned}, which has no other item for the step"
        self.events.append(MixEvent(step=step, kind="substituted", source=planned, text=text))

    def missed(self, name: str, due: Mapping[str, Fraction]) -> None:
        """Tell that a step was trained with one group of `name` less than planned.

        Args:
            due: groups that each source was due in the step.
        """
        if self._cfg.mix.strategy == "quota" and self._cfg.mix.unit != "loss_tokens":
            self._quota.miss(name, due)

    def overdrawn(self, step: int, name: str) -> None:
        """Tell that a failed group was replaced by a draw past the source's limits."""
        text = f"{name} gives one draw more than its limits, in place of a group that failed"
        self.events.append(MixEvent(step=step, kind="overdrawn", source=name, text=text))

    def _take_reports(self, step: int) -> None:
        late = self._cfg.most_ahead
        for done in sorted(s for s in self._trained if s <= step - 1 - late):
            self._tokens.observe(done, self._trained.pop(done), self._schedule.group_sizes())
        for done in sorted(s for s in self._evaluated if s <= step - 2 - late):
            self._schedule.observe(done, self._evaluated.pop(done))

    def _costs(self, stage: int) -> dict[str, Fraction]:
        """Return the units of one group of every source."""
        sizes = self._schedule.group_sizes(stage)
        if self._cfg.mix.unit == "samples":
            return {name: Fraction(size) for name, size in sizes.items()}
        if self._cfg.mix.unit == "loss_tokens":
            return {name: Fraction(round(t)) for name, t in self._tokens.sizes(sizes).items()}
        return dict.fromkeys(self._sizes, Fraction(1))

    def _left(self, name: str, taken: Mapping[str, int]) -> int | None:
        end = self._ends[name]
        return None if end is None else max(0, end - taken[name])

    def _fill(
        self,
        step: int,
        weights: Mapping[str, Fraction],
        costs: Mapping[str, Fraction],
        taken: Mapping[str, int],
    ) -> tuple[dict[str, Demand], dict[str, Fraction], bool]:
        """Return what live sources ask and are due; begin again or raise if that is too little."""
        policy = self._cfg.mix.on_exhausted
        for _ in range(2):
            for repeats in (False, True):
                demands = self._demands(weights, costs, taken, repeats=repeats)
                due = self._solve(demands)
                if due is None:
                    continue
                if policy == "stop":
                    self._stop_short(step, due, taken)
                return demands, due, repeats
            if policy != "repeat":
                break
            self._begin_again(step, taken)
        spent = ", ".join(n for n, w in weights.items() if w > 0 and self._left(n, taken) == 0)
        raise MixExhausted(
            f"step {step} cannot be filled: {spent or 'no source'} used up by limits, and the "
            "others' limits leave too little; raise limits, or set mix.on_exhausted",
            step=step,
            wanted=False,
        )

    def _demands(
        self,
        weights: Mapping[str, Fraction],
        costs: Mapping[str, Fraction],
        taken: Mapping[str, int],
        *,
        repeats: bool,
    ) -> dict[str, Demand]:
        demands: dict[str, Demand] = {}
        for name, weight in weights.items():
            left = None if self._cfg.mix.on_exhausted == "stop" else self._left(name, taken)
            if weight <= 0 or left == 0:
                continue
            bounds = [left, None if repeats else self._sizes[name]]
            most = min((b for b in bounds if b is not None), default=None)
            demands[name] = Demand(
                weight=weight,
                cost=costs[name],
                max_share=self._max_share[name],
                max_groups=most if most is not None and most < self._groups else None,
            )
        return demands

    @property
    def _groups(self) -> int:
        return self._cfg.batch.groups_per_step

    def _solve(self, demands: dict[str, Demand]) -> dict[str, Fraction] | None:
        if demands != self._solved[0]:
            self._solved = (demands, groups_due(demands, self._groups))
        return self._solved[1]

    def _stop_short(self, step: int, due: Mapping[str, Fraction], taken: Mapping[str, int]) -> None:
        for name, groups in due.items():
            left = self._left(name, taken)
            if left is not None and left < ceil(groups):
                raise MixExhausted(
                    f"{name} has {left} draws left within its limits, too few for step "
                    f"{step}; mix.on_exhausted is stop",
                    step=step,
                    wanted=True,
                )

    def _begin_again(self, step: int, taken: Mapping[str, int]) -> None:
        for name, allowed in self._allowed.items():
            self._ends[name] = None if allowed is None else taken[name] + allowed
        self._used_up.clear()
        text = "all limits are used up; they begin again"
        self.events.append(MixEvent(step=step, kind="again", text=text))

    def _say(
        self, step: int, due: Mapping[str, Fraction], taken: Mapping[str, int], repeats: bool
    ) -> None:
        for name, groups in due.items():
            if groups == self._sizes[name] and groups < self._groups and name not in self._whole:
                self._whole.append(name)
                text = f"{name} gives all its {groups} items to each step; the others fill it"
                self.events.append(MixEvent(step=step, kind="all_items", source=name, text=text))
        for name in self._sizes:
            if self._left(name, taken) == 0 and name not in self._used_up:
                self._used_up.append(name)
                text = f"{name} is used up after {taken[name]} draws; the others take its share"
                self.events.append(MixEvent(step=step, kind="used_up", source=name, text=text))
        if repeats and not self._repeating:
            text = "the live sources have fewer items than a step has groups, so some repeat in it"
            self.events.append(MixEvent(step=step, kind="repeats", text=text))
        self._repeating = repeats

    def _count(
        self, step: int, due: Mapping[str, Fraction], demands: Mapping[str, Demand]
    ) -> Mapping[str, int]:
        bounds = {name: demand.max_groups for name, demand in demands.items()}

        def draw(weights: Mapping[str, Fraction | float]) -> dict[str, int]:
            return _sample(f"{self._cfg.seed}/mix/{step}", weights, bounds, self._groups)

        sampled = self._cfg.mix.strategy == "sampled"
        if self._cfg.mix.unit == "loss_tokens":
            sizes = self.group_sizes()
            return self._tokens.next_counts(step, due, bounds, sizes, draw if sampled else None)
        return draw(due) if sampled else self._quota.next_counts(due, bounds)

    def state_dict(self) -> AllocatorState:
        """Return everything that `allocate` depends on besides recipe and sizes."""
        return {
            "schedule": self._schedule.state_dict(),
            "credit": self._quota.state_dict(),
            "tokens": self._tokens.state_dict(),
            "ends": dict(self._ends),
            "used_up": list(self._used_up),
            "whole": list(self._whole),
            "repeating": self._repeating,
            "live": list(self._live),
            "trained": {
                str(step): {name: list(t) for name, t in trained.items()}
                for step, trained in self._trained.items()
            },
            "evaluated": {str(step): dict(m) for step, m in self._evaluated.items()},
            "last_eval": self._last_eval,
        }

    def load_state_dict(self, state: AllocatorState) -> None:
        """Go on where another allocator stopped."""
        self._schedule.load_state_dict(state["schedule"])
        self._quota.load_state_dict(state["credit"])
        self._tokens.load_state_dict(state["tokens"])
        self._ends, self._used_up = dict(state["ends"]), list(state["used_up"])
        self._whole = list(state["whole"])
        self._repeating, self._live = state["repeating"], list(state["live"])
        self._last_eval = state["last_eval"]
        self._trained = {
            int(step): {name: Trained(*t) for name, t in trained.items()}
            for step, trained in state["trained"].items()
        }
        self._evaluated = {int(step): dict(m) for step, m in state["evaluated"].items()}


def _allowed(source: SourceConfig, size: int | None) -> int | None:
    """Return the draws that a source's limits allow, given its size where that is known."""
    if size is None:
        return draws_allowed(source)
    limits = source.limits
    bounds = [limits.max_items, limits.max_epochs and limits.max_epochs * size]
    return min((b for b in bounds if b is not None), default=None)


def _sample(
    key: str, due: Mapping[str, Fraction | float], bounds: Mapping[str, int | None], groups: int
) -> dict[str, int]:
    """Draw a source for each group by what is due; who is at its bound is drawn no more.

    Of Python's generators only `random()` promises the same stream in later versions.
    """
    generator = random.Random(key)
    counts = dict.fromkeys(due, 0)
    for _ in range(groups):
        open_to = [(n, float(d)) for n, d in due.items() if counts[n] != bounds[n]]
        point = generator.random() * sum(weight for _, weight in open_to)
        chosen = open_to[-1][0]
        for name, weight in open_to:
            point -= weight
            if point < 0:
                chosen = name
                break
        counts[chosen] += 1
    return counts
