"""What a source's difficulty asks for and what its evaluation costs, before anything is started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.evaluation import eval_settings
from configs.schema import RunConfig, SourceConfig
from mixing.difficulty.window import floor_of


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPlan:
    """One source's evaluation."""

    name: str
    prompts: int
    """Asked each time; at most, where the held-out rows were not counted."""
    samples: int
    """Of each prompt."""
    every: int
    """Steps between two; 0 for only those at start and end."""
    times: int
    """In the run, start and end included."""
    completions: int
    """In the run."""
    completion_tokens_at_most: int
    """In the run, at one turn a completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DifficultyPlan:
    """One source's window, curriculum and zero-variance filter."""

    name: str
    window: tuple[float, float] | None
    group_size: int
    passes: tuple[int, int] | None
    """Fewest and most right rollouts of such a group within the window; None for no window."""
    retire_after: int | None
    """Visits above the window; None where items are not judged, as are the next four."""
    retire_retry: int | None
    """Steps after which a retired item is tried again; 0 for never."""
    park_after: int | None
    """Visits below the window."""
    park_retry: int | None
    min_live: int | None
    """Live items below which the window widens; None, too, where items were not counted."""
    levels: tuple[int, int | None] | None
    """First and highest level of a curriculum, the latter None for the dataset's own."""
    max_resamples: int | None
    """Replacements of a group without contrast; None where it is kept."""


def plan_evaluation(cfg: RunConfig, held_out: Mapping[str, int | None]) -> tuple[EvalPlan, ...]:
    """Return what evaluating each source comes to.

    Args:
        held_out: items held out of each source, None where they were not counted.
    """
    graded = (source for source in cfg.sources if source.rewards)
    return tuple(_evaluation(cfg, source, held_out[source.name]) for source in graded)


def _evaluation(cfg: RunConfig, source: SourceConfig, held_out: int | None) -> EvalPlan:
    how = eval_settings(cfg, source)
    there = source.data.held_out if held_out is None else held_out
    prompts = there if how.n is None else min(how.n, there)
    times = _times(cfg, how.every)
    return EvalPlan(
        name=source.name,
        prompts=prompts,
        samples=how.samples,
        every=how.every,
        times=times,
        completions=times * prompts * how.samples,
        completion_tokens_at_most=times * prompts * how.samples * how.max_tokens,
    )


def _times(cfg: RunConfig, every: int) -> int:
    """Count the evaluations of a run that goes to its last step."""
    during = (cfg.num_steps - 1) // every if every else 0
    at_end = cfg.eval.at_end or (every > 0 and cfg.num_steps % every == 0)
    return cfg.eval.at_start + during + at_end


def plan_difficulty(cfg: RunConfig, items: Mapping[str, int | None]) -> tuple[DifficultyPlan, ...]:
    """Return what each source asks for whose items, levels or groups are judged.

    Args:
        items: training items of each source, None where they were not counted.
    """
    return tuple(
        _difficulty(source, items.get(source.name))
        for source in cfg.sources
        if source.difficulty.window is not None or source.difficulty.drop_zero_variance
    )


def _difficulty(source: SourceConfig, size: int | None) -> DifficultyPlan:
    how, curriculum, group = source.difficulty, source.data.curriculum, source.group_size
    judged = how.window is not None and curriculum.start is None
    levels = None if curriculum.start is None else (curriculum.start, curriculum.max_level)
    return DifficultyPlan(
        name=source.name,
        window=how.window,
        group_size=group,
        passes=_passes(how.window, group),
        retire_after=how.easy.retire_after if judged else None,
        retire_retry=how.easy.retry_every if judged else None,
        park_after=how.hard.park_after if judged else None,
        park_retry=how.hard.retry_every if judged else None,
        min_live=floor_of(how, size) if judged and size else None,
        levels=levels,
        max_resamples=how.max_resamples if how.drop_zero_variance else None,
    )


def _passes(window: Sequence[float] | None, group: int) -> tuple[int, int] | None:
    if window is None:
        return None
    within = [k for k in range(group + 1) if window[0] <= k / group <= window[1]]
    return (within[0], within[-1]) if within else None
