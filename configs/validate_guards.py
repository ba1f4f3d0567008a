"""Checks of the stability guards against the rest of the recipe."""

from collections.abc import Iterator

from configs.errors import Problem
from configs.schema import RunConfig


def check_guards(cfg: RunConfig) -> Iterator[Problem]:
    """Yield every problem of the guards, and of the monitors' actions."""
    run = cfg.guards
    if run.warmup > run.window:
        yield Problem(
            where="guards.warmup",
            what=f"is {run.warmup}, more than guards.window={run.window} steps, which are all that "
            "a guard looks at",
            fix="Lower it, or raise guards.window.",
        )
    asked = actions(cfg, "rollback")
    if asked and not cfg.checkpoint.every:
        yield Problem(
            where=f"{asked[0]}.action",
            what="is rollback, but checkpoint.every is 0, so there is nothing to go back to",
            fix="Set checkpoint.every, or another action.",
        )
    if asked and not run.max_rollbacks:
        yield Problem(
            where="guards.max_rollbacks",
            what=f"is 0, but {asked[0]}.action is rollback",
            fix="Raise it, or set the action to stop.",
        )


def warn_guards(cfg: RunConfig) -> Iterator[Problem]:
    """Yield what is allowed and probably not meant."""
    if cfg.guards.kl.action != "warn" and not cfg.needs_reference:
        yield Problem(
            where="guards.kl.action",
            what=f"is {cfg.guards.kl.action}, but no reference runs: it sees nothing",
        )


def actions(cfg: RunConfig, action: str) -> list[str]:
    """Return the fields of the guards and monitors whose action it is."""
    sections = (("guards", cfg.guards), ("monitors", cfg.monitors))
    return [
        f"{name}.{field}"
        for name, section in sections
        for field in type(section).model_fields
        if getattr(getattr(section, field), "action", "") == action
    ]
