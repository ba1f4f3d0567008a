"""Checks of who gets how much of the batch, and when: weights, limits, stages, live edits."""

import difflib
import math
from collections.abc import Iterator, Mapping

from configs.errors import Problem
from configs.mix import StageConfig, UntilConfig
from configs.schema import RunConfig, SourceConfig

FIGURES = ("pass_rate", "reward_mean")
"""Figures of an evaluation that may end a stage."""


def check_mix(cfg: RunConfig) -> Iterator[Problem]:
    """Yield every problem with weights, limits and stages."""
    yield from check_weights(cfg, {})
    yield from _check_limits(cfg)
    if cfg.mix.max_wait_s is not None and cfg.mix.max_wait_s >= cfg.health.generate_s:
        yield Problem(
            where="mix.max_wait_s",
            what=f"is {cfg.mix.max_wait_s:g}, but the run ends when a step's groups take "
            f"health.generate_s={cfg.health.generate_s:g}",
            fix="Lower it, or raise health.generate_s.",
        )
    reached = 0
    for index, stage in enumerate(cfg.stages):
        at, last = f"stages.{index}", index == len(cfg.stages) - 1
        yield from _check_content(cfg, stage, at)
        if stage.until is None:
            if not last:
                yield Problem(
                    where=f"{at}.until",
                    what="is missing, so no later stage would ever begin",
                    fix="Only the last stage may do without.",
                )
            continue
        yield from _check_until(cfg, stage.until, f"{at}.until", last=last)
        if stage.until.step is not None:
            if stage.until.step <= reached:
                yield Problem(
                    where=f"{at}.until.step",
                    what=f"is {stage.until.step}, not after the {reached} of an earlier stage: "
                    "the stage would have no step",
                    fix="Let the steps rise from stage to stage.",
                )
            reached = max(reached, stage.until.step)


def check_weights(
    cfg: RunConfig, edited: Mapping[str, float | None], *, step: int = 1
) -> Iterator[Problem]:
    """Yield a problem for each part of the run, from `step` on, that its weights cannot fill.

    Args:
        edited: live edits: a weight by source, over those of recipe and stages.
    """
    fixed = {name: weight for name, weight in edited.items() if weight is not None}
    for where, weights in _declared(cfg, step):
        live = [s for s in cfg.sources if (weights | fixed)[s.name] > 0]
        if not live:
            yield Problem(
                where=where,
                what="no source has a weight above 0, so there is nothing to train on",
                fix="Give at least one source a positive weight.",
            )
        elif (room := sum(_max_share(s) for s in live)) < 1 - 1e-12:
            names = ", ".join(s.name for s in live)
            yield Problem(
                where=where,
                what=f"limits.max_share allows {names} only {room:.3g} of a step together",
                fix="Raise limits.max_share, or give another source a positive weight.",
            )


