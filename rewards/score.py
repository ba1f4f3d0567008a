"""What grading one answer gives: a score, or the reason why there is none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import JsonValue

from rollouts.types import SpanScore


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens that a judge read and wrote."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How good one answer is."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    """Sub-rewards by name, as they entered `value`."""
    spans: tuple[SpanScore, ...] = ()
    """Credit for stretches of text; empty where `value` is for the whole."""
    usage: Mapping[str, Usage] = field(default_factory=dict[str, Usage])
    """Judge model -> what it was asked."""
    notes: Mapping[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """For the record: verdicts, explanations, what was extracted."""


class FailureKind(StrEnum):
    """Why there is no score. A function that raises has its exception's class name instead."""

    TIMEOUT = "timeout"
    WORKER_LOST = "WorkerLost"
    NOT_A_NUMBER = "NotANumber"
    BAD_SPAN = "BadSpan"
    FORMULA = "formula_parse_error"
    SAMPLE_PARSE = "sample_parse_error"
    INVALID_VARIABLE = "invalid_variable_error"
    SANDBOX = "python_grader_server_error"
    PYTHON = "python_grader_runtime_error"
    JUDGE_SERVER = "model_grader_server_error"
    JUDGE_REFUSAL = "model_grader_refusal_error"
    JUDGE_PARSE = "model_grader_parse_error"
    OTHER = "other_error"


class GradeFailed(Exception):
    """A grader cannot judge this answer. The rollout becomes invalid; nothing is scored 0."""

    def __init__(self, kind: str, message: str):
        self.kind, self.message = str(kind), message
        super().__init__(f"{kind}: {message}")


def policy_fault(fault: GradeFailed) -> Score:
    """Return the score of an answer that cannot be read as the grader asks: 0, and why."""
    return Score(value=0.0, notes={"policy_fault": fault.kind, "why": fault.message})
