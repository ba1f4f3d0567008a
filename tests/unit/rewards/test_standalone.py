"""A grader works outside of a run as in one."""

import asyncio

import pytest

from configs.errors import ConfigError
from configs.graders.union import GRADER
from rewards.process import GraderProcess
from rewards.score import GradeFailed, Score
from rewards.standalone import Grading
from rewards.subject import Subject


def scores(grader: dict[str, object], *texts: str) -> list[float | str]:
    """Return the value, or the kind of failure, of each text."""

    async def run() -> list[Score | BaseException]:
        async with Grading(GRADER.validate_python(grader)) as grading:
            asked = [grading.score(Subject.of_text({"answer": "42"}, text)) for text in texts]
            return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(run(), 100))
    assert all(isinstance(f, Score | GradeFailed) for f in found)
    return [f.value if isinstance(f, Score) else str(getattr(f, "kind", f)) for f in found]


def test_answers_are_graded_at_the_same_time_in_one_process():
    assert scores({"type": "function", "use": "exact"}, "42", " 42\n", "43") == [1, 1, 0]


def test_a_failure_is_raised_and_the_next_answer_graded(
    grader_module: str, monkeypatch: pytest.MonkeyPatch
):
    grade = GraderProcess.grade

    def hang_briefly(
        process: GraderProcess, path: str, subject: Subject, timeout_s: float
    ) -> Score:
        assert timeout_s == 60
        hangs = subject.rollout.last_text == "hang"
        return grade(process, path, subject, 1 if hangs else timeout_s)

    monkeypatch.setattr(GraderProcess, "grade", hang_briefly)
    grader = {"type": "function", "use": f"{grader_module}:by_text", "timeout_s": 60}
    assert scores(grader, "raise", "hang", "fine") == ["ValueError", "timeout", 1]


def test_what_is_wrong_with_the_grader_is_told_before_anything_starts():
    with pytest.raises(ConfigError) as caught:
        Grading(GRADER.validate_python({"type": "format", "pattern": "["}))
    assert caught.value.problems[0].where == "grader.pattern"
