"""What supervised fine-tuning learns from: conversations, and which of their answers count."""

from dataclasses import dataclass

from rollouts.types import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages to imitate."""

    name: str
    """Where it was read, e.g. `rows.jsonl:17`."""
    messages: tuple[Message, ...]
    trained: tuple[bool, ...]
    """Of each message, whether it is trained on; true for assistant's alone."""
