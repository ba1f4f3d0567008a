"""`braid grade`: one answer through one grader, told as the RFT API's `graders/run` tells it."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pydantic import JsonValue
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from configs.errors import ConfigError, Problem
from configs.graders.union import GraderConfig
from configs.load import load_grader, parse_grader
from orchestrator.commands.output import print_json
from orchestrator.interrupt import run_interruptible
from orchestrator.judge_file import models_from
from rewards.rows import check_item
from rewards.score import FailureKind, GradeFailed, Score, Usage
from rewards.standalone import ROOT, Grading
from rewards.subject import Subject

_FLAGS = (
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
)
_DETAILS: Mapping[str, str] = {
    "python_grader_server_error": "python_grader_server_error_type",
    "python_grader_runtime_error": "python_grader_runtime_error_details",
    "model_grader_server_error": "model_grader_server_error_details",
}
"""Flag -> the text that goes with it."""
_JUDGED = ("score_model", "label_model", "rubric", "reward_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """What became of one answer: a score, or why there is none."""

    grader: GraderConfig
    score: Score | None
    failed: GradeFailed | None = None
    seconds: float = 0.0
    faults: Mapping[str, str] = field(default_factory=dict[str, str])
    """Error flags of what the policy did wrong, e.g. an answer that is not JSON, and why."""

    def response(self) -> dict[str, JsonValue]:
        """Return the `graders/run` response: reward 0 with the error's flag set on a failure."""
        usage = {} if self.score is None else dict(self.score.usage)
        scores = {} if self.score is None else dict(self.score.parts)
        return {
            "reward": 0.0 if self.score is None else self.score.value,
            "sub_rewards": cast(JsonValue, scores),
            "metadata": {
                "name": self.grader.name,
                "type": self.grader.type,
                "errors": self._errors(),
                "execution_time": self.seconds,
                "scores": cast(JsonValue, scores),
                "token_usage": _tokens(list(usage.values())) if usage else None,
                "sampled_model_name": self._model(list(usage)),
            },
            "model_grader_token_usage_per_model": {m: _tokens([u]) for m, u in usage.items()},
        }

    def _errors(self) -> dict[str, JsonValue]:
        said = dict(self.faults)
        if self.failed is not None:
            flag = _flag(self.failed.kind, self.grader.type)
            said[flag] = self.failed.message if flag == self.failed.kind else str(self.failed)
        errors: dict[str, JsonValue] = {flag: flag in said for flag in _FLAGS}
        return errors | {detail: said.get(flag) for flag, detail in _DETAILS.items()}

    def _model(self, used: list[str]) -> str | None:
        noted = None if self.score is None else self.score.notes.get("sampled_model_name")
        return noted if isinstance(noted, str) else used[0] if len(used) == 1 else None


def read_grader(text: str) -> GraderConfig:
    """Read a grader from a file, or from JSON or YAML given as `{...}`.

    Raises:
        ConfigError: all that is wrong with it.
    """
    if text.lstrip().startswith("{"):
        return parse_grader(text, "GRADER")
    return load_grader(Path(text))


def read_item(text: str) -> dict[str, JsonValue]:
    """Read a row from JSON, or from the file behind an `@`.

    Raises:
        ConfigError: it is no JSON object.
    """
    try:
        item = json.loads(_inline_or_file(text, "--item"))
    except ValueError as error:
        what = f"is not JSON: {error}"
        raise ConfigError(Problem(where="--item", what=what, fix="Give {...}, or @FILE.")) from None
    if not isinstance(item, dict):
        raise ConfigError(Problem(where="--item", what="is no JSON object", fix="Give {...}."))
    return cast("dict[str, JsonValue]", item)


def read_sample(text: str) -> str:
    """Read an answer: the text itself, or the content of the file behind an `@`."""
    return _inline_or_file(text, "--sample")


