"""What is learnt from without sampling: conversations to imitate, and preferences."""

from dataclasses import dataclass
from typing import TypeAlias

from rollouts.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages to imitate."""

    name: str
    """Where it was read, e.g. `rows.jsonl:17`."""
    messages: tuple[Message, ...]
    trained: tuple[bool, ...]
    """Of each message, whether it is trained on; true for assistant's alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Two answers, of which one is better."""

    name: str
    """Where it was read, e.g. `rows.jsonl:17`."""
    chosen: tuple[Message, ...]
    """The whole conversation, with the better answer."""
    rejected: tuple[Message, ...]


Lesson: TypeAlias = Conversation | Preference