def _declared(cfg: RunConfig, step: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield where, and the weights, of each part of the run that a step from `step` on may be in.

    A ramp's steps have every source that is live at its end, so they need no look of their own.
    """
    own = {s.name: s.weight for s in cfg.sources}
    if not cfg.stages:
        yield "sources", own
    last_steps = [s.until.step if s.until and s.until.step else None for s in cfg.stages[:-1]]
    over = [index for index, last in enumerate(last_steps) if last is not None and last < step]
    for index in range(max(over, default=-1) + 1, len(cfg.stages)):
        yield f"stages.{index}.weights", own | cfg.stages[index].weights


def _max_share(source: SourceConfig) -> float:
    return 1.0 if source.limits.max_share is None else source.limits.max_share


def draws_allowed(source: SourceConfig) -> int | None:
    """Return how often the limits let a source be drawn from; None for no bound, or for one that
    depends on rows not read yet."""
    bounds = [source.limits.max_items]
    if source.limits.max_epochs is not None and source.data.procedural is not None:
        bounds.append(source.limits.max_epochs * source.data.size)
    return min((b for b in bounds if b is not None), default=None)


def _check_limits(cfg: RunConfig) -> Iterator[Problem]:
    asked = cfg.num_steps * cfg.batch.groups_per_step
    allowed = [draws_allowed(s) for s in cfg.sources]
    known = [count for count in allowed if count is not None]
    if cfg.mix.on_exhausted == "renormalise" and len(known) == len(allowed) and sum(known) < asked:
        yield Problem(
            where="sources",
            what=f"their limits allow {sum(known)} groups in all; {cfg.num_steps} steps of "
            f"{cfg.batch.groups_per_step} ask for {asked}",
            fix="Raise limits.max_items or max_epochs, lower num_steps, or set mix.on_exhausted to "
            "stop or repeat.",
        )


def _check_content(cfg: RunConfig, stage: StageConfig, at: str) -> Iterator[Problem]:
    if not stage.weights and not stage.group_size:
        yield Problem(
            where=at,
            what="changes nothing: it has neither weights nor group_size",
            fix="Give weights of the sources that this stage is about.",
        )
    for key, given in (("weights", stage.weights), ("group_size", stage.group_size)):
        for name in given:
            yield from _check_source(cfg, name, f"{at}.{key}.{name}")
    if stage.ramp == "linear":
        if stage.until is None or stage.until.step is None:
            yield Problem(
                where=f"{at}.ramp",
                what="is linear, but the stage has no last step to reach its weights at",
                fix="Give until.step, or set the ramp to none.",
            )
        if not stage.weights:
            yield Problem(where=f"{at}.ramp", what="is linear, but the stage has no weights")


def _check_source(cfg: RunConfig, name: str, where: str) -> Iterator[Problem]:
    names = [s.name for s in cfg.sources]
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    yield Problem(
        where=where,
        what=f"there is no source `{name}`",
        fix=f"Did you mean `{near[0]}`?" if near else f"Sources: {', '.join(names)}.",
    )


def _check_until(cfg: RunConfig, until: UntilConfig, at: str, *, last: bool) -> Iterator[Problem]:
    if (until.step is None) == (until.metric is None):
        yield Problem(
            where=at,
            what="has neither a step nor a metric" if until.step is None else "has both",
            fix="Give exactly one of the two.",
        )
        return
    bounds = [b for b in (until.gte, until.lte) if b is not None]
    if until.metric is None:
        if bounds or until.patience != 1:
            yield Problem(where=at, what="gte, lte and patience go with a metric, not a step")
        return
    if len(bounds) != 1:
        yield Problem(
            where=at,
            what=f"{until.metric} has {'both gte and lte' if bounds else 'no threshold'}",
            fix="Give exactly one of gte and lte.",
        )
    if last:
        yield Problem(
            where=at,
            what="ends the last stage by a metric, and nothing follows it",
            fix="Remove it, or add a stage.",
        )
    yield from _check_metric(cfg, until.metric, bounds, f"{at}.metric")


def _check_metric(
    cfg: RunConfig, metric: str, bounds: list[float], where: str
) -> Iterator[Problem]:
    head, _, rest = metric.partition("/")
    name, _, figure = rest.rpartition("/")
    if head != "eval" or figure not in FIGURES:
        shown = " and ".join(f"eval/<source>/{f}" for f in FIGURES)
        yield Problem(where=where, what=f"`{metric}` is none of {shown}")
        return
    yield from _check_source(cfg, name, where)
    if cfg.eval.every == 0:
        yield Problem(
            where=where,
            what=f"`{metric}` is never measured during training: eval.every is 0",
            fix="Set eval.every.",
        )
    if figure == "pass_rate" and any(not 0 <= bound <= 1 for bound in bounds):
        yield Problem(where=where, what="a pass rate lies between 0 and 1; the threshold does not")


def warn_mix(cfg: RunConfig) -> Iterator[Problem]:
    """Yield what is allowed and probably not meant."""
    parts = [weights for _, weights in _declared(cfg, 1)]
    for source in cfg.sources:
        at, name = f"sources.{source.name}", source.name
        shares = [w[name] / sum(w.values()) for w in parts if sum(w.values()) > 0]
        groups = max(shares, default=0.0) * cfg.batch.groups_per_step
        if groups == 0:
            yield Problem(
                where=f"{at}.weight",
                what="is 0, and no stage raises it: only a live edit would train on the source",
            )
        elif groups < 1:
            steps = math.ceil(1 / groups - 1e-9)
            yield Problem(
                where=f"{at}.weight",
                what=f"gives {groups:.2g} groups a step: about {steps - 1} of {steps} steps have "
                "none of this source",
                fix="Raise batch.groups_per_step or the weight, if each step should have it.",
            )
    yield from _warn_ahead(cfg)
    if cfg.mix.on_exhausted != "renormalise" and not any(
        s.limits.max_epochs or s.limits.max_items for s in cfg.sources
    ):
        yield Problem(
            where="mix.on_exhausted",
            what=f"is {cfg.mix.on_exhausted}, but no source has limits that it could use up",
        )
    for index, stage in enumerate(cfg.stages):
        if stage.until and stage.until.step and stage.until.step > cfg.num_steps:
            yield Problem(
                where=f"stages.{index}.until.step",
                what=f"is {stage.until.step}, beyond the run's {cfg.num_steps} steps",
            )
        alone = {s.name for s in cfg.sources if s.learns_alone}
        for name, size in stage.group_size.items():
            if size == 1 and name not in alone:
                yield Problem(
                    where=f"stages.{index}.group_size.{name}",
                    what="is 1: a group of one has advantage 0, so the source trains nothing",
                )


def _warn_ahead(cfg: RunConfig) -> Iterator[Problem]:
    for source in cfg.sources:
        if source.max_staleness is not None and source.max_staleness >= cfg.num_steps:
            yield Problem(
                where=f"sources.{source.name}.max_staleness",
                what=f"is {source.max_staleness}: all of the run's {cfg.num_steps} steps would be "
                "sampled by the starting policy",
            )
