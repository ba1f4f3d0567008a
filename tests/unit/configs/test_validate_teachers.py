"""Teachers in a recipe: what is found wrong before anything starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from configs.evaluation import due_sources
from configs.schema import RunConfig
from configs.tokenizer_files import tokenizer_difference
from configs.validate import active_groups, find_warnings, validate_run
from orchestrator.planning.plan import make_plan
from orchestrator.resume.rules import changed_fields

TINY = Path(__file__).parents[3] / "configs/models/tiny"
TEACHER = {
    "model": {"path": str(TINY), "dtype": "float32", "max_model_len": 128},
    "max_tokens_per_batch": 1024,
}
DISTILL = {"teacher": "big"}


def run_config(
    source: dict[str, Any] | None = None, teacher: dict[str, Any] | None = None, **more: Any
) -> RunConfig:
    data = {
        "name": "t",
        "num_steps": 1,
        "model": {"path": str(TINY), "dtype": "float32", "max_model_len": 128},
        "sources": [
            {
                "name": "s",
                "data": {"procedural": "reasoning_gym/chain_sum"},
                "sampling": {"max_tokens": 16},
                "distill": DISTILL,
                **(source or {}),
            }
        ],
        "batch": {"groups_per_step": 1, "max_tokens_per_microbatch": 1024},
        "teachers": {"big": {**TEACHER, **(teacher or {})}},
        **more,
    }
    return RunConfig.model_validate_json(json.dumps(data))


REWARDS = [{"name": "r", "use": "exact"}]


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"rewards": REWARDS},
        {"rewards": REWARDS, "advantage": {"use": "none"}},
        {"group_size": 1},
    ],
)
def test_a_sound_teacher_has_no_problem_and_no_warning(source: dict[str, Any]):
    cfg = run_config(source)
    assert validate_run(cfg) == []
    assert find_warnings(cfg) == []
    assert list(active_groups(cfg)) == ["trainer", "rollout", "teachers.big", "reward"]


@pytest.mark.parametrize(
    ("source", "where", "what"),
    [
        ({"distill": {"teacher": "no"}}, "sources.s.distill.teacher", "no teacher `no`"),
        ({"distill": None}, "sources.s.rewards", "is empty"),
        (
            {"distill": None, "rewards": REWARDS, "advantage": {"use": "none"}},
            "sources.s.advantage",
            "train nothing",
        ),
        ({"difficulty": {"window": [0.1, 0.9]}}, "sources.s.difficulty.window", "no rewards"),
        ({"eval": {"samples": 2}}, "sources.s.eval", "no rewards"),
        (
            {"gold": {"grader": {"type": "function", "use": "exact"}}},
            "sources.s.gold",
            "no rewards",
        ),
    ],
)
def test_what_a_source_cannot_have(source: dict[str, Any], where: str, what: str):
    (problem,) = [p for p in validate_run(run_config(source)) if p.where == where]
    assert what in problem.what
    assert problem.fix


@pytest.mark.parametrize(
    ("teacher", "where"),
    [
        ({"model": {**TEACHER["model"], "max_model_len": 64}}, "teachers.big.model.max_model_len"),  # type: ignore[dict-item]
        (
            {"model": {**TEACHER["model"], "max_model_len": 4096}, "max_tokens_per_batch": 4096},  # type: ignore[dict-item]
            "teachers.big.model.max_model_len",
        ),
        ({"max_tokens_per_batch": 100}, "teachers.big.max_tokens_per_batch"),
        ({"actors": {"gpus": 2}}, "teachers.big.actors.gpus"),
        ({"model": {"path": "/no/such"}}, "teachers.big.model.path"),
    ],
)
def test_what_a_teacher_cannot_be(teacher: dict[str, Any], where: str):
    problems = validate_run(run_config(teacher=teacher))
    assert where in [p.where for p in problems]
    assert all(p.fix for p in problems if p.where == where)


def test_a_stage_cannot_wait_for_what_nothing_grades():
    stages = [{"until": {"metric": "eval/s/pass_rate", "gte": 0.5}}, {}]
    problems = validate_run(run_config(stages=stages, eval={"every": 1}))
    assert "stages.0.until.metric" in [p.where for p in problems]


def test_a_teacher_of_nobody_is_said():
    cfg = run_config({"distill": None, "rewards": REWARDS})
    assert [p.where for p in find_warnings(cfg)] == ["teachers.big"]


def test_a_source_without_rewards_is_never_evaluated():
    assert due_sources(run_config(eval={"every": 1}), 1, last=True) == ()
    assert due_sources(run_config({"rewards": REWARDS}), 1, last=True) == ("s",)


def edited(folder: Path, **changes: Any) -> Path:
    """Return a copy of the tiny model's small files, its tokenizer.json changed."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(TINY / name, folder / name)
    for name, change in changes.items():
        path = folder / f"{name}.json"
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
    return folder


