"""What a bench grades: rows with a right answer each, and what all rows have been seen to say."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import JsonValue

from configs.errors import ConfigError, Problem, first_few
from rewards.subject import Subject, item_of
from rewards.templates import parse_template
from rollouts.types import (
    Completion,
    FinishReason,
    Rollout,
    RolloutStatus,
    Task,
    Turn,
)

_FIX = (
    "Give each row an `answer`, or a `reference` that is a right answer as the policy would "
    "write it, or say how to make one: --reference-template '<answer>{{ item.answer }}</answer>'."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One row to be answered rightly and wrongly."""

    index: int
    """In the data, from 0."""
    task: Task
    answer: str
    """The bare answer; the reference where the row has none."""
    reference: str
    """A right answer as the policy would write it."""
    wrap: Callable[[str], str]
    """Puts a bare answer into the form that the reference has."""
    bare: bool = True
    """Whether there is a bare answer. A reference alone (of code, say) is not hedged by others
    beside it: a file with more functions than asked for is as right."""

    @property
    def prompt(self) -> str:
        """What the policy is asked."""
        if self.task.prompt:
            return "\n".join(m.content for m in self.task.prompt)
        asked = (self.task.metadata.get(key) for key in ("prompt", "question", "input"))
        return next((text for text in asked if isinstance(text, str)), "")

    def subject(self, text: str) -> Subject:
        """Return the row answered by `text`."""
        nothing = np.zeros(0, np.int32)
        done = Completion(
            token_ids=nothing,
            logprobs=np.zeros(0, np.float32),
            finish_reason=FinishReason.STOP,
            versions=(),
        )
        rollout = Rollout(
            index=0,
            turns=(Turn(prompt_ids=nothing, completion=done, text=text),),
            status=RolloutStatus.COMPLETED,
            reward_parts={},
        )
        return Subject(task=self.task, rollout=rollout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a policy may know of all rows: their answers, and how often each is right."""

    rows: tuple[BenchRow, ...]
    answers: tuple[str, ...]
    """Distinct, the most frequent first."""
    majority_share: float
    """Share of rows whose answer is the most frequent one: what a guess earns."""
    passing: tuple[str, ...] = ()
    """Labels and verdicts that the grader is told to pay for."""

    @property
    def majority(self) -> str:
        """The most frequent answer."""
        return self.answers[0]

    @staticmethod
    def of(rows: Sequence[BenchRow], passing: Sequence[str] = ()) -> "Seen":
        """Look at the rows; there is at least one."""
        counts = Counter(row.answer for row in rows).most_common()
        return Seen(
            rows=tuple(rows),
            answers=tuple(answer for answer, _ in counts),
            majority_share=counts[0][1] / len(rows),
            passing=tuple(passing),
        )


def task_of(item: Mapping[str, JsonValue], index: int) -> Task:
    """Return a row of a file as a task: `messages` or `prompt` were asked, `answer` answers."""
    task = Subject.of_text(item, "").task
    return replace(task, task_id=f"row/{index}", source="row")


def bench_rows(
    tasks: Sequence[Task],
    template: str | None,
    places: Sequence[int] | None = None,
    graded_by: str | None = None,
) -> list[BenchRow]:
    """Return the tasks as rows with right answers.

    Args:
        template: of a right answer; without it, `reference` of the row, else its answer.
        places: of the tasks in the data, where they are drawn from it; None for all of it.
        graded_by: template of what the grader compares answers with, where that is an answer
            itself; used in rows that have neither reference nor answer.

    Raises:
        ConfigError: some rows have none, or the template does not fit.
    """
    rows: list[BenchRow] = []
    problems: list[Problem] = []
    for index, task in zip(places or range(len(tasks)), tasks, strict=True):
        try:
            rows.append(_row(index, task, template, graded_by))
        except LookupError as error:
            fix = _FIX if not problems else ""
            where = f"row {index + 1}"
            problems.append(Problem(where=where, what=str(error.args[0]), fix=fix))
    if problems:
        raise ConfigError(first_few(problems, "rows", 3))
    return rows


def _row(index: int, task: Task, template: str | None, graded_by: str | None) -> BenchRow:
    item = item_of(task)
    answer = _text(item.get("answer"))
    given = item.get("reference")
    if answer is None and not given and template is None and graded_by is not None:
        truth = parse_template(graded_by)
        for variable in truth.variables:
            variable.resolve({"item": dict(item)})
        answer = truth.render(Subject.of_text(item, ""))
    if template is not None:
        parsed = parse_template(template, "--reference-template")

        def wrap(text: str) -> str:
            return parsed.render(Subject.of_text({**item, "answer": text}, ""))

        for variable in parsed.variables:
            variable.resolve({"item": dict(item)})
        reference = parsed.render(Subject.of_text(item, ""))
    elif isinstance(given, str) and given:
        reference, wrap = given, _as_it_is
    elif answer is not None:
        reference, wrap = answer, _as_it_is
    else:
        raise LookupError("has neither `answer` nor `reference`")
    return BenchRow(
        index=index,
        task=task,
        answer=reference if answer is None else answer,
        reference=reference,
        wrap=wrap,
        bare=answer is not None,
    )


def _as_it_is(text: str) -> str:
    return text


def _text(value: JsonValue) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
