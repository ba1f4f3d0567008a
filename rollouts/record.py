"""What is written down of a rollout for people to read: one JSON object, of bounded size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from rollouts.types import F32, I32, Rollout, RolloutGroup, TrainingSample

TOKENS_A_STEP = 8192
"""Tokens that the record of a step may hold, over all its rollouts."""
_FEWEST = 64
"""Tokens that each rollout may have of them, however many rollouts there are."""
_HEARD_CHARACTERS = 2000
"""What is kept of each thing that the environment said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelled:
    """A rollout's tokens as texts, as far as they are kept."""

    pieces: tuple[str, ...]
    """Of the tokens [0, head) and [tail, L), special tokens spelt out."""
    head: int
    tail: int
    heard: tuple[str, ...]
    """What the environment said before each turn but the first, special tokens left out."""


def room_for(num_rollouts: int) -> int:
    """Return how many tokens of each of a step's recorded rollouts are kept."""
    return max(_FEWEST, TOKENS_A_STEP // max(1, num_rollouts))


def stretches(rollout: Rollout, room: int) -> tuple[int, int, tuple[I32, ...]]:
    """Cut a rollout's tokens to their first and last ones, `room` in all.

    Returns:
        head and tail as in `Spelled`, and what is kept: pieces that are decoded each for itself,
        because another wrote them or because something between them is left out.
    """
    parts = [ids for t in rollout.turns for ids in (t.prompt_ids, t.completion.token_ids)]
    length = sum(map(len, parts))
    head = length if length <= room else room // 2
    tail = length if length <= room else length - (room - head)
    kept: list[I32] = []
    start = 0
    for ids in parts:
        end = start + len(ids)
        kept.append(ids[: max(0, head - start)])
        if end > tail > head:
            kept.append(ids[max(0, tail - start) :])
        start = end
    return head, tail, tuple(ids for ids in kept if len(ids))


def record(
    group: RolloutGroup,
    step: int,
    spelled: Sequence[Spelled] = (),
    samples: Mapping[int, TrainingSample] | None = None,
    policy_logprobs: Mapping[int, F32] | None = None,
) -> list[dict[str, JsonValue]]:
    """Return an object for each rollout of a graded group, and for the greedy one beside it.

    Args:
        spelled: one a rollout, in order; without them no token is written down.
        samples: what was trained on, by the rollout's index, advantages as they were applied.
        policy_logprobs: the trainer's before the update [L], by the rollout's index.
    """
    texts: Sequence[Spelled | None] = spelled or [None] * len(group.rollouts)
    rows: list[dict[str, JsonValue]] = []
    for rollout, own in zip(group.rollouts, texts, strict=True):
        row = _row(group, rollout, step)
        if own is not None:
            row["heard"] = [text[:_HEARD_CHARACTERS] for text in own.heard]
            sample = (samples or {}).get(rollout.index)
            row["tokens"] = _tokens(
                rollout, own, sample, (policy_logprobs or {}).get(rollout.index)
            )
        rows.append(row)
    if group.greedy is not None:
        rows.append(_row(group, group.greedy, step))
    return rows


def _row(group: RolloutGroup, r: Rollout, step: int) -> dict[str, JsonValue]:
    task = group.request.task
    return {
        "step": step,
        "group_id": group.request.group_id,
        "source": task.source,
        "index": r.index,
        "greedy": r is group.greedy,
        "prompt": [{"role": m.role, "content": m.content} for m in task.prompt],
        "answer": task.answer,
        "completions": [t.text for t in r.turns],
        "status": r.status,
        "reward": r.reward,
        "reward_parts": dict(r.reward_parts),
        "spans": [[s.part, s.turn, s.start, s.end, s.score] for s in r.spans],
        "reward_notes": dict(r.reward_notes),
        "gold": None if r.gold is None else r.gold.score,
        "tampering": r.tampering,
        "versions": list(r.versions),
        "completion_tokens": r.num_completion_tokens,
        "error": None if r.error is None else f"{r.error.boundary}: {r.error.message}",
    }


def _tokens(
    rollout: Rollout, spelled: Spelled, sample: TrainingSample | None, policy: F32 | None
) -> dict[str, JsonValue]:
    """Return the kept tokens: texts of all, numbers of those that the policy sampled."""
    parts = [(len(t.prompt_ids), t.completion) for t in rollout.turns]
    mask = np.concatenate(
        [np.zeros(0, bool)] + [np.arange(n + len(c.token_ids)) >= n for n, c in parts]
    )
    kept = np.ones(len(mask), bool)
    kept[spelled.head : spelled.tail] = False
    logprobs = np.zeros(len(mask), np.float32)
    if parts:
        logprobs[mask] = np.concatenate([c.logprobs for _, c in parts])
    shown = mask & kept
    found: dict[str, JsonValue] = {
        "text": list(spelled.pieces),
        "sampled": _runs(mask[kept]),
        "logprob": _short(logprobs[shown]),
    }
    if spelled.tail > spelled.head:
        found["left_out"] = [spelled.head, spelled.tail - spelled.head]
    if sample is not None:
        advantages = sample.advantages[shown]
        same = len(advantages) > 0 and bool((advantages == advantages[0]).all())
        found["advantage"] = round(float(advantages[0]), 4) if same else _short(advantages)
    if policy is not None:
        found["trainer_logprob"] = _short(policy[shown])
    return found


def _short(values: F32) -> list[JsonValue]:
    """Return numbers that cost few characters: six digits tell gaps of 1e-5 in a logprob."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _runs(mask: np.ndarray) -> list[JsonValue]:  # type: ignore[type-arg]
    """Return [start, end) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [[int(a), int(b)] for a, b in edges.reshape(-1, 2)]
