"""The grader `rubric`: weighted criteria, each met or not, in the judge's eyes.

HealthBench's convention (openai/simple-evals, healthbench_eval.py): one question a criterion,
faults have negative points, the score is the points of met criteria over the positive points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from pydantic import JsonValue

from configs.graders.judged import Criterion, RubricGrader
from rewards.judges.client import Judge
from rewards.judges.polling import Poll, poll, question, together
from rewards.judges.prompt import Prompter, with_rule
from rewards.judges.reading import Verdict
from rewards.judges.request import NO_TOKENS, ChatMessage, Unreadable, plus
from rewards.judges.schemas import Schema, criterion_schema, record
from rewards.score import FailureKind, GradeFailed, Score
from rewards.services import Services
from rewards.subject import Subject
from rewards.templates import parse_template

_TASK = (
    "You check an answer against a criterion. criteria_met says whether what the criterion states "
    "is true of the answer; where it states a fault, true means that the fault is there."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CriterionVerdict:
    """How one criterion fared."""

    criterion: Criterion
    met: float
    """Share of the votes that found it met."""


async def evaluate_rubric(
    cfg: RubricGrader, subject: Subject, services: Services, path: str
) -> Score:
    """Judge every criterion, and add up the points of those that are met."""
    criteria = criteria_of(cfg, subject)
    judge = services.judges[cfg.model]
    ask = _ask_each if cfg.mode == "each" else _ask_together
    polls, met = await ask(cfg, subject, judge, criteria)
    verdicts = [
        CriterionVerdict(criterion=c, met=share) for c, share in zip(criteria, met, strict=True)
    ]
    value = total(verdicts, cfg.normalise)
    if value is None:
        why = f"the rubric has no {'positive ' if cfg.normalise == 'positive_points' else ''}points"
        raise GradeFailed(FailureKind.INVALID_VARIABLE, why)
    if cfg.clip is not None:
        value = min(max(value, cfg.clip[0]), cfg.clip[1])
    usage = NO_TOKENS
    for found in polls:
        usage = plus(usage, found.usage)
    notes: dict[str, JsonValue] = {
        "sampled_model_name": polls[0].votes[0].model,
        "criteria": [
            {"criterion": v.criterion.criterion, "points": v.criterion.points, "met": v.met}
            for v in verdicts
        ],
        "verdicts": [cast(JsonValue, found.record()) for found in polls],
    }
    return Score(
        value=value, parts=_parts(verdicts, cfg.normalise), usage={cfg.model: usage}, notes=notes
    )


def criteria_of(cfg: RubricGrader, subject: Subject) -> Sequence[Criterion]:
    """Return the rubric: the grader's own, or the row's.

    Raises:
        GradeFailed: the row's field is missing, empty or no rubric.
    """
    if not isinstance(cfg.criteria, str):
        return cfg.criteria
    given = parse_template(cfg.criteria).value(subject)
    try:
        if not isinstance(given, list) or not given:
            raise ValueError("it is no list of criteria")
        return [_criterion(row) for row in given]
    except ValueError as error:
        why = f"{cfg.criteria} holds no rubric: {' '.join(str(error).split())[:200]}"
        raise GradeFailed(FailureKind.INVALID_VARIABLE, why) from error


def total(verdicts: Sequence[CriterionVerdict], normalise: str) -> float | None:
    """Return the points of met criteria, normalised; None where there is nothing to divide by."""
    got = sum(v.met * v.criterion.points for v in verdicts)
    if normalise == "sum":
        return got
    points = [v.criterion.points for v in verdicts]
    whole = sum(abs(p) for p in points) if normalise == "abs" else sum(p for p in points if p > 0)
    return got / whole if whole else None


def _criterion(row: JsonValue) -> Criterion:
    known = Criterion.model_fields
    if not isinstance(row, dict):
        raise ValueError(f"{row!r:.60} is no criterion")
    return Criterion.model_validate({k: v for k, v in row.items() if k in known})


def _parts(verdicts: Sequence[CriterionVerdict], normalise: str) -> dict[str, float]:
    """Return named criteria, and the score of each tag that has one."""
    parts = {v.criterion.name: v.met for v in verdicts if v.criterion.name}
    for tag in dict.fromkeys(t for v in verdicts for t in v.criterion.tags):
        score = total([v for v in verdicts if tag in v.criterion.tags], normalise)
        if score is not None:
            parts[f"tag.{tag}"] = score
    return parts


async def _ask_each(
    cfg: RubricGrader, subject: Subject, judge: Judge, criteria: Sequence[Criterion]
) -> tuple[Sequence[Poll[bool]], list[float]]:
    """Ask once for each criterion."""
    schema = criterion_schema(explain=cfg.explain)

    def asked(criterion: Criterion) -> tuple[ChatMessage, ...]:
        return _messages(cfg, subject, f"Criterion: {criterion.criterion}")

    polls = await together(
        *(
            poll(
                judge,
                question(cfg, asked(c), schema, "criterion"),
                cfg.votes,
                ["criteria_met"],
                _read_met,
            )
            for c in criteria
        )
    )
    return polls, [sum(v.value for v in p.votes) / len(p.votes) for p in polls]


async def _ask_together(
    cfg: RubricGrader, subject: Subject, judge: Judge, criteria: Sequence[Criterion]
) -> tuple[Sequence[Poll[list[bool]]], list[float]]:
    """Ask for all criteria at once, each under a key of its own."""
    keys = [f"criterion_{i}" for i in range(1, len(criteria) + 1)]
    one: Schema = criterion_schema(explain=cfg.explain)
    listed = "\n".join(f"{k}: {c.criterion}" for k, c in zip(keys, criteria, strict=True))
    messages = _messages(cfg, subject, f"Criteria, each to be judged by itself:\n{listed}")

    def read(verdict: Verdict) -> list[bool]:
        return [_read_met(_below(verdict, key)) for key in keys]

    request = question(cfg, messages, record(**dict.fromkeys(keys, one)), "criteria")
    found = await poll(judge, request, cfg.votes, keys, read)
    votes = [v.value for v in found.votes]
    return [found], [sum(v[i] for v in votes) / len(votes) for i in range(len(keys))]


def _messages(cfg: RubricGrader, subject: Subject, wanted: str) -> tuple[ChatMessage, ...]:
    prompter = Prompter(subject=subject, fenced=cfg.fence)
    asked = prompter.text(cfg.question) if cfg.question else _conversation(subject)
    parts = [f"Question:\n{asked}"] if asked else []
    if cfg.reference:
        parts.append(f"A right answer, for comparison:\n{prompter.text(cfg.reference)}")
    parts.append(f"Answer:\n{prompter.marked(subject.rollout.last_text)}")
    parts.append(wanted)
    made = (
        ChatMessage(role="system", content=_TASK),
        ChatMessage(role="user", content="\n\n".join(parts)),
    )
    return with_rule(made) if cfg.fence else made


def _conversation(subject: Subject) -> str:
    """Return the task's own messages as text."""
    prompt = subject.task.prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n".join(f"{m.role}: {m.content}" for m in prompt)


def _read_met(verdict: Verdict) -> bool:
    met = verdict.get("criteria_met")
    if not isinstance(met, bool):
        raise Unreadable(f"criteria_met is {met!r:.60}, not true or false")
    return met


def _below(verdict: Verdict, key: str) -> Verdict:
    value = verdict[key]
    if not isinstance(value, dict):
        raise Unreadable(f"{key} is {value!r:.60}, no verdict")
    return value
