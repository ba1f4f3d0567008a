"""What graded groups tell the sources that follow the policy.

Invariants:
- what groups of a step said is taken in when the step was trained, all at once, in the order of
  their places in the step: who finishes first changes nothing;
- a group that was replaced counts like the one that took its place; one without a valid rollout
  says nothing;
- a resumed run samples untrained groups again, and their second word replaces the first.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from configs.errors import ConfigError, Problem
from configs.evaluation import eval_settings
from configs.schema import RunConfig, SourceConfig
from mixing.curriculum import CurriculumSnapshot, CurriculumSource, CurriculumState, level_of
from mixing.difficulty import (
    Difficulty,
    DifficultySnapshot,
    Observation,
    Widened,
)
from mixing.live_pool import LivePool
from mixing.sources import Source
from mixing.spares import Drawn, Spares, SparesState
from rollouts.filters import Verdict, judge
from rollouts.types import GroupRequest, GroupSummary, Task


class _NoteState(TypedDict):
    """What one graded group said, as JSON."""

    source: str
    task_id: str
    pass_rate: float
    rollouts: int
    verdict: str


class _StepState(TypedDict):
    """A step in flight, as JSON."""

    places: dict[str, int]
    in_source: list[int]
    levels: dict[str, int]
    items: dict[str, int]
    notes: list[dict[str, _NoteState]]


class FeedbackState(TypedDict):
    """Everything that was heard, as JSON; pools keep their own state."""

    steps: dict[str, _StepState]
    curricula: dict[str, CurriculumState]
    kept: dict[str, int]
    spares: SparesState


@dataclass(slots=True)
class _Step:
    """A step that was planned and not yet trained."""

    places: dict[str, int]
    """Group id -> its place in the step; a retry or replacement has its predecessor's."""
    in_source: list[int]
    """Place -> which of its source's places it is."""
    levels: dict[str, int]
    """Level in force when the step was planned, of sources with a curriculum."""
    items: dict[str, int]
    """Task id -> item, of windowed sources."""
    notes: list[dict[str, _NoteState]]
    """By place, then by group id in the order of replacements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceDifficulty:
    """What a source's difficulty looks like, for metrics."""

    items: DifficultySnapshot | None
    """None without a window on items."""
    curriculum: CurriculumSnapshot | None
    kept: int | None
    """Groups so far that were kept in spite of zero variance, their replacements used up; None
    where such groups are not replaced."""

    def figures(self) -> dict[str, float]:
        """Return the figures by name; what does not apply is left out."""
        found: dict[str, float] = {}
        if self.items is not None:
            found.update(
                live=self.items.live,
                widened=self.items.widened,
                parked=self.items.parked,
                retired=self.items.retired,
                unseen=self.items.unseen,
            )
        if self.curriculum is not None:
            found.update(level=self.curriculum.level)
        if self.kept is not None:
            found.update(zero_variance_kept_total=self.kept)
        return found


