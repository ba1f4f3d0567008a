"""What flows from and to a critic: values before the step, and what they are to become."""

from dataclasses import dataclass

from rollouts.types import F32, MicroBatch, Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueTargets:
    """What a critic said of a sample before the step, and what it is to say. 0 where the loss mask
    is false."""

    values: F32
    """[L], of the state before each token."""
    returns: F32
    """[L]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueBatch:
    """Samples laid end to end for the critic."""

    tokens: MicroBatch
    values: F32
    """[T], before the step."""
    returns: F32
    """[T]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueScores:
    """What a critic made of a micro-batch."""

    advantages: Ref
    """As in MicroBatchPlan; so are `targets`."""
    targets: Ref
    moments: tuple[tuple[float, float] | None, ...]
    """Mean and variance of each sample's advantages; None where it needs no values."""
