"""Checks of a reference that follows the policy."""

from collections.abc import Iterator

from configs.errors import Problem
from configs.refresh import RefreshConfig
from configs.schema import RunConfig


def check_refresh(cfg: RunConfig) -> Iterator[Problem]:
    """Yield every problem of `reference.refresh`."""
    if cfg.reference.refresh is None:
        return
    if cfg.reference.path is not None:
        yield Problem(
            where="reference.refresh",
            what="is set, but reference.path names another model, which cannot follow the policy",
            fix="Leave one of them out.",
        )
    if not cfg.needs_reference:
        yield Problem(
            where="reference.refresh",
            what="is set, but no source is held to a reference, so none is started",
            fix="Set algorithm.kl.coef or a source's kl_coef above 0, or leave it out.",
        )


def warn_refresh(cfg: RunConfig) -> Iterator[Problem]:
    """Yield what is allowed and probably not meant."""
    refresh = cfg.reference.refresh
    if refresh is None:
        return
    if refresh.every > cfg.num_steps:
        yield Problem(
            where="reference.refresh.every",
            what=f"is {refresh.every}, beyond the run's {cfg.num_steps} steps: it never comes due",
        )
    if refresh.mode == "copy" and refresh.decay != RefreshConfig(every=1).decay:
        yield Problem(
            where="reference.refresh.decay",
            what="is read by `ema` alone, and mode is copy",
            fix="Set the mode to ema, or remove the line.",
        )