class Feedback:
    """The windows and curricula of a run's sources, and what they have yet to hear."""

    def __init__(self, cfg: RunConfig, sources: Mapping[str, Source]):
        self._cfg = cfg
        self._sources = {s.name: s for s in cfg.sources}
        self.pools = open_pools(cfg, sources)
        self._curricula = {
            name: source.curriculum
            for name, source in sources.items()
            if isinstance(source, CurriculumSource)
        }
        self._steps: dict[int, _Step] = {}
        self._spares = Spares()
        self._kept = {
            s.name: 0
            for s in cfg.sources
            if s.difficulty.drop_zero_variance or s.difficulty.window is not None
        }

    def begin(self, step: int, counts: Mapping[str, int]) -> None:
        """Tell that `step` is planned from now on, and how many groups of each source it asks."""
        for name, pool in self.pools.items():
            pool.begin(step)
            pool.require(counts.get(name, 0))
        levels = {name: curriculum.level for name, curriculum in self._curricula.items()}
        self._steps[step] = _Step(places={}, in_source=[], levels=levels, items={}, notes=[])

    def task(self, source: Source, name: str, item: int, step: int) -> Task:
        """Make an item as it is for `step`, be it planned or a replacement."""
        if isinstance(source, CurriculumSource):
            return source.task_at(self._steps[step].levels[name], item)
        return source.task(item)

    def drawn(self, request: GroupRequest, item: int, *, after: GroupRequest | None = None) -> None:
        """Tell which item a request is about, and whose place it takes, if anyone's."""
        step = self._steps[request.step]
        if request.task.source in self.pools:
            step.items[request.task.task_id] = item
        if after is not None:
            step.places[request.group_id] = step.places[after.group_id]

    def planned(
        self, requests: Sequence[GroupRequest], spare: Callable[[str], Drawn | None]
    ) -> None:
        """Tell the places of a step, in order.

        Args:
            spare: draws one more item of a source for the step, where there is one.
        """
        number = requests[0].step
        step = self._steps[number]
        count: dict[str, int] = {}
        for place, request in enumerate(requests):
            step.places[request.group_id] = place
            step.notes.append({})
            step.in_source.append(count.setdefault(request.task.source, 0))
            count[request.task.source] += 1
        for name, places in count.items():
            difficulty = self._sources[name].difficulty
            most = places * difficulty.max_resamples if difficulty.drop_zero_variance else 0
            drawn: list[Drawn] = []
            while len(drawn) < most and (one := spare(name)) is not None:
                drawn.append(one)
            self._spares.lend(number, name, places, drawn)

    def retried(self, request: GroupRequest, after: GroupRequest) -> None:
        """Tell that a request is another attempt at the same task."""
        step = self._steps[request.step]
        step.places[request.group_id] = step.places[after.group_id]

    def take_spare(self, request: GroupRequest) -> Drawn | None:
        """Return the next spare of a request's place; None when it has none left."""
        step = self._steps[request.step]
        place = step.in_source[step.places[request.group_id]]
        return self._spares.take(request.step, request.task.source, place)

    def take_returned(self, name: str, avoid: Collection[int]) -> Drawn | None:
        """Return a spare that was not needed, whose item is not in `avoid` and may come."""
        pool = self.pools.get(name)
        may_come = None if pool is None else pool.difficulty.eligible
        return self._spares.take_returned(name, avoid, may_come)

    def num_returned(self, name: str) -> int:
        """Return how many of a source's draws came back and wait to be drawn again."""
        return self._spares.num_returned(name)

    def graded(self, request: GroupRequest, summary: GroupSummary) -> bool:
        """Take in a group that has a valid rollout; return whether to replace it by a fresh task.

        It counts once its step was trained.
        """
        source = self._sources[request.task.source]
        if source.name not in self._kept:
            return False
        step = self._steps[request.step]
        notes = step.notes[step.places[request.group_id]]
        resampled = sum(
            note["verdict"] == Verdict.RESAMPLE
            for group_id, note in notes.items()
            if group_id != request.group_id
        )
        verdict = judge(summary, source.difficulty, resampled=resampled)
        threshold = eval_settings(self._cfg, source).pass_threshold
        notes[request.group_id] = {
            "source": source.name,
            "task_id": request.task.task_id,
            "pass_rate": float(np.mean([r >= threshold for r in summary.rewards])),
            "rollouts": len(summary.rewards),
            "verdict": verdict,
        }
        return verdict is Verdict.RESAMPLE

    def not_replaced(self, request: GroupRequest) -> None:
        """Tell that there was no fresh task for a group, so that it is trained after all."""
        step = self._steps[request.step]
        step.notes[step.places[request.group_id]][request.group_id]["verdict"] = Verdict.KEEP

    def trained(self, step: int) -> None:
        """Let the sources hear what the groups of `step` said. Steps come in rising order."""
        heard = self._steps.pop(step)
        self._spares.end(step)
        notes = [note for place in heard.notes for note in place.values()]
        for name, pool in self.pools.items():
            pool.observe(
                step,
                [
                    Observation(
                        item=heard.items[note["task_id"]],
                        pass_rate=note["pass_rate"],
                        rollouts=note["rollouts"],
                    )
                    for note in notes
                    if note["source"] == name and note["task_id"] in heard.items
                ],
            )
        for note in notes:
            self._kept[note["source"]] += note["verdict"] == Verdict.KEEP
            if (curriculum := self._curricula.get(note["source"])) is not None:
                curriculum.observe(level_of(note["task_id"]), note["pass_rate"])

    def take_warnings(self) -> tuple[Widened, ...]:
        """Return what the windows warn of since the last call."""
        found = [pool.difficulty.take_warning() for pool in self.pools.values()]
        return tuple(warning for warning in found if warning is not None)

    def snapshot(self, name: str) -> SourceDifficulty | None:
        """Return what a source's difficulty looks like; None where nothing follows the policy."""
        if name not in self._kept:
            return None
        drops = self._sources[name].difficulty.drop_zero_variance
        return SourceDifficulty(
            items=self.pools[name].difficulty.snapshot() if name in self.pools else None,
            curriculum=self._curricula[name].snapshot() if name in self._curricula else None,
            kept=self._kept[name] if drops else None,
        )

    def state_dict(self) -> FeedbackState:
        """Return what was heard and not yet taken in, and where the curricula stand."""
        return {
            "steps": {
                str(number): {
                    "places": dict(step.places),
                    "in_source": list(step.in_source),
                    "levels": dict(step.levels),
                    "items": dict(step.items),
                    "notes": [{g: n.copy() for g, n in place.items()} for place in step.notes],
                }
                for number, step in self._steps.items()
            },
            "curricula": {n: c.state_dict() for n, c in self._curricula.items()},
            "kept": dict(self._kept),
            "spares": self._spares.state_dict(),
        }

    def forget(self, name: str) -> None:
        """Drop spares, and what groups in flight will say, of a source whose items are others."""
        self._spares.forget(name)
        for step in self._steps.values():
            step.items = {
                task: item for task, item in step.items.items() if not task.startswith(f"{name}/")
            }

    def load_state_dict(self, state: FeedbackState) -> None:
        """Go on where another stopped."""
        self._steps = {int(number): _Step(**step) for number, step in state["steps"].items()}
        for name, curriculum in self._curricula.items():
            curriculum.load_state_dict(state["curricula"][name])
        self._kept = dict(state["kept"])
        self._spares.load_state_dict(state["spares"])


def open_pool(cfg: SourceConfig, source: Source, seed: int) -> LivePool | None:
    """Return the pool of a source with a window on its items; None for another source.

    Raises:
        ConfigError: the window asks for more items than there are.
    """
    if cfg.difficulty.window is None or cfg.data.curriculum.start is not None:
        return None
    least = cfg.difficulty.min_live
    if least is not None and least > source.size:
        raise ConfigError(
            Problem(
                where=f"sources.{cfg.name}.difficulty.min_live",
                what=f"is {least}, but the source has {source.size} training items",
                fix=f"Lower it to {source.size} or less.",
            )
        )
    difficulty = Difficulty(cfg.name, cfg.difficulty, source.size, source.offline_rates())
    return LivePool(cfg.name, difficulty, seed)


def open_pools(cfg: RunConfig, sources: Mapping[str, Source]) -> dict[str, LivePool]:
    """Return the pools of all sources that have one; ConfigError has the problems of all."""
    pools: dict[str, LivePool] = {}
    problems: list[Problem] = []
    for source in cfg.sources:
        try:
            if (pool := open_pool(source, sources[source.name], cfg.seed)) is not None:
                pools[source.name] = pool
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return pools
