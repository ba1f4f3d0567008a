"""Failures of training that must stop the run on every rank alike."""


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; raised on all ranks before weights are touched."""

    def __init__(self, *, what: str, step: int, rank: int | None, value: float):
        self.what, self.step, self.rank, self.value = what, step, rank, value
        where = "after reduction over all ranks" if rank is None else f"on rank {rank}"
        super().__init__(
            f"step {step}: {what} is {value} {where}; the weights were not updated. "
            "Look at the step's rollouts for NaN advantages or logprobs, lower the learning rate, "
            "or resume from the last checkpoint."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_non_finite, (self.what, self.step, self.rank, self.value))


def _non_finite(what: str, step: int, rank: int | None, value: float) -> NonFiniteError:
    return NonFiniteError(what=what, step=step, rank=rank, value=value)


class RatioError(RuntimeError):
    """Two passes of the same weights over the same tokens disagree."""

    def __init__(self, *, step: int, deviation: float, tolerance: float):
        self.step, self.deviation, self.tolerance = step, deviation, tolerance
        super().__init__(
            f"step {step}: before the first update |policy / proximal - 1| is {deviation:.3g}, "
            f"above {tolerance:.3g}. The forward pass is not reproducible: look for dropout, "
            "a changed packing, or weights changed between the two passes."
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (_ratio, (self.step, self.deviation, self.tolerance))


def _ratio(step: int, deviation: float, tolerance: float) -> RatioError:
    return RatioError(step=step, deviation=deviation, tolerance=tolerance)
