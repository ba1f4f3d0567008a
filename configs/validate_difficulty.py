"""Checks of a source's difficulty window, zero-variance filter and curriculum."""

from collections.abc import Iterator

from pydantic import BaseModel

from configs.difficulty import CurriculumConfig, DifficultyConfig
from configs.errors import Problem
from configs.schema import RunConfig, SourceConfig

_FILTER = ("drop_zero_variance", "max_resamples")
_WINDOW = ("window",)


def check_difficulty(cfg: RunConfig, source: SourceConfig) -> Iterator[Problem]:
    """Yield every problem that shows without the source's data."""
    at, difficulty = f"sources.{source.name}.difficulty", source.difficulty
    yield from _check_window(at, difficulty)
    for where, size in _group_sizes(cfg, source):
        yield from _check_group_size(at, difficulty, where, size)
    yield from _check_estimate(at, difficulty)
    yield from _check_items(at, source)
    yield from _check_filter(at, difficulty)
    yield from _check_curriculum(source)


def warn_difficulty(cfg: RunConfig, source: SourceConfig) -> Iterator[Problem]:
    """Yield what is allowed and probably not meant."""
    at, difficulty = f"sources.{source.name}.difficulty", source.difficulty
    if difficulty.window is None:
        return
    if difficulty.window == (0.0, 1.0):
        yield Problem(where=f"{at}.window", what="is [0, 1]: every pass rate is within")
    if source.data.curriculum.start is not None:
        return
    for key, every, limit in (
        ("hard", difficulty.hard.retry_every, difficulty.hard.park_after),
        ("easy", difficulty.easy.retry_every, difficulty.easy.retire_after),
    ):
        if every > cfg.num_steps and limit > 0:
            yield Problem(
                where=f"{at}.{key}.retry_every",
                what=f"is {every}, beyond the run's {cfg.num_steps} steps: nothing is tried again",
            )


def _group_sizes(cfg: RunConfig, source: SourceConfig) -> Iterator[tuple[str | None, int]]:
    """Yield each size that the source's groups have at some stage, and the stage's field that sets
    it; None for the source's own."""
    given = [stage.group_size.get(source.name) for stage in cfg.stages]
    if not given or None in given:
        yield None, source.group_size
    for index, size in enumerate(given):
        if size is not None:
            yield f"stages.{index}.group_size.{source.name}", size


def _check_window(at: str, cfg: DifficultyConfig) -> Iterator[Problem]:
    if cfg.window is not None and cfg.window[0] > cfg.window[1]:
        low, high = cfg.window
        yield Problem(
            where=f"{at}.window",
            what=f"goes from {low:g} to {high:g}: no pass rate is within",
            fix=f"Write it as [{high:g}, {low:g}].",
        )


def _check_group_size(
    at: str, cfg: DifficultyConfig, stage: str | None, size: int
) -> Iterator[Problem]:
    """Check what groups of one size can tell; where a stage sets it, the stage is named."""
    field = stage or "group_size"
    low, high = cfg.window or (0.0, 1.0)
    if cfg.window is not None and size == 1:
        yield Problem(
            where=stage or f"{at}.window",
            what=f"{field} is 1, so a group's pass rate is 0 or 1 and {at}.window cannot judge it",
            fix=f"Set {field} to 2 or more, or remove the window.",
        )
    elif low <= high and not any(low <= k / size <= high for k in range(size + 1)):
        yield Problem(
            where=stage or f"{at}.window",
            what=f"[{low:g}, {high:g}] holds no pass rate that a group of {size} can have",
            fix=f"Widen {at}.window, or raise {field}.",
        )
    if cfg.drop_zero_variance and size == 1:
        yield Problem(
            where=stage or f"{at}.drop_zero_variance",
            what=f"{field} is 1, and {at}.drop_zero_variance on: the rewards of such a group are "
            "always all equal",
            fix=f"Set {field} to 2 or more, or turn drop_zero_variance off.",
        )


