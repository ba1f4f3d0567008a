"""The sandbox that a recipe asks for, looked for on the driver's machine before any actor starts.

Every grader process chooses again on its own node, and does not start where it finds less.
"""

from configs.errors import ConfigError, Problem
from configs.graders.union import GraderConfig
from configs.schema import RunConfig
from rewards.registry import children
from rewards.sandbox.result import Tier
from rewards.sandbox.tiers import Probe, choose_tier

SANDBOXED = frozenset({"python", "code_tests"})
"""Graders that run code."""


def needs_sandbox(cfg: RunConfig) -> bool:
    """Return whether some grader of the recipe runs code."""
    parts = [r.definition for s in cfg.sources for r in s.rewards]
    golds = [s.gold.grader for s in cfg.sources if s.gold is not None]
    return any(map(_runs_code, [*parts, *golds]))


def _runs_code(cfg: GraderConfig) -> bool:
    return cfg.type in SANDBOXED or any(_runs_code(child) for _, child in children(cfg))


def find_tier(cfg: RunConfig) -> Probe | None:
    """Return the tier that the run's graders get here; None where none of them runs code.

    Raises:
        ConfigError: none as strong as `reward.sandbox.require` holds.
    """
    return choose_tier(cfg.reward.sandbox.require) if needs_sandbox(cfg) else None


def validate_sandbox(cfg: RunConfig) -> list[Problem]:
    """Return why the recipe's sandbox cannot be had here."""
    try:
        find_tier(cfg)
    except ConfigError as error:
        return list(error.problems)
    return []


def describe(found: Probe) -> str:
    """Return the line that a run shows at its start."""
    weak = "; it stops no code that means harm" if found.tier is Tier.RLIMITS else ""
    return f"sandbox of tested code: {found}{weak}"