def swap(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    a, b = list(vocab)[3:5]
    vocab[a], vocab[b] = vocab[b], vocab[a]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({}, None),
        ({"tokenizer": lambda d: d.update(padding={"odd": 1})}, None),
        ({"tokenizer": swap}, "2 of its"),
        ({"tokenizer": lambda d: d["added_tokens"].pop()}, "1 of its"),
        ({"tokenizer_config": lambda d: d.update(eos_token="<|user|>")}, "end token"),
        ({"config": lambda d: d.update(vocab_size=100)}, "embedding has 100 rows"),
    ],
)
def test_tokenizers_are_compared_by_their_ids(
    tmp_path: Path, changes: dict[str, Any], difference: str | None
):
    found = tokenizer_difference(TINY, edited(tmp_path, **changes))
    assert (found is None) == (difference is None)
    assert difference is None or difference in str(found)


def test_folders_without_tokenizer_json_are_compared_by_their_files(tmp_path: Path):
    ours, theirs = tmp_path / "a", tmp_path / "b"
    for folder in (ours, theirs):
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(b"pieces")
    assert tokenizer_difference(ours, theirs) is None
    (theirs / "tokenizer.model").write_bytes(b"other")
    assert "differ" in str(tokenizer_difference(ours, theirs))
    assert "cannot be compared" in str(tokenizer_difference(ours, TINY))


def test_another_tokenizer_is_refused_with_the_remedy(tmp_path: Path):
    folder = edited(tmp_path, tokenizer=swap)
    shutil.copy(TINY / "model.safetensors", folder / "model.safetensors")
    cfg = run_config(teacher={"model": {**TEACHER["model"], "path": str(folder)}})  # type: ignore[dict-item]
    (problem,) = validate_run(cfg)
    assert problem.where == "teachers.big.model.path"
    assert "cannot score the policy's tokens" in problem.what
    assert "braid sft" in str(problem.fix)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"tokenizer_config": lambda d: d.update(eos_token="<|user|>", chat_template=None)}, None),
        ({"tokenizer": swap}, "other text than the policy wrote: 2 of its"),
        ({"config": lambda d: d.update(vocab_size=100)}, "embedding has 100 rows"),
        ({"config": lambda d: d.update(max_position_embeddings=100)}, "has 100 positions"),
        ({"config": lambda d: d.update(model_type="bloom")}, "layers of a bloom model"),
    ],
)
@pytest.mark.parametrize("role", ["reference", "critic"])
def test_reference_and_critic_must_read_what_the_policy_writes(
    tmp_path: Path, role: str, changes: dict[str, Any], said: str | None
):
    folder = edited(tmp_path, **changes)
    shutil.copy(TINY / "model.safetensors", folder / "model.safetensors")
    more: dict[str, Any] = {role: {"path": str(folder)}, "algorithm": {"kl": {"coef": 0.1}}}
    advantage = {"use": "gae" if role == "critic" else "grpo"}
    source = {"rewards": REWARDS, "distill": None, "advantage": advantage}
    cfg = run_config(source, teacher={}, **more)
    found = [p for p in validate_run(cfg) if p.where == f"{role}.path"]
    assert [said in p.what for p in found] == ([] if said is None else [True])


def test_the_plan_has_the_teachers_group_and_its_memory():
    plan = make_plan(run_config())
    assert plan.problems == ()
    assert "teachers.big" in {g.role for g in plan.groups}
    assert "teachers.big" in {m.role for b in plan.bundles for m in b.members}
    (memory,) = [m for m in plan.memory if m.role == "teachers.big"]
    assert memory.total_gib is not None
    assert {p.name for p in memory.parts} >= {"weights", "activations", "logit chunk"}


def test_a_resumed_run_keeps_its_teacher_and_may_place_it_elsewhere(tmp_path: Path):
    before = run_config()
    placed = run_config(teacher={"actors": {"count": 2}, "timeout_s": 9.0})
    assert all(c.allowed for c in changed_fields(before, placed))
    other = run_config({"distill": {"teacher": "big", "coef": 0.5}})
    assert [c.allowed for c in changed_fields(before, other)] == [False]


def test_the_plan_evaluates_what_is_graded_alone():
    assert make_plan(run_config()).evaluation == ()
    assert len(make_plan(run_config({"rewards": REWARDS})).evaluation) == 1


def test_a_teachers_own_python_must_be_pinned(tmp_path: Path):
    folder = tmp_path / "teacher"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "m.M"}}))
    (folder / "m.py").write_text("class M: ...\n")
    cfg = run_config(teacher={"model": {**TEACHER["model"], "path": str(folder)}})
    (problem,) = [p for p in validate_run(cfg) if p.where.endswith("trust_remote_code")]
    assert problem.where == "teachers.big.model.trust_remote_code"
