"""How far each attempt of a run came, as its ledger tells."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mixing.ledger.events import Attempt, Trained, from_row
from mixing.ledger.ledger import rows


@dataclass(slots=True)
class Span:
    """One attempt."""

    from_step: int
    to_step: int
    """Last step that it trained."""
    ended: float
    """When its last entry was made, in seconds since 1970."""
    undone_steps: int = 0
    """Steps that it trained and that a later attempt began again."""


def spans(run: Path) -> dict[int, Span]:
    """Return each attempt's span, by its number; empty where there is no ledger."""
    path = run / "ledger.jsonl"
    if not path.is_file():
        return {}
    found: dict[int, Span] = {}
    undone: Counter[int] = Counter()
    now: Span | None = None
    number = 0
    for row in rows(path):
        try:
            event = from_row(row.text)
        except ValueError:
            continue
        if isinstance(event, Attempt):
            number = event.attempt
            now = found[number] = Span(event.step, event.step, event.time)
        elif now is not None:
            now.ended = event.time
            if isinstance(event, Trained):
                now.to_step = event.step
                undone[number] += row.undone
    for number, count in undone.items():
        found[number].undone_steps = count
    return found
