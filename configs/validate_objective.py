"""Checks of the objective across fields."""

from collections.abc import Iterator

from configs.algorithm import CorrectionConfig, EntropyConfig, KLConfig
from configs.errors import Problem
from configs.estimators import traits
from configs.schema import RunConfig, SourceConfig


def check_objective(cfg: RunConfig) -> Iterator[Problem]:
    """Yield what contradicts itself."""
    algorithm = cfg.algorithm
    if algorithm.constant_tokens is not None and algorithm.aggregation != "constant":
        yield Problem(
            where="algorithm.constant_tokens",
            what=f"is {algorithm.constant_tokens}, but aggregation is {algorithm.aggregation}, "
            "which does not read it",
            fix="Set algorithm.aggregation to constant, or remove the line.",
        )
    if algorithm.kl.target is not None and not cfg.needs_reference:
        yield Problem(
            where="algorithm.kl.target",
            what="has nothing to scale: all KL coefficients are 0",
            fix="Set algorithm.kl.coef or a source's kl_coef above 0, or remove the line.",
        )


def warn_objective(cfg: RunConfig) -> Iterator[Problem]:
    """Yield what is allowed and probably not meant."""
    algorithm = cfg.algorithm
    loss = algorithm.loss.use
    if loss == "gspo" and algorithm.aggregation == "token_mean":
        yield Problem(
            where="algorithm.aggregation",
            what="is token_mean, with which gspo lets long samples weigh more than the paper does",
            fix="Set it to sequence_mean.",
        )
    if loss == "trust_region":
        if algorithm.correction != CorrectionConfig():
            yield Problem(
                where="algorithm.correction",
                what="does nothing: trust_region takes its ratio from the sampler itself",
                fix="Remove the section.",
            )
    else:
        yield from _warn_correction(cfg)
    yield from _warn_kl(cfg)
    if algorithm.entropy.target is None and algorithm.entropy.step != EntropyConfig().step:
        yield Problem(
            where="algorithm.entropy.step",
            what="does nothing: without algorithm.entropy.target the coefficient stays as it is",
            fix="Set a target, or remove the line.",
        )


def _warn_correction(cfg: RunConfig) -> Iterator[Problem]:
    given, default = cfg.algorithm.correction, CorrectionConfig()
    if given.low != default.low and given.weight != "mask":
        yield Problem(
            where="algorithm.correction.low",
            what=f"is read by `mask` alone, and weight is {given.weight}",
            fix="Set algorithm.correction.weight to mask, or remove the line.",
        )
    if given.weight != "none":
        return
    for field in ("level", "high"):
        if getattr(given, field) != getattr(default, field):
            yield Problem(
                where=f"algorithm.correction.{field}",
                what="does nothing: algorithm.correction.weight is none",
                fix="Set algorithm.correction.weight, or remove the line.",
            )
    if cfg.most_ahead and given.max_sequence_kl is None:
        yield Problem(
            where="algorithm.correction.weight",
            what=f"is none, although sampling may run {cfg.most_ahead} steps ahead of training: "
            "nothing makes up for what the policy has moved since",
            fix="Set it to truncate or mask, or set algorithm.correction.max_sequence_kl.",
        )


def _warn_kl(cfg: RunConfig) -> Iterator[Problem]:
    kl, default = cfg.algorithm.kl, KLConfig()
    if not cfg.needs_reference:
        if (kl.estimator, kl.placement) != (default.estimator, default.placement):
            yield Problem(
                where="algorithm.kl",
                what="does nothing: all KL coefficients are 0",
                fix="Set algorithm.kl.coef or a source's kl_coef above 0, or remove the section.",
            )
    elif kl.placement == "loss" and kl.estimator == "k1":
        yield Problem(
            where="algorithm.kl.estimator",
            what="is k1, whose gradient as a term of the loss is 0 on average",
            fix="Set it to k3 or straight_through, or algorithm.kl.placement to reward.",
        )
    elif kl.placement == "reward" and kl.estimator != "k1":
        yield Problem(
            where="algorithm.kl.estimator",
            what=f"is {kl.estimator}, which as a part of the reward hardly draws a policy back "
            "that is near its reference: to first order the gradient is 0 on average",
            fix="Set it to k1, or algorithm.kl.placement to loss.",
        )
    if kl.target is None and kl.gain != default.gain:
        yield Problem(
            where="algorithm.kl.gain",
            what="does nothing: without algorithm.kl.target the coefficients stay as they are",
            fix="Set a target, or remove the line.",
        )


def warn_source_objective(cfg: RunConfig, source: SourceConfig) -> Iterator[Problem]:
    """Yield what a source sets for the objective in vain."""
    for field in ("clip_low", "clip_high"):
        if getattr(source, field) is not None and cfg.batch.updates == 1:
            yield Problem(
                where=f"sources.{source.name}.{field}",
                what="does nothing: with batch.num_minibatches=1 and one epoch each step makes one "
                "update, before which the ratio is 1",
                fix="Raise batch.num_minibatches or batch.epochs_per_step, or remove it.",
            )
    others = [s for s in cfg.sources if s.scope == "batch" and s is not source]
    alone = source.advantage_scope == "batch" and not any(_share(source, s) for s in others)
    if alone and len(cfg.sources) > 1:
        yield Problem(
            where=f"sources.{source.name}.advantage_scope",
            what="is batch, but no other source's is"
            + (" whose estimator takes the same mean" if others else "")
            + ": its advantages are divided by its own standard deviation, as with `source`",
            fix="Give the others the same scope, or set it to source.",
        )
    if source.advantage_scope == "group" and source.objective.combine == "normalize_then_sum":
        yield Problem(
            where=f"sources.{source.name}.advantage_scope",
            what="is group, but `normalize_then_sum` divides the sum by its deviation over the "
            "step: it is taken for `source`",
            fix="Set it to source or batch, or remove the line.",
        )


def _share(one: SourceConfig, other: SourceConfig) -> bool:
    """Whether two sources of one scope are normalised together."""
    a, b = traits(one.advantage.use), traits(other.advantage.use)
    return (a.centred, a.values) == (b.centred, b.values)
