"""What a judge is told: a grader's messages with the answer put into them, as data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from configs.graders.judged import Content, InputMessage
from rewards.judges.fence import RULE, fence
from rewards.judges.request import ChatMessage
from rewards.subject import Subject
from rewards.templates import Variable, parse_template


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompter:
    """Fills in templates for one answer."""

    subject: Subject
    fenced: bool
    """Whether what the policy wrote is marked as data."""
    pair: Mapping[str, str] = field(default_factory=dict[str, str])
    """Texts of `{{ pair.first }}` and `{{ pair.second }}`."""

    def text(self, template: str) -> str:
        """Return the template filled in, all but the row's own values marked as data.

        Raises:
            GradeFailed: a variable is not there.
        """
        return parse_template(template).render(self.subject, self.pair, self._shown)

    def messages(self, given: Sequence[InputMessage]) -> tuple[ChatMessage, ...]:
        """Return the grader's messages, filled in, with the rule on data where it is marked."""
        filled = [ChatMessage(role=m.role, content=_mapped(m.content, self.text)) for m in given]
        return with_rule(filled) if self.fenced else tuple(filled)

    def marked(self, text: str) -> str:
        """Return a text as data, where the grader wants that."""
        return fence(text) if self.fenced else text

    def _shown(self, variable: Variable, text: str) -> str:
        return text if variable.space == "item" else self.marked(text)


def with_rule(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """Return the messages with the rule on data at the end of the first system message."""
    for at, message in enumerate(messages):
        if message.role in ("system", "developer") and isinstance(message.content, str):
            ruled = ChatMessage(role=message.role, content=f"{message.content}\n{RULE}")
            return (*messages[:at], ruled, *messages[at + 1 :])
    return (ChatMessage(role="system", content=RULE), *messages)


def texts(content: Content) -> list[str]:
    """Return every text in a message's content."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    _mapped(content, note)
    return found


def _mapped(content: Content, change: Callable[[str], str]) -> JsonValue:
    """Return text, a block or a list of them with every text changed; blocks in a list."""
    if isinstance(content, str):
        return change(content)
    if isinstance(content, dict):
        return [_block(content, change)]
    return [
        {"type": "text", "text": change(c)} if isinstance(c, str) else _block(c, change)
        for c in content
    ]


def _block(block: Mapping[str, JsonValue], change: Callable[[str], str]) -> JsonValue:
    """Return a block as chat completions know it: RFT's text blocks have names of their own."""
    kind = block.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": change(str(block.get("text", "")))}
    return {k: change(v) if isinstance(v, str) and k != "type" else v for k, v in block.items()}
