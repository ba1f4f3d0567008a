"""The graders `score_model` and `label_model`: a number or a label from a judge."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

from pydantic import JsonValue

from configs.graders.judged import LabelModelGrader, ScoreModelGrader
from rewards.judges.client import Read
from rewards.judges.polling import Poll, poll, question, together
from rewards.judges.prompt import Prompter
from rewards.judges.reading import Verdict, number
from rewards.judges.request import NO_TOKENS, ChatMessage, Unreadable, plus
from rewards.judges.schemas import Schema, label_schema, score_schema
from rewards.score import Score
from rewards.services import Services
from rewards.subject import Subject
from rewards.templates import parse_template

T = TypeVar("T")
_DISAGREE = 0.25
"""Share of the range by which the two orders of a pair may differ before it is noted."""


async def evaluate_score(
    cfg: ScoreModelGrader, subject: Subject, services: Services, path: str
) -> Score:
    """Ask for a number, and keep it within the range."""
    low, high = cfg.range

    def read(verdict: Verdict) -> float:
        return min(max(number(verdict, "result"), low), high)

    def value(found: Poll[float], turned: bool) -> float:
        votes = [low + high - v.value if turned else v.value for v in found.votes]
        return statistics.median(votes) if cfg.combine == "median" else statistics.fmean(votes)

    schema = score_schema(low, high, explain=cfg.explain)
    polls = await _polls(cfg, schema, subject, services, read)
    return _score(cfg, polls, [value(p, i == 1) for i, p in enumerate(polls)], high - low)


async def evaluate_label(
    cfg: LabelModelGrader, subject: Subject, services: Services, path: str
) -> Score:
    """Ask for a label; 1 if it passes, else 0. Labels that come equally often share the vote."""

    def read(verdict: Verdict) -> str:
        label = verdict["result"]
        if not isinstance(label, str) or label not in cfg.labels:
            raise Unreadable(f"label {label!r:.60} is none of {', '.join(cfg.labels)}")
        return label

    def value(found: Poll[str], turned: bool) -> float:
        labels = [cfg.mirror.get(v.value, v.value) if turned else v.value for v in found.votes]
        if cfg.combine == "majority":
            counts = Counter(labels)
            labels = [label for label in counts if counts[label] == max(counts.values())]
        return statistics.fmean(float(label in cfg.passing_labels) for label in labels)

    schema = label_schema(cfg.labels, explain=cfg.explain)
    polls = await _polls(cfg, schema, subject, services, read)
    return _score(cfg, polls, [value(p, i == 1) for i, p in enumerate(polls)], 1.0)


async def _polls(
    cfg: ScoreModelGrader | LabelModelGrader,
    schema: Schema,
    subject: Subject,
    services: Services,
    read: Read[T],
) -> Sequence[Poll[T]]:
    """Ask the votes of the one order, or of both."""
    judge = services.judges[cfg.model]
    return await together(
        *(
            poll(judge, question(cfg, messages, schema, cfg.type), cfg.votes, ["result"], read)
            for messages in _orders(cfg, subject)
        )
    )


def _orders(
    cfg: ScoreModelGrader | LabelModelGrader, subject: Subject
) -> Iterator[tuple[ChatMessage, ...]]:
    """Yield the messages; of a pair, first with the answer in front, then behind."""
    pair = cfg.pair
    if pair is None:
        yield Prompter(subject=subject, fenced=cfg.fence).messages(cfg.input)
        return
    answer = subject.rollout.last_text
    reference = parse_template(pair.reference).render(subject)
    orders = [(answer, reference), (reference, answer)]
    for first, second in orders[: 2 if pair.swap else 1]:
        shown = {"first": first, "second": second}
        yield Prompter(subject=subject, fenced=cfg.fence, pair=shown).messages(cfg.input)


def _score(
    cfg: ScoreModelGrader | LabelModelGrader,
    polls: Sequence[Poll[T]],
    values: Sequence[float],
    width: float,
) -> Score:
    """Put together what the orders gave.

    Args:
        values: of each order.
        width: of the range of scores.
    """
    usage = NO_TOKENS
    for found in polls:
        usage = plus(usage, found.usage)
    notes: dict[str, JsonValue] = {
        "sampled_model_name": polls[0].votes[0].model,
        "verdicts": [v for found in polls for v in found.record()],
    }
    if len(values) > 1:
        gap = abs(values[0] - values[1])
        notes["orders"] = list(values)
        notes["orders_disagree"] = gap > _DISAGREE * width
    return Score(value=statistics.fmean(values), usage={cfg.model: usage}, notes=notes)
