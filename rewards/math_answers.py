"""The `math` grader: is the answer mathematically the truth.

Where the truth is a number that is written out, the answer must be one too, and both are read
exactly. A truth in words is compared as text. All else goes to math-verify, after a look at whether
the answer could keep it busy for ever; its own timeouts are off, as the process can be killed.
"""

import importlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from configs.errors import Problem
from configs.graders.answers import MathGrader
from rewards.numbers import Written, equal_numbers, read_number, same_unit
from rewards.score import FailureKind, GradeFailed, Score, policy_fault
from rewards.subject import Subject
from rewards.templates import SampleFault, check_templates, parse_template

_MAX_LAYERS = 4
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_WORDS = re.compile(r"\\(?:text|textrm|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_COSTLY = ("\\int", "\\sum", "\\prod", "\\lim", "\\binom", "!", "\\pmod", "\\mod")
"""Commands that an answer may have where the truth has them: they can be asked for any work."""
_MAX_ROUND, _MAX_NESTED = 4, 8
"""Deepest parentheses (math-verify's parser takes time exponential in them) and braces."""
_MAX_EXPONENT = 100


@dataclass(frozen=True, slots=True)
class _Truth:
    """The truth, read once."""

    text: str
    number: Written | None
    words: str | None
    parsed: Sequence[object]
    """What math-verify reads; empty where it is a number or words."""


def prepare_math(cfg: MathGrader, where: str) -> Callable[[Subject], Score]:
    """Return the comparison; math-verify is loaded and warm."""
    given = parse_template(cfg.input, f"{where}.input")
    reference = parse_template(cfg.reference, f"{where}.reference")
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of timeouts being off
    _read_truth("\\sqrt{2}", cfg.decimals)

    def grade(subject: Subject) -> Score:
        truth = _read_truth(reference.render(subject), cfg.decimals)
        try:
            found = _answers(cfg, given.render(subject))
        except SampleFault as fault:
            return policy_fault(fault)
        right = [_is_right(cfg, answer, truth) for answer in found]
        return Score(value=float(bool(right) and all(right)), notes={"answer": found[-1][:200]})

    return grade


def check_math(cfg: MathGrader, where: str) -> list[Problem]:
    """Return what is wrong with the templates."""
    return check_templates(cfg, where)


def boxed(text: str) -> list[str]:
    """Return what each outermost \\boxed{...} holds, in order, without boxes around boxes; an
    unclosed one holds nothing."""
    return [_unwrapped(inside) for inside in _outermost(text)]


def _outermost(text: str) -> list[str]:
    found: list[str] = []
    at = 0
    while (match := _BOX.search(text, at)) is not None:
        end = _closing(text, match.end())
        if end is None:
            break
        found.append(text[match.end() : end].strip())
        at = end + 1
    return found


def _unwrapped(inside: str) -> str:
    """Return what is in the last of boxes within a box; more layers than anyone writes stay."""
    for _ in range(_MAX_LAYERS):
        if not _BOX.match(inside) or not (nested := _outermost(inside)):
            break
        inside = nested[-1]
    return inside


def _closing(text: str, start: int) -> int | None:
    """Return where the brace opened just before `start` is closed."""
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


def _answers(cfg: MathGrader, text: str) -> list[str]:
    """Return the answers that count: one, or with `agree` all of them."""
    match cfg.extract:
        case "boxed":
            found = boxed(text)
        case "tag":
            tag = re.escape(cfg.tag)
            found = re.findall(rf"<{tag}>((?:(?!</?{tag}>).)*)</{tag}>", text, re.DOTALL)
            found = [(boxed(inside) or [inside.strip()])[-1] for inside in found]
        case "last_line":
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            found = [(boxed(lines[-1]) or [lines[-1]])[-1]] if lines else []
        case "whole":
            found = [(boxed(text) or [text.strip()])[-1]] if text.strip() else []
    if not found:
        raise SampleFault(FailureKind.SAMPLE_PARSE, f"no answer found by `extract: {cfg.extract}`")
    if cfg.several == "join":
        return [", ".join(found)]
    return found if cfg.several == "agree" else found[-1:]


@lru_cache(maxsize=4096)
def _read_truth(text: str, decimals: int) -> _Truth:
    """Read the truth.

    Raises:
        GradeFailed: it is nothing that an answer could be compared with.
    """
    inside = boxed(text)
    text = inside[-1] if inside else text.rpartition("####")[2].strip()
    number, words = read_number(text), _spoken(text)
    if number is not None or words is not None:
        return _Truth(text, number, words, ())
    parsed = _parse(text)
    known = any(not isinstance(value, str) for value in parsed)
    if not known or not _verify(parsed, parsed, decimals):
        why = f"the reference {text[:80]!r} cannot be read as mathematics"
        raise GradeFailed(FailureKind.OTHER, why)
    return _Truth(text, None, None, parsed)


def _is_right(cfg: MathGrader, answer: str, truth: _Truth) -> bool:
    if len(answer) > max(cfg.max_chars, 2 * len(truth.text)):
        return False
    if truth.words is not None:
        return _plain_words(answer) == truth.words
    if truth.number is not None:
        given = read_number(answer)
        if given is not None:
            either = cfg.percent == "either"
            same = equal_numbers(given, truth.number, decimals=cfg.decimals, either=either)
            return same and (cfg.units == "ignore" or same_unit(given, truth.number))
        if not cfg.unevaluated:
            return False
    if _may_hang(answer, truth.text) or answer.count("=") > max(1, truth.text.count("=")):
        return False
    try:
        return _verify(truth.parsed or _parse(truth.text), _parse(answer), cfg.decimals)
    except Exception:  # noqa: BLE001 - the truth compares with itself, so the answer is at fault
        return False


def _spoken(text: str) -> str | None:
    """Return a truth in words, or of one letter, as `_plain_words` does; None for mathematics."""
    plain = _plain_words(text)
    letters = re.fullmatch(r"[^\W\d_](?:[^\W\d_]|[ '-])*", plain)
    if letters is None:
        return None
    marked = _WORDS.fullmatch(text.strip().strip("$()").strip()) is not None
    return plain if marked or len(plain) != 2 or plain == "no" else None


def _plain_words(text: str) -> str:
    """Return text without markup, brackets around it and end, in one case and spacing."""
    text = _WORDS.sub(r"\1", text).replace("\\ ", " ").strip().strip("$").strip()
    text = text.rstrip(".").strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return " ".join(text.split()).casefold()


def _may_hang(answer: str, truth: str) -> bool:
    """Whether parsing or comparing the answer could take for ever."""
    if any(command in answer and command not in truth for command in _COSTLY):
        return True
    depth = {"(": 0, "{": 0}
    for char in answer.replace("[", "(").replace("]", ")"):
        if char in "({":
            depth[char] += 1
        elif char in ")}":
            depth["(" if char == ")" else "{"] -= 1
        if depth["("] > _MAX_ROUND or depth["{"] > _MAX_NESTED:
            return True
    if re.search(r"\d{60}", answer):
        return True
    powers = re.findall(r"(?:\^|\*\*)\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\([^()]*\)|[+-]?\d+)", answer)
    return any("^" in power or "**" in power or _largest(power) > _MAX_EXPONENT for power in powers)


def _largest(text: str) -> int:
    return max(map(int, re.findall(r"\d+", text)), default=0)


def _parse(text: str) -> Sequence[object]:
    library = cast(Any, importlib.import_module("math_verify"))
    return cast("list[object]", library.parse(f"$\\boxed{{{text}}}$", parsing_timeout=None))


def _verify(truth: Sequence[object], answer: Sequence[object], decimals: int) -> bool:
    library = cast(Any, importlib.import_module("math_verify"))
    return bool(
        library.verify(
            truth,
            answer,
            float_rounding=decimals,
            allow_set_relation_comp=True,
            timeout_seconds=None,
        )
    )
