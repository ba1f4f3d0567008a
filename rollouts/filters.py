"""Which graded groups are worth a place in a step."""

from enum import StrEnum

import numpy as np

from configs.schema import DifficultyConfig
from rollouts.advantages import all_same
from rollouts.types import GroupSummary


class Verdict(StrEnum):
    """What becomes of a graded group."""

    TRAIN = "train"
    RESAMPLE = "resample"
    """No gradient in it: a fresh task of the source takes its place."""
    KEEP = "keep"
    """No gradient in it either, but there are no replacements left: trained as it is, with zero
    advantage, so that the step ends and shares stay exact."""


def judge(summary: GroupSummary, cfg: DifficultyConfig, *, last_chance: bool) -> Verdict:
    """Decide on a group with at least one valid rollout.

    Args:
        last_chance: its source has had all its replacements in the step.
    """
    if not cfg.drop_zero_variance or not is_zero_variance(summary):
        return Verdict.TRAIN
    return Verdict.KEEP if last_chance else Verdict.RESAMPLE


def is_zero_variance(summary: GroupSummary) -> bool:
    """Whether no token has an advantage. Where none was computed: whether the valid rewards are all
    equal, up to rounding; so it is with one valid rollout, or none."""
    if summary.has_signal is not None:
        return not summary.has_signal
    return all_same(np.array(summary.rewards, np.float64))
