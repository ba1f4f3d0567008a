"""Gold graders, what the monitors are told, and thresholds that cannot do what they say."""

import copy
from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError
from configs.load import load_recipe, save_config
from configs.schema import RunConfig
from configs.validate_monitors import check_monitors, warn_monitors
from rewards.graders import validate_rewards

BASE = {
    "name": "t",
    "num_steps": 100,
    "model": {"path": "org/model"},
    "sources": [
        {
            "name": "s",
            "data": {"jsonl": "x"},
            "rewards": [{"name": "judge", "use": "exact"}, {"name": "rule", "use": "exact"}],
        }
    ],
    "batch": {"groups_per_step": 4},
}


def config(source: dict[str, object], **more: object) -> RunConfig:
    data = copy.deepcopy(BASE)
    data["sources"][0].update(source)
    return RunConfig.model_validate({**data, **more})


def gold(**fields: object) -> dict[str, object]:
    return {"gold": {"grader": {"type": "function", "use": "exact"}, **fields}}


@pytest.mark.parametrize(
    ("source", "where", "what"),
    [
        ({"watch": {"format": "form"}}, "watch.format", "no part `form`"),
        ({"watch": {"compare": ["judge", "rules"]}}, "watch.compare", "no part `rules`"),
        ({"watch": {"compare": ["rule", "rule"]}}, "watch.compare", "twice"),
        (gold(weight=0), "gold.weight", "every gold score would be 0"),
    ],
)
def test_each_problem_is_told(source: dict[str, object], where: str, what: str):
    (problem,) = check_monitors(config(source).sources[0])
    assert problem.where == f"sources.s.{where}"
    assert what in problem.what


def test_sound_ones_have_no_problem_and_no_warning():
    cfg = config({"watch": {"format": "rule", "compare": ["judge", "rule"]}, **gold()})
    assert list(check_monitors(cfg.sources[0])) == []
    assert list(warn_monitors(cfg)) == []


@pytest.mark.parametrize(
    ("source", "more", "where"),
    [
        ({}, {"monitors": {"gold": {"action": "stop"}}}, "monitors.gold.action"),
        ({}, {"monitors": {"disagreement": {"action": "stop"}}}, "monitors.disagreement.action"),
        ({}, {"monitors": {"kl": {"action": "stop"}}}, "monitors.kl.action"),
        (
            {},
            {"num_steps": 11, "monitors": {"format": {"action": "stop"}}},
            "monitors.window",
        ),
        (gold(fraction=0.01), {}, "sources.s.gold.fraction"),
    ],
)
def test_what_sees_nothing_is_warned_of(
    source: dict[str, object], more: dict[str, object], where: str
):
    assert [w.where for w in warn_monitors(config(source, **more))] == [where]


def test_a_gold_grader_is_checked_like_any_other():
    cfg = config({"gold": {"grader": {"type": "function", "use": "exactly"}}})
    (problem,) = validate_rewards(cfg.sources)
    assert problem.where.startswith("sources.s.gold.grader")


def test_a_gold_grader_may_stand_in_a_file(tmp_path: Path):
    (tmp_path / "gold.yaml").write_text("type: format\npattern: a\n")
    data = copy.deepcopy(BASE)
    data["sources"][0]["gold"] = {"grader": "gold.yaml"}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data))
    cfg = load_recipe(tmp_path / "r.yaml")
    assert cfg.sources[0].gold is not None and cfg.sources[0].gold.grader.type == "format"
    save_config(cfg, tmp_path / "saved.yaml")
    assert load_recipe(tmp_path / "saved.yaml") == cfg
    (tmp_path / "gold.yaml").write_text("type: fromat\n")
    with pytest.raises(ConfigError, match=r"gold\.yaml"):
        load_recipe(tmp_path / "r.yaml")


def test_tampering_stops_short_runs_too_and_is_not_warned_of():
    monitors = {"tampering": {"action": "stop"}}
    assert list(warn_monitors(config({}, monitors=monitors, num_steps=5))) == []
    monitors = {"length": {"action": "stop"}}
    (warning,) = warn_monitors(config({}, monitors=monitors, num_steps=5))
    assert warning.where == "monitors.window"


def test_stop_of_a_monitor_that_is_off_is_warned_of_alone():
    off = {"enabled": False, "action": "stop"}
    for name in ("length", "gold", "tampering"):
        (warning,) = warn_monitors(config({}, monitors={"window": 80, name: off}))
        assert warning.where == f"monitors.{name}.action"
        assert "`enabled` is false" in warning.what
