"""The built-in graders, and what is refused before a run."""

from collections.abc import Callable

import pytest

from configs.schema import RewardConfig, SourceConfig
from rewards.graders import resolve_function, validate_rewards
from rollouts.types import Rollout, Task

Make = Callable[..., Rollout]
MakeTask = Callable[..., Task]
MakeSource = Callable[..., SourceConfig]


def reward(use: str, **args: object) -> RewardConfig:
    return RewardConfig.model_validate({"name": "r", "use": use, "args": args})


def test_exact(rollout: Make, task: MakeTask) -> None:
    grade = resolve_function(reward("exact"))
    assert grade(rollout(" 42\n"), task()) == 1.0
    assert grade(rollout("42."), task()) == 0.0
    assert grade(rollout(""), task()) == 0.0
    with pytest.raises(ValueError, match="has no answer"):
        grade(rollout("42"), task(answer=None))


def test_format(rollout: Make, task: MakeTask) -> None:
    grade = resolve_function(reward("format", pattern=r"<answer>.*</answer>"))
    assert grade(rollout("<answer>a\nb</answer>"), task()) == 1.0
    assert grade(rollout("so <answer>a</answer>"), task()) == 0.0


def test_environment_part(rollout: Make, task: MakeTask) -> None:
    assert resolve_function(reward("environment", part="world"))(rollout(""), task()) == 2.0
    assert resolve_function(reward("environment", part="x", missing=0))(rollout(""), task()) == 0.0
    with pytest.raises(LookupError, match="'x'"):
        resolve_function(reward("environment", part="x"))(rollout(""), task())


ENTRY = {"question": "3 + 4 =", "answer": "7", "metadata": {}}


@pytest.mark.parametrize(
    ("args", "text", "score"),
    [
        ({}, "7", 1.0),
        ({}, " 7 \n", 1.0),
        ({}, "8", 0.0),
        ({}, "", 0.0),
        ({}, "<answer>7</answer>", 0.0),
        ({"extract": "tag"}, "3 + 4 is <answer> 7 </answer>", 1.0),
        ({"extract": "tag"}, "<answer>8</answer> no, <answer>7</answer>", 1.0),
        ({"extract": "tag"}, "<answer>7</answer> no, <answer>8</answer>", 0.0),
        ({"extract": "tag"}, "7", 0.0),
        ({"extract": "tag"}, "<answer>7", 0.0),
    ],
)
def test_reasoning_gym_extracts_and_scores(
    rollout: Make, task: MakeTask, args: dict[str, object], text: str, score: float
) -> None:
    given = task(dataset="chain_sum", args={}, entry=ENTRY)
    assert resolve_function(reward("reasoning_gym", **args))(rollout(text), given) == score


def test_reasoning_gym_pays_partial_scores_only_when_asked(rollout: Make, task: MakeTask) -> None:
    entry = {"question": "reverse abcd", "answer": "dcba", "metadata": {}}
    given = task(dataset="spell_backward", args={}, entry=entry)
    whole = resolve_function(reward("reasoning_gym"))(rollout("dcbx"), given)
    partial = resolve_function(reward("reasoning_gym", binary=False))(rollout("dcbx"), given)
    assert whole == 0.0
    assert isinstance(partial, float) and 0.0 < partial < 1.0


def test_good_rewards_have_no_problems(source: MakeSource, grader_module: str) -> None:
    sources = [
        source(reward("reasoning_gym", extract="tag"), procedural="reasoning_gym/lcm"),
        source(reward(f"{grader_module}:length", factor=2)),
        source(reward("exact"), RewardConfig(name="f", use="format", args={"pattern": "x"})),
    ]
    assert validate_rewards(sources) == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (reward("exakt"), "Did you mean `exact`?"),
        (reward("no_such_file:f"), "module 'no_such_file' not found"),
        (reward("graders_for_test:lenght"), "Did you mean `length`?"),
        (reward("graders_for_test:length", facto=2), "Did you mean `factor`?"),
        (reward("graders_for_test:length", factor="x"), "factor"),
        (reward("graders_for_test:no_task"), "f(rollout, task)"),
        (reward("graders_for_test:not_callable"), "not a function"),
        (reward("format"), "'pattern'"),
        (reward("format", pattern="("), "not a regular expression"),
        (reward("reasoning_gym"), "grades tasks of `data.procedural` alone"),
    ],
)
def test_a_bad_grader_is_named_before_anything_starts(
    source: MakeSource, grader_module: str, bad: RewardConfig, words: str
) -> None:
    (problem,) = validate_rewards([source(bad)])
    assert problem.where.startswith("sources.s.rewards.r")
    assert words in str(problem)


def test_empty_and_doubled_rewards(source: MakeSource) -> None:
    assert "is empty" in str(validate_rewards([source()])[0])
    assert "two parts" in str(validate_rewards([source(reward("exact"), reward("exact"))])[0])