def _check_estimate(at: str, cfg: DifficultyConfig) -> Iterator[Problem]:
    if cfg.decay == 1:
        yield Problem(
            where=f"{at}.decay",
            what="is 1: an item's first visit would count for ever",
            fix="Set it below 1.",
        )
    if cfg.estimate == "mean" and cfg.decay != DifficultyConfig().decay:
        yield Problem(
            where=f"{at}.decay",
            what="is set, but `estimate: mean` has no decay",
            fix="Remove it, or use `estimate: ema`.",
        )


def _check_items(at: str, source: SourceConfig) -> Iterator[Problem]:
    """Check what the window does to single items."""
    cfg, data = source.difficulty, source.data
    unused = _changed(cfg, DifficultyConfig(), besides=(*_WINDOW, *_FILTER))
    if data.curriculum.start is not None:
        for field in unused:
            yield Problem(
                where=f"{at}.{field}",
                what="is set, but under a curriculum the window moves the level and not the items",
                fix="Remove it, or the curriculum.",
            )
        return
    if cfg.window is None:
        for field in unused:
            yield Problem(
                where=f"{at}.{field}",
                what="is set, but there is no window",
                fix=f"Set {at}.window, e.g. to [0.15, 0.85], or remove it.",
            )
        return
    if cfg.easy.retire_after == 0 and cfg.hard.park_after == 0:
        yield Problem(
            where=f"{at}.window",
            what="does nothing: easy.retire_after and hard.park_after are both 0",
            fix="Set one of them above 0, or remove the window.",
        )
    if data.procedural is not None and cfg.min_live is not None and cfg.min_live > data.size:
        yield Problem(
            where=f"{at}.min_live",
            what=f"is {cfg.min_live}, but the source has {data.size} training items",
            fix=f"Lower it to {data.size} or less.",
        )
    if data.procedural is not None and cfg.pass_rate_column is not None:
        yield Problem(
            where=f"{at}.pass_rate_column",
            what=f"is `{cfg.pass_rate_column}`, but items of `procedural` have no columns",
            fix="Remove it.",
        )


def _check_filter(at: str, cfg: DifficultyConfig) -> Iterator[Problem]:
    if not cfg.drop_zero_variance:
        if cfg.max_resamples != DifficultyConfig().max_resamples:
            yield Problem(
                where=f"{at}.max_resamples",
                what="is set, but drop_zero_variance is off",
                fix="Turn it on, or remove max_resamples.",
            )
        return
    if cfg.max_resamples == 0:
        yield Problem(
            where=f"{at}.max_resamples",
            what="is 0, so drop_zero_variance replaces nothing",
            fix="Raise it, or turn drop_zero_variance off.",
        )


def _check_curriculum(source: SourceConfig) -> Iterator[Problem]:
    at, data = f"sources.{source.name}.data.curriculum", source.data
    cfg = data.curriculum
    if cfg.start is None:
        for field in _changed(cfg, CurriculumConfig()):
            yield Problem(
                where=f"{at}.{field}",
                what="is set, but there is no curriculum without a start",
                fix=f"Set {at}.start, e.g. to 0, or remove it.",
            )
        return
    if data.procedural is None:
        yield Problem(
            where=at,
            what="is set, but only `procedural` data have levels",
            fix="Remove it.",
        )
    if source.difficulty.window is None:
        yield Problem(
            where=at,
            what="has no window to follow",
            fix=f"Set sources.{source.name}.difficulty.window, e.g. to [0.3, 0.8].",
        )
    if cfg.max_level is not None and cfg.start > cfg.max_level:
        yield Problem(
            where=f"{at}.start",
            what=f"is {cfg.start}, above max_level={cfg.max_level}",
            fix="Lower it, or raise max_level.",
        )


def _changed(given: BaseModel, default: BaseModel, besides: tuple[str, ...] = ()) -> list[str]:
    """Return the fields, dotted in sections, that differ from their defaults."""
    found: list[str] = []
    for field in type(given).model_fields:
        value, usual = getattr(given, field), getattr(default, field)
        if field in besides or value == usual:
            continue
        below = isinstance(value, BaseModel)
        found += [f"{field}.{f}" for f in _changed(value, usual)] if below else [field]
    return found
