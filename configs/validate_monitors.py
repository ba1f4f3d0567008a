"""Checks of gold graders, of what the monitors are told of a source, and of their thresholds."""

from collections.abc import Iterator

from configs.errors import Problem
from configs.monitors import MonitorsConfig
from configs.schema import RunConfig, SourceConfig


def check_monitors(source: SourceConfig) -> Iterator[Problem]:
    """Yield every problem of a source's `gold` and `watch`."""
    at, parts = f"sources.{source.name}", [r.name for r in source.rewards]
    compare, form = source.watch.compare, source.watch.format
    named = [("watch.format", form)] if form else []
    named += [("watch.compare", name) for name in compare or ()]
    for field, name in named:
        if name not in parts:
            yield Problem(
                where=f"{at}.{field}",
                what=f"there is no part `{name}` of the reward",
                fix=f"Name one of {', '.join(parts)}.",
            )
    if compare and compare[0] == compare[1]:
        yield Problem(where=f"{at}.watch.compare", what="names one part twice")
    if source.gold is not None and source.gold.weight == 0:
        yield Problem(where=f"{at}.gold.weight", what="is 0, so every gold score would be 0")


def warn_monitors(cfg: RunConfig) -> Iterator[Problem]:
    """Yield what is allowed and probably not meant."""
    monitors = cfg.monitors
    blind = {
        "gold": all(s.gold is None for s in cfg.sources),
        "disagreement": all(s.watch.compare is None for s in cfg.sources),
        "kl": not cfg.needs_reference,
    }
    needs = {
        "gold": "no source has a `gold` grader",
        "disagreement": "no source has `watch.compare`",
        "kl": "no reference runs",
    }
    for name, nothing in blind.items():
        action = getattr(monitors, name).action
        if nothing and getattr(monitors, name).enabled and action != "warn":
            yield Problem(
                where=f"monitors.{name}.action",
                what=f"is {action}, but {needs[name]}: it sees nothing",
            )
    acting = [name for name in _names(cfg) if _acts(monitors, name)]
    for name in acting:
        if not getattr(monitors, name).enabled:
            yield Problem(
                where=f"monitors.{name}.action",
                what=f"is {getattr(monitors, name).action}, but `enabled` is false: it does not "
                "watch",
            )
    earliest = 2 * monitors.window + monitors.persist - 1
    compares = [
        name
        for name in acting
        if name not in ("tampering", "canary")  # which only count
        and getattr(monitors, name).enabled
    ]
    if compares and earliest > cfg.num_steps:
        yield Problem(
            where="monitors.window",
            what=f"is {monitors.window}, so no alarm comes before step {earliest}, and the run has "
            f"{cfg.num_steps}",
        )
    for source in cfg.sources:
        gold = source.gold
        if gold is not None and gold.fraction * source.group_size < 0.25:
            yield Problem(
                where=f"sources.{source.name}.gold.fraction",
                what=f"is {gold.fraction:g}: of four groups of {source.group_size}, gold sees less "
                "than one rollout",
            )


def _acts(monitors: MonitorsConfig, name: str) -> bool:
    return getattr(getattr(monitors, name), "action", "warn") != "warn"


def _names(cfg: RunConfig) -> tuple[str, ...]:
    return tuple(type(cfg.monitors).model_fields)
