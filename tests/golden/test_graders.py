"""The table of `graders.yaml`: every type and operation, run as a run does, in one warm process."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.graders.union import GraderConfig
from configs.load import parse_grader
from configs.schema import RewardGroupConfig
from orchestrator.commands.grade import Graded
from rewards.compute import ComputePool
from rewards.evaluate import evaluate
from rewards.registry import ASYNC, COMPUTE, check_grader, children, leaves
from rewards.score import GradeFailed
from rewards.subject import Subject

TABLE = yaml.safe_load(Path(__file__).with_name("graders.yaml").read_text(encoding="utf-8"))
ELSEWHERE = {
    "score_model",
    "label_model",
    "rubric",
    "reward_model",
    "python",
    "code_tests",
    "steps",
    "split_steps",
}
"""Types whose cases stand with those who ask judges or start sandboxes."""
MODULE = """
def number(rollout, task, *, factor: float = 1.0):
    return factor * float(rollout.last_text)
"""


def read(grader: dict[str, Any]) -> GraderConfig:
    return parse_grader(json.dumps(grader), "grader")


def cases() -> Iterator[tuple[int, str, float | str, dict[str, Any]]]:
    """Yield group, sample, result and item of every case."""
    for i, group in enumerate(TABLE["groups"]):
        for sample, result, *own in group["cases"]:
            yield i, sample, result, own[0] if own else group.get("item", {})


def kinds_of(grader: GraderConfig) -> set[str]:
    return {grader.type}.union(*(kinds_of(child) for _, child in children(grader)))


async def grade_all(graders: list[GraderConfig]) -> list[Graded]:
    rules = {p: g for i, grader in enumerate(graders) for p, g in leaves(grader, f"g{i}")}
    pool = ComputePool(RewardGroupConfig(workers=1, timeout_s=30, retries=0), rules)
    await pool.start()
    try:
        graded: list[Graded] = []
        for i, sample, _, item in cases():
            subject = Subject.of_text(item, sample)
            try:
                score, failed = await evaluate(graders[i], subject, pool, f"g{i}"), None
            except GradeFailed as error:
                score, failed = None, error
            graded.append(Graded(grader=graders[i], score=score, failed=failed))
        return graded
    finally:
        await pool.close()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "graders_of_table.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("module")
def test_every_case_has_its_documented_result():
    graders = [read(group["grader"]) for group in TABLE["groups"]]
    assert [p for g in graders for p in check_grader(g, "grader")] == []
    wrong: list[str] = []
    graded = asyncio.run(asyncio.wait_for(grade_all(graders), 60))
    for (i, sample, result, item), outcome in zip(cases(), graded, strict=True):
        response = outcome.response()
        errors = response["metadata"]["errors"]  # type: ignore[index, call-overload]
        flags = [flag for flag, on in errors.items() if on is True]  # type: ignore[union-attr]
        if isinstance(result, str):
            right = flags == [result] and response["reward"] == 0 and outcome.score is None
        else:
            right = response["reward"] == pytest.approx(result, abs=1e-9) and not outcome.failed
        if not right:
            about = TABLE["groups"][i]["about"]
            said = outcome.failed or outcome.score
            wrong.append(f"{about}: {sample!r} of {item}: {result} expected, {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.usefixtures("module")
def test_a_bad_grader_is_refused_with_the_reason():
    for grader, said in TABLE["refused"]:
        with pytest.raises(ConfigError) as caught:
            problems = check_grader(read(grader), "grader")
            if problems:
                raise ConfigError(problems)
        assert said in str(caught.value), f"{grader}: {caught.value}"


def test_the_table_is_whole():
    count = sum(1 for _ in cases()) + len(TABLE["refused"])
    assert count >= 250
    kinds = {kind for group in TABLE["groups"] for kind in kinds_of(read(group["grader"]))}
    assert {*COMPUTE, *ASYNC} - ELSEWHERE == kinds
