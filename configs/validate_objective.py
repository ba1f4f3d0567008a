"""Checks of the objective across fields."""

from collections.abc import Iterator

from configs.errors import Problem
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
    loss, correction = algorithm.loss.use, algorithm.correction
    if loss == "gspo" and algorithm.aggregation == "token_mean":
        yield Problem(
            where="algorithm.aggregation",
            what="is token_mean, with which gspo lets long samples weigh more than the paper does",
            fix="Set it to sequence_mean.",
        )
    if loss == "trust_region" and "correction" in algorithm.model_fields_set:
        yield Problem(
            where="algorithm.correction",
            what="does nothing: trust_region takes its ratio from the sampler itself",
            fix="Remove the section.",
        )
    given = correction.model_fields_set
    if "low" in given and correction.weight != "mask":
        yield Problem(
            where="algorithm.correction.low",
            what=f"is read by `mask` alone, and weight is {correction.weight}",
            fix="Set algorithm.correction.weight to mask, or remove the line.",
        )
    if algorithm.kl.placement == "loss" and algorithm.kl.estimator == "k1" and cfg.needs_reference:
        yield Problem(
            where="algorithm.kl.estimator",
            what="is k1, whose gradient as a term of the loss is 0 on average",
            fix="Set it to k3 or straight_through, or algorithm.kl.placement to reward.",
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
    alone = [s.name for s in cfg.sources if s.scope == "batch"] == [source.name]
    if alone and source.advantage_scope and len(cfg.sources) > 1:
        yield Problem(
            where=f"sources.{source.name}.advantage_scope",
            what="is batch, but no other source's is: its advantages are divided by its own "
            "standard deviation, as with `source`",
            fix="Give the others the same scope, or set it to source.",
        )
