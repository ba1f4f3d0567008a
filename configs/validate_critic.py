"""Checks of advantage estimators' scopes and arguments, and of the critic."""

from collections.abc import Iterator

from pydantic import ValidationError

from configs.errors import Problem
from configs.estimators import GaeConfig, traits
from configs.schema import RunConfig, SourceConfig
from configs.training import OptimizerConfig
from configs.validate_companions import check_companion


def check_estimator(cfg: RunConfig, source: SourceConfig) -> Iterator[Problem]:
    """Yield what a source's advantage estimator contradicts."""
    at, use = f"sources.{source.name}", source.advantage.use
    known = traits(use)
    if source.scope not in known.scopes:
        yield Problem(
            where=f"{at}.advantage_scope",
            what=f"is {source.scope}, over which `{use}` normalises nothing",
            fix=f"Set it to {' or '.join(known.scopes)}, or remove the line.",
        )
    if known.centred and source.difficulty.drop_zero_variance:
        yield Problem(
            where=f"{at}.difficulty.drop_zero_variance",
            what=f"is on, but under `{use}` groups of equal rewards teach too",
            fix="Turn it off.",
        )
    if use == "none" and source.distill is None and source.difficulty.drop_zero_variance:
        yield Problem(
            where=f"{at}.difficulty.drop_zero_variance",
            what="is on, but under `none`, without a teacher, no group ever has an advantage",
            fix="Turn it off.",
        )
    if known.values:
        yield from _check_gae(cfg, source)


def _check_gae(cfg: RunConfig, source: SourceConfig) -> Iterator[Problem]:
    at, kl = f"sources.{source.name}", cfg.algorithm.kl
    try:
        GaeConfig.model_validate(source.advantage.args)
    except ValidationError as error:
        for wrong in error.errors():
            yield Problem(
                where=f"{at}.advantage.args.{'.'.join(map(str, wrong['loc']))}",
                what=wrong["msg"],
                fix="`gae` takes gamma, above 0 and at most 1, and lam, from 0 to 1.",
            )
    if cfg.kl_coef(source) > 0 and kl.placement == "reward" and kl.target is not None:
        yield Problem(
            where="algorithm.kl.target",
            what=f"moves a coefficient that the critic of {at} needs before each step, when the "
            "trainer does not know it yet",
            fix="Remove the target, or set algorithm.kl.placement to loss.",
        )


def check_critic(cfg: RunConfig) -> Iterator[Problem]:
    """Yield what is wrong with the critic, where one is started."""
    if not cfg.needs_critic:
        return
    critic = cfg.critic
    if critic.warmup_steps and cfg.replay.save:
        yield Problem(
            where="replay.save",
            what=f"is on, but the policy learns nothing in the first {critic.warmup_steps} steps, "
            "in which the critic warms up: no replay could start before them",
            fix="Turn it off, or set critic.warmup_steps to 0.",
        )
    if critic.warmup_steps >= cfg.num_steps:
        yield Problem(
            where="critic.warmup_steps",
            what=f"is {critic.warmup_steps}, and the run has {cfg.num_steps} steps: the policy "
            "would never move",
            fix="Lower it, or raise num_steps.",
        )
    if max(critic.optimizer.betas) >= 1:
        one, other = critic.optimizer.betas
        yield Problem(
            where="critic.optimizer.betas",
            what=f"are {one:g} and {other:g}; both must be less than 1",
        )
    if critic.path is not None:
        yield from check_companion(cfg, critic.path, "critic.path")


def warn_critic(cfg: RunConfig) -> Iterator[Problem]:
    """Yield what is allowed and probably not meant."""
    critic = cfg.critic
    if not cfg.needs_critic:
        if critic != type(critic)():
            yield Problem(
                where="critic",
                what="is set, but no source's advantage is `gae`, so no critic is started",
                fix="Set advantage.use to gae, or remove the section.",
            )
        return
    others = [s.name for s in cfg.sources if not s.needs_values]
    if critic.warmup_steps and others:
        yield Problem(
            where="critic.warmup_steps",
            what=f"holds the policy still for {critic.warmup_steps} steps, in which what is "
            f"sampled of {', '.join(others)} teaches nothing",
        )
    if critic.optimizer.warmup_steps >= cfg.num_steps * cfg.batch.updates:
        yield Problem(
            where="critic.optimizer.warmup_steps",
            what="lasts the whole run: the learning rate never reaches `lr`",
        )
    clip = critic.value_clip
    if cfg.batch.updates == 1 and clip not in (None, type(critic)().value_clip):
        yield Problem(
            where="critic.value_clip",
            what="does nothing: with batch.num_minibatches=1 and one epoch each step makes one "
            "update, before which no value has moved",
            fix="Raise batch.num_minibatches or batch.epochs_per_step, or remove it.",
        )
    yield from warn_decay(critic.optimizer, "critic")


def warn_decay(optimizer: OptimizerConfig, role: str) -> Iterator[Problem]:
    """Yield a floor of a rate that never falls."""
    if optimizer.min_lr_ratio > 0 and optimizer.decay == "constant":
        yield Problem(
            where=f"{role}.optimizer.min_lr_ratio",
            what=f"does nothing: {role}.optimizer.decay is constant",
            fix="Set the decay to linear or cosine, or remove the line.",
        )
