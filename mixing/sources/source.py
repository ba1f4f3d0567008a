"""Where tasks come from: what every source offers."""

import hashlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rollouts.types import Message, Task


class Source(Protocol):
    """The items of one source. Training items are numbered 0 to `size` - 1; held-out items are
    none of them."""

    @property
    def size(self) -> int:
        """Training items of an epoch."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the meaning of an item's number changes."""
        ...

    def task(self, item: int) -> Task:
        """Return training item `item`; always the same for the same number."""
        ...

    def offline_rates(self) -> NDArray[np.float64] | None:
        """Return pass rates of the training items measured beforehand [size], NaN where there is
        none; None for a source without `difficulty.pass_rate_column`."""
        ...

    def held_out(self) -> tuple[Task, ...]:
        """Return the evaluation items, always in the same order."""
        ...


def with_instruction(instruction: str, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the prompt with the source's instruction before it, as a system message."""
    if not instruction:
        return prompt
    return (Message(role="system", content=instruction), *prompt)


def digest(text: str) -> str:
    """Return a short, stable hash of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
