"""Verify reasoning step by step: `split_steps` finds the steps, `steps` has each one graded.

Splitting runs a recipe's regular expressions on the policy's text, so it is done in a killable
process like every rule; only verdicts are put together here.
"""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue

from configs.errors import Problem
from configs.graders.steps import SplitStepsGrader, StepsGrader, StepSplit
from rewards.evaluate import evaluate
from rewards.multi import add_usage
from rewards.score import GradeFailed, Score, Usage
from rewards.services import Services
from rewards.subject import Subject
from rollouts.types import SpanScore, Turn

_PATTERNS: Mapping[str, str] = {
    "lines": r"^[ \t]*(\S[^\n]*)$",
    "numbered": r"^[ \t]*(\d+[.)][ \t].*?)(?=^[ \t]*\d+[.)][ \t]|\Z)",
    "tags": r"<step>(.*?)</step>",
    "sentences": r"(\S.*?(?:[.!?]+(?=\s|\Z)|\Z))",
}


def split_steps(text: str, cfg: StepSplit) -> Iterator[tuple[int, int]]:
    """Yield the characters [start, end) of each step, in order; blank ones are none."""
    end = len(text)
    if cfg.until and (found := re.search(cfg.until, text, re.DOTALL | re.MULTILINE)):
        end = found.start()
    pattern = _compile(cfg)
    for match in pattern.finditer(text, 0, end):
        start, stop = match.span(1 if pattern.groups else 0)
        step = text[start:stop]
        if start >= 0 and step.strip():
            yield start + len(step) - len(step.lstrip()), stop - len(step) + len(step.rstrip())


def prepare_split(cfg: SplitStepsGrader, where: str) -> Callable[[Subject], Score]:
    """Return a grader that gives the steps of the last turn as spans, and their number."""

    def grade(subject: Subject) -> Score:
        turn = len(subject.rollout.turns) - 1
        steps = tuple(split_steps(subject.rollout.last_text, cfg))
        spans = tuple(SpanScore(turn=turn, start=s, end=e, score=0.0) for s, e in steps)
        return Score(value=float(len(spans)), spans=spans)

    return grade


def check_split(cfg: SplitStepsGrader, where: str) -> list[Problem]:
    """Return what is wrong with the regular expressions."""
    problems: list[Problem] = []
    if (cfg.by == "regex") != bool(cfg.pattern):
        fix = "Give `pattern` with `by: regex`, and only then."
        what = f"is {cfg.pattern!r} with `by: {cfg.by}`"
        problems.append(Problem(where=f"{where}.pattern", what=what, fix=fix))
    for field, pattern in (("pattern", cfg.pattern), ("until", cfg.until)):
        try:
            re.compile(pattern)
        except re.error as error:
            what = f"{pattern!r} is not a regular expression: {error}"
            problems.append(Problem(where=f"{where}.{field}", what=what))
    return problems


async def evaluate_steps(
    cfg: StepsGrader, subject: Subject, services: Services, path: str
) -> Score:
    """Split, verify all steps at once, and put the verdicts together.

    Raises:
        GradeFailed: a step or the outcome cannot be judged, or its score is not in [0, 1].
    """
    graders = cfg.graders
    found = await evaluate(graders["split"], subject, services, f"{path}.split")
    verified = found.spans[: cfg.split.max_steps]
    asked = [
        evaluate(cfg.verify, step, services, f"{path}.verify")
        for step in _subjects(subject, verified)
    ]
    if cfg.outcome is not None:
        asked.append(evaluate(cfg.outcome, subject, services, f"{path}.outcome"))
    graded = await asyncio.gather(*asked, return_exceptions=True)
    scores: list[Score] = []
    for score in graded:
        if isinstance(score, BaseException):
            raise score
        scores.append(score)
        if not 0 <= score.value <= 1:
            why = f"a step or outcome scored {score.value:g}; scale its grader to [0, 1]"
            raise GradeFailed("OutOfRange", f"{path}: {why}")
    steps = [s.value for s in scores[: len(verified)]]
    steps += [0.0] * (len(found.spans) - len(verified))
    outcome = scores[-1] if cfg.outcome is not None else None
    together = _together(cfg, found.spans, steps, outcome, add_usage(scores))
    return replace(together, notes={**together.notes, **_said(scores[: len(verified)], outcome)})


def credited(cfg: StepsGrader, steps: Sequence[float]) -> list[float]:
    """Return what each step is worth: its score, or 0 after a wrong one under `first_error`."""
    if cfg.aggregate != "first_error":
        return list(steps)
    wrong = next((i for i, s in enumerate(steps) if s < cfg.right_at), len(steps))
    return [s if i < wrong else 0.0 for i, s in enumerate(steps)]


def process_value(cfg: StepsGrader, steps: Sequence[float]) -> float:
    """Return what the steps' scores come to; no steps come to 0."""
    worth = credited(cfg, steps)
    if not worth:
        return 0.0
    match cfg.aggregate:
        case "min":
            return min(worth)
        case "last":
            return worth[-1]
        case "mean" | "first_error":
            return sum(worth) / len(worth)


def _together(
    cfg: StepsGrader,
    spans: Sequence[SpanScore],
    steps: Sequence[float],
    outcome: Score | None,
    usage: Mapping[str, Usage],
) -> Score:
    process = process_value(cfg, steps)
    parts = {"steps": process}
    value, share = process, 0.0
    if outcome is not None:
        share = cfg.outcome_share
        parts["outcome"] = outcome.value
        value = share * outcome.value + (1 - share) * process
    wrong = [i for i, s in enumerate(steps) if s < cfg.right_at]
    notes: dict[str, JsonValue] = {
        "steps": list(steps),
        "first_error": wrong[0] if wrong else None,
    }
    worth = credited(cfg, steps)
    return Score(
        value=value,
        parts=parts,
        spans=tuple(
            replace(span, score=(1 - share) * w) for span, w in zip(spans, worth, strict=True)
        ),
        usage=usage,
        notes=notes,
    )


def _said(verified: Sequence[Score], outcome: Score | None) -> dict[str, JsonValue]:
    """Return what the graders of steps and outcome noted, where they did."""
    said: dict[str, JsonValue] = {}
    if any(score.notes for score in verified):
        said["verify"] = [dict(score.notes) for score in verified]
    if outcome is not None and outcome.notes:
        said["outcome"] = dict(outcome.notes)
    return said


def _subjects(subject: Subject, spans: Sequence[SpanScore]) -> list[Subject]:
    """Return each step as a subject of its own: an answer that is the step, whose earlier turns are
    the steps before it."""
    text = subject.rollout.last_text
    texts = [text[span.start : span.end] for span in spans]
    nothing = Subject.of_text({}, "").rollout.turns[0]
    turns: list[Turn] = [replace(nothing, text=step) for step in texts]
    return [
        Subject(
            task=subject.task,
            rollout=replace(subject.rollout, turns=tuple(turns[: i + 1])),
            more={"step": step, "steps": list[JsonValue](texts[: i + 1]), "answer_text": text},
        )
        for i, step in enumerate(texts)
    ]


def _compile(cfg: StepSplit) -> re.Pattern[str]:
    pattern = cfg.pattern if cfg.by == "regex" else _PATTERNS[cfg.by]
    return re.compile(pattern, re.DOTALL | re.MULTILINE)
