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
from configs.judges import JudgeConfig
from configs.load import parse_grader
from configs.schema import RewardGroupConfig
from orchestrator.commands.grade import Graded
from rewards.compute import ComputePool
from rewards.evaluate import evaluate
from rewards.judges.cache import ReplyCache
from rewards.judges.client import Judge
from rewards.judges.panel import NO_REWARD_MODELS, Panel
from rewards.judges.request import JudgeRefused, JudgeRequest, JudgeUnavailable, Reply
from rewards.registry import ASYNC, COMPUTE, check_grader, children, leaves
from rewards.score import GradeFailed
from rewards.subject import Subject

TABLE = yaml.safe_load(Path(__file__).with_name("graders.yaml").read_text(encoding="utf-8"))
ELSEWHERE = {
    "rubric",
    "reward_model",
    "code_tests",
    "steps",
    "split_steps",
}
"""Types of ours whose cases stand with those who ask judges or start sandboxes."""
RFT = {"string_check", "text_similarity", "score_model", "label_model", "python", "multi"}
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


class Echo:
    """A judge that writes what it was last told."""

    identity = "echo"

    async def send(self, request: JudgeRequest) -> Reply:
        told = request.messages[-1].content
        text = told if isinstance(told, str) else "".join(b["text"] for b in told)  # type: ignore[union-attr, index, call-overload, misc]
        if text == "REFUSE":
            raise JudgeRefused("I would rather not")
        if text == "DOWN":
            raise JudgeUnavailable("HTTP 503")
        return Reply(text=text, model="echo-1")

    async def close(self) -> None:
        pass


class WithJudges:
    """Rules in a process, and the judge."""

    reward_models = NO_REWARD_MODELS

    def __init__(self, pool: ComputePool):
        cfg = JudgeConfig(retries=0)
        judge = Judge("echo", cfg, Echo(), cache=ReplyCache(0), limit=1)
        self.judges, self.compute = Panel("judges", {"echo": judge}), pool.compute


async def grade_all(graders: list[GraderConfig]) -> list[Graded]:
    rules = {p: g for i, grader in enumerate(graders) for p, g in leaves(grader, f"g{i}")}
    pool = ComputePool(RewardGroupConfig(workers=1, timeout_s=30, retries=0), rules)
    services = WithJudges(pool)
    await pool.start()
    try:
        graded: list[Graded] = []
        for i, sample, _, item in cases():
            subject = Subject.of_text(item, sample)
            try:
                score, failed = await evaluate(graders[i], subject, services, f"g{i}"), None
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
    assert count >= 450
    of_rft = [i for i, *_ in cases() if TABLE["groups"][i]["grader"]["type"] in RFT]
    assert len(of_rft) >= 150
    kinds = {kind for group in TABLE["groups"] for kind in kinds_of(read(group["grader"]))}
    assert {*COMPUTE, *ASYNC} - ELSEWHERE == kinds
