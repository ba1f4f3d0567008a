"""Templates of graders written as data: `{{ item.answer }}`, `{{ sample.output_text }}`.

A path has names after dots, `[0]`, and `["any key"]`; `{{ "{{" }}` is a literal text. Nothing can
be computed or called in one, and what is put in is never read as a template again.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, cast

from pydantic import JsonValue

from configs.errors import ConfigError, Problem
from configs.graders.base import Grader
from rewards.score import FailureKind, GradeFailed
from rewards.subject import Subject

_PATH = re.compile(
    r"""\s*(?:\.?(?P<name>[^\W\d][\w-]*|\d+)|\[\s*(?P<index>-?\d{1,9})\s*\]"""
    r"""|\[\s*(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*\])"""
)
_LITERAL = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)')\s*""")
_HOW = "Write a path: {{ item.answer }}, {{ item.rows[0].name }}, {{ sample.output_text }}."
_SAMPLE = ("output_text", "output_json", "choices")
_PAIR = (("first",), ("second",))
"""Of graders that show a judge two texts, which put them in themselves."""

Step: TypeAlias = str | int


class SampleFault(GradeFailed):
    """The answer lacks what the template asks of it: the policy's fault, not the grader's."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One path of a template."""

    steps: tuple[Step, ...]
    text: str
    """As it is written."""

    @property
    def space(self) -> str:
        """`item`, `sample`, or `pair` in graders that have one."""
        return str(self.steps[0])

    def resolve(self, spaces: Mapping[str, JsonValue]) -> JsonValue:
        """Return what it names.

        Raises:
            LookupError: there is no such value; tells the place and the near name.
        """
        at: JsonValue = cast(JsonValue, spaces)
        for i, step in enumerate(self.steps):
            at = _below(at, step, "".join(map(_shown, self.steps[:i])).removeprefix("."))
        return at


@dataclass(frozen=True, slots=True)
class Template:
    """A text with paths in it."""

    parts: tuple[str | Variable, ...]

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Its paths, in order."""
        return tuple(p for p in self.parts if isinstance(p, Variable))

    def render(
        self,
        subject: Subject,
        pair: Mapping[str, str] | None = None,
        shown: Callable[[Variable, str], str] = lambda variable, text: text,
    ) -> str:
        """Return the text with each path replaced: text as it is, all else as JSON.

        Args:
            pair: texts of `{{ pair.first }}` and `{{ pair.second }}`.
            shown: says how the text of a path is put in.

        Raises:
            GradeFailed: the row has no such value; SampleFault: the answer has none.
        """
        return "".join(
            p if isinstance(p, str) else shown(p, _text(_find(p, subject, pair)))
            for p in self.parts
        )

    def value(self, subject: Subject) -> JsonValue:
        """Return the value itself where the template is one path alone, else the text."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Variable):
            return _find(self.parts[0], subject)
        return self.render(subject)


@lru_cache(maxsize=4096)
def parse_template(text: str, where: str = "template") -> Template:
    """Return the template that a text is.

    Raises:
        ConfigError: a `{{` is never closed, or what stands in it is no path.
    """
    parts: list[str | Variable] = []
    at = 0
    while (start := text.find("{{", at)) >= 0:
        literal = _LITERAL.match(text, start + 2)
        end = text.find("}}", literal.end() if literal else start + 2)
        if end < 0:
            what = f"`{text[start : start + 40]}` is never closed"
            raise ConfigError(Problem(where=where, what=what, fix="Add `}}`."))
        parts.append(text[at:start])
        if literal and literal.end() == end:
            parts.append(literal[1] or literal[2] or "")
        else:
            parts.append(_variable(text[start + 2 : end].strip(), where))
        at = end + 2
    parts.append(text[at:])
    return Template(tuple(p for p in parts if p != ""))


def check_templates(cfg: Grader, where: str) -> list[Problem]:
    """Return what is wrong with a grader's templates, whatever the rows."""
    paired = getattr(cfg, "pair", None) is not None
    return [p for at, text in _texts(cfg, where) for p in _check(text, at, paired=paired)]


def missing_in_row(cfg: Grader, item: Mapping[str, JsonValue], where: str) -> list[Problem]:
    """Return every variable of a sound grader's own templates that a row does not have."""
    problems: list[Problem] = []
    for at, text in _texts(cfg, where):
        for variable in parse_template(text, at).variables:
            if variable.space != "item":
                continue
            try:
                variable.resolve({"item": cast(JsonValue, item)})
            except LookupError as error:
                what, fix = str(error.args[0]), str(error.args[1])
                problems.append(
                    Problem(where=at, what=f"`{{{{ {variable.text} }}}}`: {what}", fix=fix)
                )
    return problems


