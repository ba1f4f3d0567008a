"""From scores of text to scores of tokens: which token finishes each scored span, and what each
span counts for.

A span's score falls due at the token that writes its last character; one that reaches the end of a
turn's text falls due at the turn's last token, the sampled end token. `rollouts.advantages` turns
that into advantages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.objective import CreditConfig
from rollouts.types import I32, Rollout, SpanScore

F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The scored spans of one rollout that one reward part gave, in the order in which they end."""

    ends: I32
    """[K], token at which each falls due, counted over the tokens that the policy sampled."""
    scores: F64
    """[K]"""
    weights: F64
    """[K], what each counts for in the part's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCredit:
    """One reward part over the valid rollouts of a group."""

    name: str
    weight: float
    values: F64
    """[G], behind its gates."""
    steps: tuple[Steps | None, ...]
    """[G], None where the part is for the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCredit:
    """All that the valid rollouts of a group were given: what an estimator of tokens works on."""

    rewards: F64
    """[G]"""
    parts: tuple[PartCredit, ...]
    num_tokens: tuple[int, ...]
    """[G], C: tokens that the policy sampled, over all turns."""


def step_weights(num_steps: int, credit: CreditConfig) -> F64:
    """Return what each of `num_steps` scores counts for [K]: the value is their weighted sum."""
    match credit.aggregate:
        case "sum":
            return np.ones(num_steps)
        case "last":
            return np.array([0.0] * (num_steps - 1) + [1.0])
        case "discounted":
            return credit.gamma ** np.arange(num_steps, dtype=np.float64)
        case "mean" | None:
            return np.full(num_steps, 1 / num_steps)


def in_order(spans: Sequence[SpanScore]) -> list[SpanScore]:
    """Return spans in the order in which they end; all of one turn are in the same unit."""
    return sorted(spans, key=lambda span: (span.turn, span.end, span.start))


def aggregate(spans: Sequence[SpanScore], credit: CreditConfig) -> float:
    """Return the value that at least one span's scores make together."""
    scores = np.array([span.score for span in in_order(spans)])
    return float(step_weights(len(scores), credit) @ scores)


def check_spans(spans: Sequence[SpanScore], rollout: Rollout) -> str | None:
    """Return what is wrong with where the spans lie; None where nothing is."""
    units: dict[int, str] = {}
    for span in spans:
        shown = f"the span [{span.start}, {span.end}) of turn {span.turn}"
        if not 0 <= span.turn < len(rollout.turns):
            return f"{shown}: the rollout has {len(rollout.turns)} turns, counted from 0"
        turn = rollout.turns[span.turn]
        length = len(turn.text if span.unit == "characters" else turn.completion.token_ids)
        if not 0 <= span.start <= span.end <= length:
            return f"{shown}: the turn has {length} {span.unit}"
        if span.start == span.end < length:
            return f"{shown} is empty"
        if units.setdefault(span.turn, span.unit) != span.unit:
            return f"the spans of turn {span.turn} are in characters and in tokens; use one of them"
    return None


def locate(rollout: Rollout, part: str, credit: CreditConfig) -> Steps | None:
    """Return where the part's spans fall due; None where it gave none.

    Raises:
        ValueError: a turn of the rollout does not know which characters its tokens wrote.
    """
    spans = in_order([span for span in rollout.spans if span.part == part])
    if not spans:
        return None
    first, starts = 0, list[int]()
    for turn in rollout.turns:
        starts.append(first)
        first += len(turn.completion.token_ids)
    return Steps(
        ends=np.array([starts[s.turn] + _last_token(s, rollout) for s in spans], np.int32),
        scores=np.array([s.score for s in spans]),
        weights=step_weights(len(spans), credit),
    )


def _last_token(span: SpanScore, rollout: Rollout) -> int:
    """Return the token of the span's turn that finishes the span."""
    turn = rollout.turns[span.turn]
    if span.unit == "tokens":
        return max(0, span.end - 1)
    if span.end >= len(turn.text):
        return len(turn.completion.token_ids) - 1
    if turn.token_ends is None:
        raise ValueError(
            f"rollout {rollout.index}: the characters of a span cannot be found among the tokens "
            "of a turn that was sampled without `token_ends`"
        )
    return int(np.searchsorted(turn.token_ends, span.end))


def group_credit(
    rollouts: Sequence[Rollout],
    rewards: Sequence[float],
    parts: Mapping[str, tuple[float, CreditConfig | None]],
    values: Sequence[Mapping[str, float]],
    closed: Sequence[Sequence[str]],
) -> GroupCredit:
    """Gather what the valid rollouts of a group were given.

    Args:
        parts: name -> weight, and how its spans reach the tokens; None where they do not.
        values: of each rollout, every part behind its gates.
        closed: of each rollout, the parts whose gate is closed; their spans do not count.
    """

    def steps(name: str, credit: CreditConfig | None) -> tuple[Steps | None, ...]:
        if credit is None:
            return (None,) * len(rollouts)
        return tuple(
            None if name in shut else locate(rollout, name, credit)
            for rollout, shut in zip(rollouts, closed, strict=True)
        )

    return GroupCredit(
        rewards=np.array(rewards, np.float64),
        parts=tuple(
            PartCredit(
                name=name,
                weight=weight,
                values=np.array([v[name] for v in values], np.float64),
                steps=steps(name, credit),
            )
            for name, (weight, credit) in parts.items()
        ),
        num_tokens=tuple(r.num_completion_tokens for r in rollouts),
    )
