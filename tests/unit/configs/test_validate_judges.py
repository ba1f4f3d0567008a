"""Judges in a recipe: what is found wrong before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from configs.load import load_judges, load_recipe
from configs.schema import RunConfig
from configs.validate import active_groups, find_warnings, validate_run
from orchestrator.planning.plan import make_plan, plan_bundles
from orchestrator.resume.rules import changed_fields

TINY = str(Path(__file__).parents[3] / "configs/models/tiny")
ENDPOINT = {"endpoint": {"base_url": "https://judge.example/v1", "model": "m"}}
ENGINES = {
    "engines": {"model": {"path": TINY, "dtype": "float32", "max_model_len": 1024}},
    "max_tokens": 64,
}
RUBRIC = {
    "type": "rubric",
    "model": "judge-a",
    "criteria": [{"criterion": "is right", "points": 1}],
}


def run_config(judges: dict[str, Any], grader: object = RUBRIC, **more: Any) -> RunConfig:
    data = {
        "name": "t",
        "num_steps": 1,
        "model": {"path": TINY, "dtype": "float32", "max_model_len": 128},
        "sources": [
            {
                "name": "s",
                "data": {"procedural": "reasoning_gym/chain_sum"},
                "rewards": [{"name": "r", "grader": grader}],
                "sampling": {"max_tokens": 16},
            }
        ],
        "batch": {"groups_per_step": 1, "max_tokens_per_microbatch": 1024},
        "judges": judges,
        **more,
    }
    return RunConfig.model_validate_json(json.dumps(data))


@pytest.mark.parametrize("judge", [ENDPOINT, ENGINES])
def test_a_sound_judge_has_no_problem(judge: dict[str, Any]):
    assert validate_run(run_config({"judge-a": judge})) == []


@pytest.mark.parametrize(
    ("judges", "where", "what"),
    [
        ({}, "sources.s.rewards.r.grader.model", "not declared"),
        ({"judge-b": ENDPOINT}, "sources.s.rewards.r.grader.model", "`judge-a`"),
        ({"judge-a": {}}, "judges.judge-a", "neither"),
        ({"judge-a": {**ENDPOINT, **ENGINES}}, "judges.judge-a", "both"),
        ({"judge-a": {**ENDPOINT, "timeout_s": 900}}, "judges.judge-a.deadline_s", "less"),
        ({"judge-a": {**ENGINES, "max_tokens": 1024}}, "judges.judge-a.max_tokens", "no room"),
        (
            {"judge-a": {"engines": {"model": {"path": "/nowhere/at/all"}}}},
            "judges.judge-a.engines.model.path",
            "no folder",
        ),
        (
            {
                "judge-a": {
                    **ENGINES,
                    "engines": {**ENGINES["engines"], "tensor_parallel": 2, "actors": {"gpus": 1}},
                }
            },
            "judges.judge-a.engines.actors.gpus",
            "one GPU each",
        ),
        (
            {
                "judge-a": {
                    **ENDPOINT,
                    "calibration": {"anchors": "/no/file", "part": "s/q", "min_kappa": 0.5},
                }
            },
            "judges.judge-a.calibration.part",
            "no reward part",
        ),
    ],
)
def test_what_is_wrong_is_named(judges: dict[str, Any], where: str, what: str):
    found = validate_run(run_config(judges))
    assert any(p.where == where and what in p.what for p in found), found


def test_a_near_name_is_suggested():
    (problem,) = validate_run(run_config({"judge-b": ENDPOINT}))
    assert problem.fix == "Did you mean `judge-b`?"
    (problem,) = validate_run(run_config({"gpt": ENDPOINT}))
    assert "nothing is called that is not declared" in problem.fix


def test_one_request_for_each_reward_actor():
    cfg = run_config({"judge-a": {**ENDPOINT, "concurrency": 2}}, reward={"actors": {"count": 3}})
    assert [p.where for p in validate_run(cfg)] == ["judges.judge-a.concurrency"]


def test_reward_models_are_looked_up_among_their_own():
    grader = {"type": "reward_model", "model": "rm"}
    model = {"model": {"path": TINY, "max_model_len": 512}}
    assert validate_run(run_config({}, grader, reward_models={"rm": model})) == []
    (problem,) = validate_run(run_config({"rm": ENDPOINT}, grader))
    assert "`reward_models`" in problem.what


def test_a_judge_that_nobody_asks_is_warned_of():
    cfg = run_config({"judge-a": ENDPOINT, "spare": ENDPOINT})
    assert "judges.spare" in [p.where for p in find_warnings(cfg)]


def test_engines_and_reward_models_are_groups_of_their_own():
    cfg = run_config(
        {"judge-a": ENGINES, "far": ENDPOINT}, reward_models={"rm": {"model": {"path": TINY}}}
    )
    assert set(active_groups(cfg)) == {
        "trainer",
        "rollout",
        "reward",
        "judges.judge-a",
        "reward_models.rm",
    }
    seats = [m.role for b in plan_bundles(cfg) for m in b.members]
    assert seats.count("judges.judge-a") == 1
    plan = make_plan(cfg)
    assert {m.role for m in plan.memory} >= {"judges.judge-a", "reward_models.rm"}
    judge = next(m for m in plan.memory if m.role == "judges.judge-a")
    assert "sync buckets" not in {p.name for p in judge.parts}


@pytest.mark.parametrize("field", ["concurrency", "retries", "max_tokens"])
def test_how_a_judge_is_asked_may_change_between_attempts(field: str):
    before = run_config({"judge-a": ENGINES})
    after = run_config({"judge-a": {**ENGINES, field: 3}})
    (change,) = changed_fields(before, after)
    assert change.allowed


def test_which_model_judges_may_not():
    other = {**ENDPOINT, "endpoint": {**ENDPOINT["endpoint"], "model": "other"}}
    (change,) = changed_fields(run_config({"judge-a": ENDPOINT}), run_config({"judge-a": other}))
    assert not change.allowed


@pytest.mark.parametrize(
    "url",
    ["ftp://x/v1", "https://user:secret@x/v1", "https://x/v1?key=secret", "x/v1", "https://"],
)
def test_an_address_is_http_and_holds_no_secret(url: str):
    with pytest.raises(ValueError, match="base_url"):
        run_config({"judge-a": {"endpoint": {"base_url": url, "model": "m"}}})


def test_a_recipes_paths_are_taken_from_its_folder(tmp_path: Path):
    (tmp_path / "judge").mkdir()
    (tmp_path / "anchors.jsonl").write_text("")
    data = run_config(
        {
            "judge-a": {
                "engines": {"model": {"path": "judge"}},
                "calibration": {"anchors": "anchors.jsonl", "part": "s/r", "min_kappa": 0.1},
            }
        },
    ).model_dump(mode="json")
    (tmp_path / "r.yaml").write_text(json.dumps(data))
    judge = load_recipe(tmp_path / "r.yaml").judges["judge-a"]
    assert judge.engines is not None and judge.calibration is not None
    assert judge.engines.model.path == str(tmp_path / "judge")
    assert judge.calibration.anchors == str(tmp_path / "anchors.jsonl")


def test_a_file_of_judges(tmp_path: Path):
    path = tmp_path / "judges.yaml"
    path.write_text(json.dumps({"judges": {"gpt-4.1": ENDPOINT}}))
    assert list(load_judges(path).judges) == ["gpt-4.1"]
    path.write_text(json.dumps({"judges": {"gpt-4.1": {**ENDPOINT, "timeout": 3}}}))
    with pytest.raises(ConfigError, match="timeout_s"):
        load_judges(path)
    path.write_text(json.dumps({"judges": {"gpt-4.1": {}}}))
    with pytest.raises(ConfigError, match="neither"):
        load_judges(path)
