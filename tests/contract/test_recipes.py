"""Every recipe that ships is complete, sound, and planned without a GPU."""

from pathlib import Path

import pytest

from configs.load import load_any, load_recipe, save_config
from configs.schema import RunConfig
from configs.validate_sft import warn_sft
from orchestrator.planning.plan import make_plan
from orchestrator.sft.plan import prepare

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs/recipes"
LESSONS = [FOLDER / f"{name}.yaml" for name in ("sft", "reward_model")]
RECIPES = sorted({*FOLDER.glob("*.yaml"), *FOLDER.glob("algorithms/*.yaml")} - set(LESSONS))
NAMES = {"quickstart", "one_gpu", "eight_gpus", "multi_node"}


MADE_FIRST = {
    "code_tests": ["model.path"],
    "json_extraction": ["model.path"],
    "distillation": ["teachers.sft.model.path"],
}
"""Recipes with models that a command makes, which they name; the quickstart's stands in."""


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(ROOT)
    fields = MADE_FIRST.get(path.stem, ())
    return load_recipe(path, [f"{field}=configs/models/tiny" for field in fields])


def test_the_promised_recipes_are_there():
    assert {p.stem for p in RECIPES} >= NAMES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_has_no_problem(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    plan = make_plan(load(recipe, monkeypatch), gpu_gib=80)
    assert plan.problems == ()
    assert [w for w in plan.warnings if "hub name" not in w.what] == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_survives_saving(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cfg = load(recipe, monkeypatch)
    save_config(cfg, tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml") == cfg


@pytest.mark.parametrize(
    ("name", "gpus", "hosts_of"),
    [("one_gpu", 1, 1), ("eight_gpus", 8, 8), ("multi_node", 32, 8)],
)
def test_gpu_recipes_use_what_they_say(
    name: str, gpus: int, hosts_of: int, monkeypatch: pytest.MonkeyPatch
):
    plan = make_plan(load(ROOT / "configs" / "recipes" / f"{name}.yaml", monkeypatch))
    assert plan.totals.gpus == gpus
    assert all(b.gpus <= hosts_of for b in plan.bundles)


@pytest.mark.parametrize("recipe", LESSONS, ids=lambda p: p.stem)
def test_a_recipe_of_lessons_has_no_problem_and_survives_saving(recipe: Path, tmp_path: Path):
    cfg = load_any(recipe)
    assert not isinstance(cfg, RunConfig)
    made = prepare(cfg)
    assert warn_sft(cfg, made.run.num_steps) == []
    assert len(made.held_out) == cfg.data.held_out
    save_config(cfg, tmp_path / "config.yaml")
    assert load_any(tmp_path / "config.yaml") == cfg


def test_quickstart_needs_no_gpu_and_at_most_two_cores(monkeypatch: pytest.MonkeyPatch):
    plan = make_plan(load(ROOT / "configs" / "recipes" / "quickstart.yaml", monkeypatch))
    assert plan.totals.gpus == 0
    assert plan.totals.cpus <= 2
    assert len(plan.sources) >= 3