def grade_and_show(
    grader: str, item: str, sample: str, judges_file: Path | None, *, as_json: bool
) -> int:
    """Grade one answer and print what became of it; return the exit code, 1 if the grader cannot
    judge it.

    Raises:
        ConfigError: grader, row or answer cannot be used.
    """
    row = read_item(item)
    graded = grade_one(read_grader(grader), row, read_sample(sample), judges_file)
    if as_json:
        print_json(graded.response())
    else:
        Console().print(render_graded(graded, row), soft_wrap=True)
    return int(graded.failed is not None)


def grade_one(
    grader: GraderConfig,
    item: Mapping[str, JsonValue],
    sample: str,
    judges_file: Path | None = None,
) -> Graded:
    """Grade one answer.

    Args:
        judges_file: file of the judges and reward models that it may ask.

    Raises:
        ConfigError: what is wrong with the grader, or it asks a judge that the file has not.
    """
    return run_interruptible(_grade(grader, Subject.of_text(item, sample), judges_file))


async def _grade(grader: GraderConfig, subject: Subject, judges_file: Path | None) -> Graded:
    async with (
        models_from(judges_file, grader, "grader") as models,
        Grading(grader, judges=models.judges, reward_models=models.reward_models) as grading,
    ):
        started = time.monotonic()
        try:
            score, failed = await grading.score(subject), None
        except GradeFailed as error:
            score, failed = None, error
    return Graded(
        grader=grader,
        score=score,
        failed=failed,
        seconds=time.monotonic() - started,
        faults={} if score is None else dict(_faults(score.notes)),
    )


def render_graded(graded: Graded, item: Mapping[str, JsonValue]) -> RenderableType:
    """Return the outcome as tables for people."""
    title = Text(f"{graded.grader.type} {graded.grader.name}".strip())
    table = Table(title=title, title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    if graded.failed is not None:
        table.add_row("no score", graded.failed.kind, style="red")
        said = graded.failed.message
        near = [str(p) for p in check_item(graded.grader, item, ROOT) if p.what != said]
        return Group(table, *map(Text, [said, *near]))
    assert graded.score is not None
    table.add_row("reward", f"{graded.score.value:g}", style="bold")
    for name, value in graded.score.parts.items():
        table.add_row(Text(f"  {name}"), f"{value:g}")
    told = [f"{flag}: {why}" for flag, why in graded.faults.items()]
    if graded.score.notes and not told:
        told = [json.dumps(dict(graded.score.notes), ensure_ascii=False)]
    return Group(table, *map(Text, told))


def _flag(kind: str, grader: str) -> str:
    if kind in _FLAGS:
        return kind
    if kind in (FailureKind.TIMEOUT, FailureKind.WORKER_LOST):
        return "model_grader_server_error" if grader in _JUDGED else "python_grader_server_error"
    if kind == FailureKind.NOT_A_NUMBER:
        return "unresponsive_reward_error"
    return "python_grader_runtime_error"  # an exception's name


def _faults(notes: Mapping[str, JsonValue]) -> list[tuple[str, str]]:
    """Return the flags that policy faults set, of a grader and of its parts."""
    found: list[tuple[str, str]] = []
    if isinstance(notes.get("policy_fault"), str):
        found.append((_flag(str(notes["policy_fault"]), ""), str(notes.get("why", ""))))
    for below in notes.values():
        if isinstance(below, dict):
            found.extend(_faults(below))
    return found


def _tokens(used: list[Usage]) -> JsonValue:
    prompt = sum(u.prompt_tokens for u in used)
    completion = sum(u.completion_tokens for u in used)
    return {
        "prompt_tokens": prompt,
        "total_tokens": prompt + completion,
        "completion_tokens": completion,
        "cached_tokens": sum(u.cached_tokens for u in used),
    }


def _inline_or_file(text: str, where: str) -> str:
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except OSError as error:
        what = f"{text[1:]} cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        what = f"{text[1:]} is not UTF-8 text (byte {error.start})"
    raise ConfigError(Problem(where=where, what=what, fix="Give the text itself, or @FILE."))
