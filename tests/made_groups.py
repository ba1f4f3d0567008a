"""What the driver holds of groups, made by hand: state what a test is about, the rest is plain."""

from collections.abc import Iterable
from typing import Any

from rollouts.types import (
    Boundary,
    GroupSummary,
    RolloutError,
    RolloutStats,
    RolloutStatus,
    SampleHandle,
)

TOO_SLOW = RolloutError(boundary=Boundary.REWARD, kind="timeout", message="too slow")


def made_rollout(
    reward: float | None, tokens: int = 3, *, error: RolloutError = TOO_SLOW, **more: Any
) -> RolloutStats:
    """Return a rollout of `tokens` sampled tokens; without a reward it is invalid, by `error`."""
    given: dict[str, Any] = {
        "reward_parts": {},
        "status": RolloutStatus.INVALID if reward is None else RolloutStatus.COMPLETED,
        "error": error if reward is None else None,
    }
    return RolloutStats(reward=reward, num_completion_tokens=tokens, **(given | more))


def made_group(
    rollouts: Iterable[RolloutStats] = (),
    *,
    group_id: str = "a/train/0#e0a0",
    source: str = "a",
    version: int = 0,
    newest: int | None = None,
    samples: Iterable[SampleHandle] = (),
    **more: Any,
) -> GroupSummary:
    """Return a graded group.

    Args:
        version: the policy's that sampled it; where there were several, the oldest.
        newest: and the newest.
    """
    given: dict[str, Any] = {
        "task_id": group_id.partition("#")[0],
        "step": 1,
        "group_ref": None,
        "generate_s": 0.0,
        "grade_s": 0.0,
    }
    return GroupSummary(
        group_id=group_id,
        source=source,
        rollouts=tuple(rollouts),
        samples=tuple(samples),
        oldest_version=version,
        newest_version=version if newest is None else newest,
        **(given | more),
    )
