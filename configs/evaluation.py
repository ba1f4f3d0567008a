"""Each source's held-out evaluation: its settings, when it is due, and what is wrong with them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from configs.errors import Problem
from configs.schema import RunConfig, SourceConfig

T = TypeVar("T")
_UNIT_REWARDS = ("exact", "format", "reasoning_gym")
"""Built-in graders, which give at most 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """How one source is evaluated: its own `eval` over the run's."""

    every: int
    """Steps between evaluations; 0 for only those at start and end."""
    n: int | None
    """Held-out items asked, at most; None for all."""
    samples: int
    temperature: float
    max_tokens: int
    pass_at: tuple[int, ...]
    pass_threshold: float


def eval_settings(cfg: RunConfig, source: SourceConfig) -> EvalSettings:
    """Return how `source` is evaluated."""
    own, run, training = source.eval, cfg.eval, source.sampling
    samples = _first(own.samples, run.samples)
    return EvalSettings(
        every=_first(own.every, run.every),
        n=run.n if own.n is None else own.n,
        samples=samples,
        temperature=_first(own.temperature, run.temperature, training.temperature),
        max_tokens=_first(own.max_tokens, run.max_tokens, training.max_tokens),
        pass_at=_first(own.pass_at, run.pass_at, doublings(samples)),
        pass_threshold=_first(own.pass_threshold, run.pass_threshold),
    )


def _first(*values: T | None) -> T:
    """Return the first value that is given."""
    return next(v for v in values if v is not None)


def doublings(largest: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... below `largest`, and `largest`."""
    return (*(1 << i for i in range((largest - 1).bit_length())), largest)


def due_sources(cfg: RunConfig, step: int, *, last: bool) -> tuple[str, ...]:
    """Return the sources that are evaluated after `step`, in the recipe's order; those without
    rewards, which nothing grades, never are.

    Args:
        last: no step comes after this one.
    """
    names = tuple(s.name for s in cfg.sources if s.rewards)
    if last and cfg.eval.at_end:
        return names
    if step == 0:
        return names if cfg.eval.at_start else ()
    every = {name: eval_settings(cfg, cfg.source(name)).every for name in names}
    return tuple(n for n in names if every[n] > 0 and step % every[n] == 0)


def watched_sources(cfg: RunConfig) -> tuple[str, ...]:
    """Return the sources whose mean pass rate `eval.patience` watches: the named one, or all that
    are evaluated during training."""
    if cfg.eval.watch is not None:
        return (cfg.eval.watch,)
    return tuple(s.name for s in cfg.sources if s.rewards and eval_settings(cfg, s).every > 0)


def check_eval(cfg: RunConfig) -> Iterator[Problem]:
    """Yield every problem of the evaluation's fields, each once."""
    problems = [p for s in cfg.sources for p in _check_source(cfg, s)]
    yield from {(p.where, p.what): p for p in problems}.values()
    yield from _check_patience(cfg)


def _check_source(cfg: RunConfig, source: SourceConfig) -> Iterator[Problem]:
    settings = eval_settings(cfg, source)
    held_out, limit = source.data.held_out, cfg.model.max_model_len
    if source.eval.n is not None and source.eval.n > held_out:
        yield Problem(
            where=_where(source, "n"),
            what=f"is {source.eval.n}, but the source holds out {held_out} items",
            fix=f"Lower it to {held_out} or less, or raise the source's data.held_out.",
        )
    if settings.max_tokens >= limit and settings.max_tokens != source.sampling.max_tokens:
        yield Problem(
            where=_where(source, "max_tokens"),
            what=f"is {settings.max_tokens}, which leaves no room for a prompt within "
            f"model.max_model_len={limit}",
            fix="Lower it, or raise model.max_model_len.",
        )
    if settings.temperature == 0 and settings.samples > 1:
        yield Problem(
            where=_where(source, "temperature"),
            what=f"is 0, so all {settings.samples} samples of an item would be the same",
            fix="Raise it, or set samples to 1.",
        )
    yield from _check_pass_at(source, settings)


def _check_pass_at(source: SourceConfig, settings: EvalSettings) -> Iterator[Problem]:
    ks, where = settings.pass_at, _where(source, "pass_at")
    whose = "" if source.eval.samples is None else f" of `{source.name}`"
    if any(k > settings.samples for k in ks):
        yield Problem(
            where=where,
            what=f"asks for pass@{max(ks)}, but an item{whose} has {settings.samples} samples",
            fix=f"Lower it to {settings.samples} or less, or raise samples.",
        )
    if len(set(ks)) < len(ks):
        yield Problem(where=where, what=f"{list(ks)} names a k twice", fix="Name each k once.")


def _check_patience(cfg: RunConfig) -> Iterator[Problem]:
    names, watch = [s.name for s in cfg.sources], cfg.eval.watch
    if watch is not None and watch not in names:
        yield Problem(
            where="eval.watch",
            what=f"there is no source `{watch}`",
            fix=f"Name one of {', '.join(names)}, or leave it empty for the mean.",
        )
        return
    periodic = {s.name for s in cfg.sources if s.rewards and eval_settings(cfg, s).every > 0}
    if cfg.eval.patience > 0 and not periodic & set(watched_sources(cfg)):
        who = f"`{watch}`" if watch else "no source"
        yield Problem(
            where="eval.patience",
            what=f"is {cfg.eval.patience}, but {who} is "
            f"{'not ' if watch else ''}evaluated during training",
            fix="Set eval.every, or the source's eval.every, above 0.",
        )


def warn_eval(cfg: RunConfig) -> Iterator[Problem]:
    """Yield what is allowed and probably not meant, each once."""
    found = [p for s in cfg.sources for p in _warn_source(cfg, s)]
    yield from {(p.where, p.what): p for p in found}.values()
    if cfg.eval.watch is not None and cfg.eval.patience == 0:
        yield Problem(
            where="eval.watch",
            what="does nothing while eval.patience is 0",
            fix="Set eval.patience, or remove the line.",
        )


def _warn_source(cfg: RunConfig, source: SourceConfig) -> Iterator[Problem]:
    settings = eval_settings(cfg, source)
    if settings.every > cfg.num_steps:
        yield Problem(
            where=_where(source, "every"),
            what=f"is {settings.every}, beyond the run's {cfg.num_steps} steps: it never comes due",
        )
    known = source.objective.combine != "formula" and all(
        r.use in _UNIT_REWARDS for r in source.rewards
    )
    largest = sum(max(0.0, r.weight) for r in source.rewards)
    if known and source.rewards and settings.pass_threshold > largest + 1e-9:
        yield Problem(
            where=_where(source, "pass_threshold"),
            what=f"is {settings.pass_threshold:g}, but the rewards of `{source.name}` sum to at "
            f"most {largest:g}: no rollout passes",
            fix=f"Set sources.{source.name}.eval.pass_threshold to {largest:g} or less.",
        )


def _where(source: SourceConfig, field: str) -> str:
    """Name the field that holds the value: the source's own, or the run's."""
    own = getattr(source.eval, field) is not None
    return f"sources.{source.name}.eval.{field}" if own else f"eval.{field}"
