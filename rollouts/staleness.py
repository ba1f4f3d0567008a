"""How far sampling may run ahead of training.

Steps count from 1, and version v is the policy after v trained steps; so step s is trained by
the policy of version s - 1, and `max_staleness` 0 samples it with that very policy.
"""

from rollouts.types import GroupSummary


def may_dispatch(step: int, version: int, max_staleness: int) -> bool:
    """Return whether groups of `step` may be sampled while the engines hold `version`.

    They are trained at version step - 1, so that none of their tokens is then more than
    `max_staleness` versions old.
    """
    return step - 1 - version <= max_staleness


def max_groups_in_flight(groups_per_step: int, max_staleness: int) -> int:
    """Return how many groups may be dispatched and not yet trained, at any version."""
    return groups_per_step * (max_staleness + 1)


def staleness(summary: GroupSummary, version: int) -> int:
    """Return how many versions the group's oldest token is behind `version`, queueing included:
    the version of the policy that is about to train on it."""
    return version - summary.oldest_version
