"""Errors that a user can mend, raised before any actor starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.redact import redact


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with the input, and what to do about it."""

    where: str
    """Field path, file or `file:line`, e.g. `sources.arith.weight`."""
    what: str
    """What was found and what is allowed."""
    fix: str = ""
    """What to do, as an imperative sentence; empty when `what` already says it."""

    def __post_init__(self) -> None:
        for name in ("where", "what", "fix"):  # which may quote what the user wrote
            object.__setattr__(self, name, redact(getattr(self, name)))

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n    fix: {self.fix}" if self.fix else "")


def first_few(problems: Sequence[Problem], where: str, most: int = 10) -> list[Problem]:
    """Return the first problems of a file's rows, and one that says how many more there are."""
    left = len(problems) - most
    more = [Problem(where=where, what=f"{left} more rows have problems")] if left > 0 else []
    return [*problems[:most], *more]


class ConfigError(Exception):
    """Bad input: every problem found, at once. The command line prints it and exits 2."""

    def __init__(self, problems: Problem | Sequence[Problem]):
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[Problem, ...]]]:
        return (ConfigError, (self.problems,))
