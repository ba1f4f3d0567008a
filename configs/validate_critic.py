"""Checks of advantage estimators' scopes and arguments, and of the critic."""

from collections.abc import Iterator

from pydantic import ValidationError

from configs.errors import Problem
from configs.estimators import GaeConfig, traits
from configs.schema import RunConfig, SourceConfig
from configs.validate_companions import check_companion


def check_estimator(cfg: RunConfig, source: SourceConfig) -> Iterator[Problem]:
    """Yield what a source's advantage estimator contradicts."""
    at, use = f"sources.{source.name}", source.advantage.use
    known = traits(use)
    if source.scope not in known.scopes:
        yield Problem(
            where=f"{at}.advantage_scope",
            what=f"is {source.scope}, over which `{use}` normalises nothing: it knows no group",
            fix=f"Set it to {' or '.join(known.scopes)}, or remove the line.",
        )
    if known.centred and source.difficulty.drop_zero_variance:
        yield Problem(
            where=f"{at}.difficulty.drop_zero_variance",
            what=f"is on, but under `{use}` groups of equal rewards teach too",
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