def _texts(cfg: Grader, where: str) -> Iterator[tuple[str, str]]:
    for name in cfg.templates:
        value = cfg.model_dump(mode="json", include={name})[name]
        yield from _texts_in(value, f"{where}.{name}")


def _texts_in(value: JsonValue, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _texts_in(inner, f"{where}.{i}")
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts_in(inner, f"{where}.{key}")


def _check(text: str, where: str, *, paired: bool) -> list[Problem]:
    try:
        variables = parse_template(text, where).variables
    except ConfigError as error:
        return list(error.problems)
    problems: list[Problem] = []
    for variable in variables:
        if variable.space == "pair" and (not paired or variable.steps[1:] not in _PAIR):
            what = f"`{{{{ {variable.text} }}}}` is neither `pair.first` nor `pair.second`"
            what = what if paired else f"`{{{{ {variable.text} }}}}`: the grader has no `pair`"
            problems.append(Problem(where=where, what=what))
        if variable.space == "sample" and len(variable.steps) > 1:
            key = str(variable.steps[1])
            if key not in _SAMPLE:
                what = f"`{{{{ {variable.text} }}}}`: an answer has no `{key}`"
                problems.append(Problem(where=where, what=what, fix=_near(key, _SAMPLE)))
    return problems


def _variable(text: str, where: str) -> Variable:
    steps: list[Step] = []
    at = 0
    while at < len(text):
        match = _PATH.match(text, at)
        dotted = match is not None and match[0].lstrip().startswith(".")
        bare = match is not None and match["name"] is not None and not dotted
        if match is None or bare != (at == 0):
            what = f"`{{{{ {text[:80]} }}}}` is not a path"
            raise ConfigError(Problem(where=where, what=what, fix=_HOW))
        steps.append(_step(match))
        at = match.end()
    if not steps or steps[0] not in ("item", "sample", "pair"):
        what = f"`{{{{ {text[:80]} }}}}` does not begin with `item` or `sample`"
        raise ConfigError(Problem(where=where, what=what, fix=_HOW))
    return Variable(tuple(steps), text)


def _step(match: re.Match[str]) -> Step:
    if match["index"] is not None:
        return int(match["index"])
    if match["quoted"] is not None:
        return re.sub(r"\\(.)", r"\1", match["quoted"][1:-1])
    return match["name"]


def _find(variable: Variable, subject: Subject, pair: Mapping[str, str] | None = None) -> JsonValue:
    known = {"item": subject.item, "sample": subject.sample, "pair": pair or {}}
    spaces = cast("dict[str, JsonValue]", known)
    try:
        return variable.resolve(spaces)
    except LookupError as error:
        what = f"`{{{{ {variable.text} }}}}`: {error.args[0]}"
    if variable.steps[:2] == ("sample", "output_json"):
        parsed = "output_json" in subject.sample
        kind = FailureKind.INVALID_VARIABLE if parsed else FailureKind.SAMPLE_PARSE
        raise SampleFault(kind, what if parsed else f"{what}: the answer is not JSON")
    raise GradeFailed(FailureKind.INVALID_VARIABLE, what)


def _below(at: JsonValue, step: Step, path: str) -> JsonValue:
    if isinstance(at, Mapping):
        key = str(step)
        if key in at:
            return at[key]
        keys = [str(k) for k in at]
        raise LookupError(f"{_place(path)} has no `{key}`", _near(key, keys))
    if isinstance(at, list) and isinstance(step, int):
        if -len(at) <= step < len(at):
            return at[step]
        raise LookupError(f"`{path}` has {len(at)} items", "")
    kind = "is a list; write [0] for its first item" if isinstance(at, list) else "has no parts"
    raise LookupError(f"`{path}` {kind}, so no `{step}`", "")


def _place(path: str) -> str:
    return "the row" if path == "item" else "the answer" if path == "sample" else f"`{path}`"


def _near(key: str, keys: "list[str] | tuple[str, ...]") -> str:
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    return (
        f"Did you mean `{near[0]}`?" if near else f"There is: {', '.join(keys[:20]) or 'nothing'}."
    )


def _shown(step: Step) -> str:
    return f"[{step}]" if isinstance(step, int) else f".{step}"


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
