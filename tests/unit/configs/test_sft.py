"""A recipe of supervised fine-tuning: what is read, and what is found wrong before a start."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.errors import ConfigError
from configs.load import load_any, load_recipe, load_reward_model, load_sft, save_config
from configs.sft import SftConfig, training_run
from configs.validate_sft import validate_sft, warn_sft
from orchestrator.resume.rules import changed_fields
from orchestrator.sft.plan import plan_sft, prepare

ROOT = Path(__file__).parents[3]
TINY = str(ROOT / "configs/models/tiny")
ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def write(folder: Path, rows: int = 10, **more: Any) -> Path:
    """Write a recipe and its rows; dotted keys of `more` are set below their sections."""
    lines = []
    for i in range(rows):
        asked = {"role": "user", "content": f"q{i}"}
        lines.append(json.dumps({"messages": [asked, ROW["messages"][1]]}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    data: dict[str, Any] = {
        "type": "sft",
        "name": "t",
        "model": {"path": TINY, "dtype": "float32", "max_model_len": 128},
        "data": {"jsonl": "rows.jsonl"},
        "batch": {"rows_per_step": 4},
    }
    for key, value in more.items():
        section, _, field = key.partition("__")
        if field:
            data.setdefault(section, {})[field] = value
        else:
            data[section] = value
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_sound_recipe_is_read_and_saved(tmp_path: Path):
    cfg = load_sft(write(tmp_path), ["epochs=3"])
    assert validate_sft(cfg) == []
    assert cfg.data.jsonl == (str(tmp_path / "rows.jsonl"),)
    save_config(cfg, tmp_path / "config.yaml")
    assert load_any(tmp_path / "config.yaml") == cfg
    made = prepare(cfg)
    assert made.run.num_steps == 8  # 30 draws by 4
    assert made.run.algorithm.loss.use == "trainer.supervised:cross_entropy"


def test_steps_may_be_given(tmp_path: Path):
    assert prepare(load_sft(write(tmp_path, num_steps=5))).run.num_steps == 5


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"data": {}}, "data"),
        ({"data": {"jsonl": "rows.jsonl", "parquet": "rows.jsonl"}}, "data"),
        ({"data__jsonl": "gone.jsonl"}, "data.jsonl"),
        ({"data__held_out": 2, "data__held_out_file": "rows.jsonl"}, "data.held_out"),
        ({"eval": {"every": 2}}, "eval.every"),
        ({"trainer": {"actors": {"colocate_with": "rollout"}}}, "trainer.actors.colocate_with"),
        ({"trainer": {"offload": "parameters"}}, "trainer.offload"),
        ({"batch__max_tokens_per_microbatch": 64}, "batch.max_tokens_per_microbatch"),
        ({"model": {"path": "/no/such/model"}}, "model.path"),
        ({"model": {"path": TINY, "max_model_len": 4096}}, "model.max_model_len"),
    ],
)
def test_what_contradicts_itself_is_found_with_a_remedy(
    tmp_path: Path, more: dict[str, Any], where: str
):
    problems = validate_sft(load_sft(write(tmp_path, **more)))
    assert where in [p.where for p in problems]
    assert all(p.fix for p in problems if p.where == where)
    ours = set(SftConfig.model_fields)
    assert {p.where.split(".")[0] for p in problems} <= ours


def test_all_problems_come_at_once(tmp_path: Path):
    path = write(tmp_path, eval={"every": 2}, data__jsonl="gone.jsonl", trainer={"zero_stage": 0})
    with pytest.raises(ConfigError) as error:
        prepare(load_sft(path, ["trainer.offload=optimizer"]))
    assert {p.where for p in error.value.problems} >= {
        "eval.every",
        "data.jsonl",
        "trainer.offload",
    }


def test_an_unknown_field_and_another_kind_of_recipe_are_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="rows_per_step"):
        load_sft(write(tmp_path, batch__row_per_step=1))
    with pytest.raises(ConfigError, match="`braid run`"):
        load_sft(ROOT / "configs/recipes/quickstart.yaml")
    with pytest.raises(ConfigError, match="`braid sft`"):
        load_recipe(write(tmp_path))


def test_a_warmup_that_never_ends_is_said(tmp_path: Path):
    cfg = load_sft(write(tmp_path, trainer={"optimizer": {"warmup_steps": 9}}))
    assert [w.where for w in warn_sft(cfg, 3)] == ["trainer.optimizer.warmup_steps"]


def test_what_may_change_when_a_run_goes_on(tmp_path: Path):
    before = load_sft(write(tmp_path))
    for override, allowed in (("epochs=4", True), ("eval.every=3", True), ("seed=7", False)):
        (change,) = changed_fields(before, load_sft(tmp_path / "sft.yaml", [override]))
        assert change.allowed is allowed, override


def test_the_plan_says_steps_and_memory(tmp_path: Path):
    said = plan_sft(load_sft(write(tmp_path, rows=12, data__held_out=2)))
    assert "10 rows, 2 held out; 3 steps of 4 rows" in said
    assert "model states" in said


def test_the_trainers_view_keeps_the_shared_sections(tmp_path: Path):
    cfg = load_sft(write(tmp_path, trainer={"zero_stage": 3}, checkpoint={"every": 2}))
    run = training_run(cfg, 9)
    shared = ("name", "seed", "model", "trainer", "checkpoint", "logging", "health")
    assert all(getattr(run, field) == getattr(cfg, field) for field in shared)
    assert run.num_steps == 9


def test_a_reward_model_is_trained_whole_and_alone_in_its_rows(tmp_path: Path):
    shares = {"sequence_parallel": 2, "actors": {"count": 2}, "lora": {"rank": 4}}
    path = write(tmp_path, type="reward_model", trainer=shares)
    assert {p.where for p in validate_sft(load_reward_model(path))} >= {
        "trainer.lora",
        "trainer.sequence_parallel",
    }
