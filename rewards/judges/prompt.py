"""What a judge is told: a grader's messages with the answer put into them, as data."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from configs.graders.judged import Content, InputMessage
from rewards.judges.fence import RULE, fence
from rewards.judges.request import ChatMessage
from rewards.score import FailureKind, GradeFailed
from rewards.subject import Subject

_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)((?:\.\w+|\[\d+\])*)\s*\}\}")
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
_WHOLE = re.compile(rf"\s*{_PLACEHOLDER.pattern}\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompter:
    """Fills in templates for one answer."""

    subject: Subject
    fenced: bool
    """Whether what the policy wrote is marked as data."""
    extra: Mapping[str, str] = field(default_factory=dict[str, str])
    """Texts of `{{ pair.NAME }}`."""

    def text(self, template: str) -> str:
        """Return the template with every placeholder filled in, the policy's text as data.

        Raises:
            GradeFailed: a variable is not there.
        """
        return _PLACEHOLDER.sub(lambda found: self._fill(found[1], found[2]), template)

    def plain(self, template: str) -> str:
        """Return the template filled in with nothing marked."""
        return _PLACEHOLDER.sub(lambda f: _as_text(self.value(f[1], f[2])), template)

    def whole(self, template: str) -> JsonValue:
        """Return the value of a template that is one placeholder; else its text."""
        found = _WHOLE.fullmatch(template)
        return self.value(found[1], found[2]) if found else self.plain(template)

    def messages(self, given: Sequence[InputMessage]) -> tuple[ChatMessage, ...]:
        """Return the grader's messages, filled in, with the rule on data where it is marked."""
        filled = [ChatMessage(role=m.role, content=_mapped(m.content, self.text)) for m in given]
        return with_rule(filled) if self.fenced else tuple(filled)

    def marked(self, text: str) -> str:
        """Return a text as data, where the grader wants that."""
        return fence(text) if self.fenced else text

    def value(self, space: str, path: str) -> JsonValue:
        """Return what `{{ space.path }}` names.

        Raises:
            GradeFailed: it is not there.
        """
        spaces: dict[str, JsonValue] = {
            "item": dict(self.subject.item),
            "sample": dict(self.subject.sample),
            "pair": dict(self.extra),
        }
        at = spaces.get(space)
        for step in _STEP.finditer(path):
            key, index = step[1], step[2]
            if index is not None and isinstance(at, list) and int(index) < len(at):
                at = at[int(index)]
            elif index is None and isinstance(at, dict) and key in at:
                at = at[key]
            else:
                raise GradeFailed(
                    FailureKind.INVALID_VARIABLE, f"there is no {space}{path} for this answer"
                )
        return at

    def _fill(self, space: str, path: str) -> str:
        text = _as_text(self.value(space, path))
        return text if space == "item" else self.marked(text)


def with_rule(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """Return the messages with the rule on data at the end of the first system message."""
    for at, message in enumerate(messages):
        if message.role in ("system", "developer") and isinstance(message.content, str):
            ruled = ChatMessage(role=message.role, content=f"{message.content}\n{RULE}")
            return (*messages[:at], ruled, *messages[at + 1 :])
    return (ChatMessage(role="system", content=RULE), *messages)


def placeholders(template: str) -> list[tuple[str, str]]:
    """Return namespace and path of every placeholder."""
    return [(found[1], found[2]) for found in _PLACEHOLDER.finditer(template)]


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


def _as_text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
