"""What graded groups tell the sources that follow the policy.

Invariants:
- what groups of a step said is taken in when the step was trained, all at once, in the order in
  which they were dispatched: who finishes first changes nothing;
- a group that was replaced counts like the one that took its place; one without a valid rollout
  says nothing;
- a resumed run samples untrained groups again, and their second word replaces the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from configs.errors import ConfigError, Problem
from configs.evaluation import eval_settings
from configs.schema import RunConfig, SourceConfig
from mixing.difficulty.curriculum import (
    CurriculumSnapshot,
    CurriculumSource,
    CurriculumState,
    level_of,
)
from mixing.difficulty.live_pool import LivePool
from mixing.difficulty.window import (
    Difficulty,
    DifficultySnapshot,
    Observation,
    Widened,
)
from mixing.slates.slate import Candidate, Note
from mixing.sources.source import Source
from rollouts.filters import Verdict, judge
from rollouts.types import GroupSummary, Task


class FeedbackState(TypedDict):
    """Everything that was heard, as JSON; pools keep their own state."""

    levels: dict[str, dict[str, int]]
    curricula: dict[str, CurriculumState]
    kept: dict[str, int]


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
    """The windows and curricula of a run's sources, and what they hear."""

    def __init__(self, cfg: RunConfig, sources: Mapping[str, Source]):
        self._cfg = cfg
        self._sources = {s.name: s for s in cfg.sources}
        self.pools = open_pools(cfg, sources)
        self._curricula = {
            name: source.curriculum
            for name, source in sources.items()
            if isinstance(source, CurriculumSource)
        }
        self._levels: dict[int, dict[str, int]] = {}
        """Level at which each source with a curriculum is asked, by step in flight."""
        self._kept = {
            s.name: 0
            for s in cfg.sources
            if s.difficulty.drop_zero_variance or s.difficulty.window is not None
        }

    def begin(self, step: int, name: str, groups: int) -> None:
        """Tell that items of a source are drawn for `step` from now on, and how many groups."""
        if (pool := self.pools.get(name)) is not None:
            pool.begin(step)
            pool.require(groups)
        if (curriculum := self._curricula.get(name)) is not None:
            self._levels.setdefault(step, {}).setdefault(name, curriculum.level)

    def task(self, source: Source, name: str, item: int, step: int) -> Task:
        """Make an item as it is for `step`, be it planned or a replacement."""
        if isinstance(source, CurriculumSource):
            levels = self._levels.setdefault(step, {})
            return source.task_at(levels.setdefault(name, source.curriculum.level), item)
        return source.task(item)

    def judge(self, name: str, summary: GroupSummary, *, last_chance: bool) -> Note | None:
        """Return what a group that has a valid rollout says; None where nobody listens.

        Args:
            last_chance: nothing may take its place any more.
        """
        if name not in self._kept:
            return None
        source = self._sources[name]
        threshold = eval_settings(self._cfg, source).pass_threshold
        return {
            "pass_rate": float(np.mean([r >= threshold for r in summary.rewards])),
            "rollouts": len(summary.rewards),
            "verdict": judge(summary, source.difficulty, last_chance=last_chance),
        }

    def trained(self, step: int, decided: Mapping[str, Sequence[Candidate]]) -> None:
        """Let the sources hear what the groups of `step` said. Steps come in rising order.

        Args:
            decided: candidates of each source, in dispatch order.
        """
        self._levels.pop(step, None)
        for name, pool in self.pools.items():
            pool.observe(
                step,
                [
                    Observation(
                        item=c.drawn.item,
                        pass_rate=c.note["pass_rate"],
                        rollouts=c.note["rollouts"],
                    )
                    for c in decided.get(name, ())
                    if c.note is not None and c.drawn is not None
                ],
            )
        for name, candidates in decided.items():
            for c in candidates:
                if c.note is None:
                    continue
                self._kept[name] += c.note["verdict"] == Verdict.KEEP
                if (curriculum := self._curricula.get(name)) is not None:
                    curriculum.observe(level_of(c.task_id), c.note["pass_rate"])

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
        """Return where curricula stand and what was counted."""
        return {
            "levels": {str(step): dict(levels) for step, levels in self._levels.items()},
            "curricula": {n: c.state_dict() for n, c in self._curricula.items()},
            "kept": dict(self._kept),
        }

    def load_state_dict(self, state: FeedbackState) -> None:
        """Go on where another stopped."""
        self._levels = {int(step): dict(levels) for step, levels in state["levels"].items()}
        for name, curriculum in self._curricula.items():
            curriculum.load_state_dict(state["curricula"][name])
        self._kept = dict(state["kept"])


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
