import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import warm_start
from benchmarks.stack import PAGE, ROOT, overrides, section
from benchmarks.warm_start import KINDS, RUN, SFT, SOURCES, TEACHER_SEED, Cost, Job, Outcome
from configs.load import load_recipe, load_sft
from configs.schema import RunConfig
from configs.validate import validate_run
from configs.validate_sft import validate_sft

TINY = ROOT / "configs/models/tiny"
STEPS = 20
LENGTH = 5.0
"""Tokens of each made-up answer."""
PER_STEP = 960.0
"""And of all answers of a step."""


def recipe(kind: str, seed: int, model: Path | None = None) -> RunConfig:
    fields = warm_start.settings(Job(kind, seed), STEPS, model)  # type: ignore[arg-type]
    return load_recipe(RUN, overrides(fields)[1::2])


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_run(run_dir: Path, steps: int) -> None:
    """What a run leaves; it gets from 0.3 to 0.8."""
    tokens = {"completion_tokens": PER_STEP, "train/loss_tokens": PER_STEP}
    write(run_dir / "metrics.jsonl", [tokens] * steps)
    for step, rate in ((0, 0.3), (steps, 0.8)):
        row = {"step": step, "pass_rate": rate, "completion_tokens_mean": LENGTH}
        write(run_dir / "eval.jsonl", [{**row, "source": name} for name in SOURCES])


def test_the_teacher_comes_first_and_what_a_job_needs_comes_before_it():
    first, *rest = warm_start.plan([1, 2])
    assert first == Job("teacher", TEACHER_SEED)
    assert rest == [Job(kind, seed) for seed in (1, 2) for kind in KINDS]
    assert TEACHER_SEED not in (1, 2)
    assert all(KINDS.index(kind) < KINDS.index("warm") for kind in warm_start.BEFORE)
    assert KINDS.index("sft") < KINDS.index("gentle")


def test_all_ways_have_the_same_tasks_batches_and_optimizer():
    runs = {kind: recipe(kind, 3) for kind in ("rl", "teacher")}
    runs |= {kind: recipe(kind, 3, TINY) for kind in ("warm", "distillation")}
    assert not any(validate_run(cfg) for cfg in runs.values())
    alike = [
        (
            cfg.seed,
            cfg.num_steps,
            cfg.batch,
            cfg.trainer,
            cfg.eval,
            cfg.algorithm.loss,
            [(s.name, s.data, s.rewards, s.group_size, s.sampling) for s in cfg.sources],
        )
        for cfg in runs.values()
    ]
    assert all(a == alike[0] for a in alike)
    gentle = recipe("gentle", 3, TINY)
    rate = alike[0][3].optimizer.lr
    assert gentle.trainer.optimizer.lr == pytest.approx(rate / 4)
    assert gentle.model_copy(update={"trainer": runs["warm"].trainer}) == runs["warm"]
    taught = runs["distillation"]
    assert all(s.advantage.use == "none" and s.distill is not None for s in taught.sources)
    # one pass to score a token in either: the reference's, or the teacher's
    assert not taught.needs_reference and runs["rl"].needs_reference
    assert len(taught.teachers) == 1 and not runs["rl"].teachers


def test_rows_are_learnt_whole_under_the_seed(tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    write(rows, [{"messages": [{"role": "user", "content": "a"}]}])
    cfg = load_sft(SFT, overrides(warm_start.lessons(Job("sft", 4), rows))[1::2])
    assert validate_sft(cfg) == []
    assert (cfg.seed, cfg.epochs, cfg.data.held_out) == (4, warm_start.EPOCHS, 0)
    assert Path(str(cfg.data.jsonl[0])) == rows  # type: ignore[index]


def test_passes_are_one_to_sample_one_to_score_and_three_to_train(tmp_path: Path):
    write_run(tmp_path, 4)
    found = warm_start.run_cost(tmp_path)
    assert found == Cost(sampled=4 * PER_STEP, scored=4 * PER_STEP, trained=4 * PER_STEP)
    assert found.passes == 5 * 4 * PER_STEP
    assert warm_start.sft_cost(tmp_path).passes == 3 * 4 * PER_STEP
    asked = len(SOURCES) * warm_start.ITEMS * warm_start.SAMPLES
    assert warm_start.rows_cost(tmp_path).passes == asked * LENGTH
    assert (Cost(sampled=1) + Cost(scored=2, trained=3)).passes == 12


@given(st.integers(1, 200), st.floats(0, 1), st.floats(1, 1e6))
def test_a_budget_is_met_to_half_a_step(steps: int, share: float, passes: float):
    budget, spent = Cost(sampled=passes), Cost(sampled=share * passes)
    if round((1 - share) * steps) < 1:
        with pytest.raises(ValueError, match="give more --steps"):
            warm_start.steps_left(budget, spent, steps)
        return
    left = warm_start.steps_left(budget, spent, steps)
    per_step = passes / steps
    assert abs(spent.passes + left * per_step - passes) <= 0.5001 * per_step


def test_jobs_are_made_one_after_the_other_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    called: list[tuple[str, ...]] = []

    def braid(*arguments: object, log: Path) -> None:
        words = tuple(map(str, arguments))
        called.append(words[:2])
        at = Path(words[words.index("--run-dir") + 1]) if "--run-dir" in words else None
        if words[0] == "run" and at is not None:
            steps = next(w for w in words if w.startswith("num_steps=")).partition("=")[2]
            write_run(at, int(steps))
        elif words[0] == "sample":
            write(Path(words[words.index("--out") + 1]), [{}])
        elif words[0] == "sft" and at is not None:
            write(at / "metrics.jsonl", [{"train/loss_tokens": 100.0}])
        elif words[0] == "export":
            Path(words[3]).mkdir()

    monkeypatch.setattr(warm_start, "braid", braid)
    for job in warm_start.plan([1]):
        assert warm_start.outcome(1, tmp_path, STEPS) is None
        assert not warm_start.is_made(job, tmp_path, STEPS)
        warm_start.make(job, tmp_path, STEPS, None)
        assert warm_start.is_made(job, tmp_path, STEPS), job
    names = [name for name, _ in called]
    assert names == ["run", "export", "run", "sample", "sft", "export", "run", "run", "run"]
    found = warm_start.outcome(1, tmp_path, STEPS)
    assert found is not None
    spent = {name: cost.passes for name, cost in found.costs.items()}
    assert spent["rl"] == spent["distillation"] == STEPS * 5 * PER_STEP
    assert abs(spent["warm"] - spent["rl"]) <= 0.5 * 5 * PER_STEP
    assert spent["gentle"] == spent["warm"]
    assert 0 < spent["sft"] < spent["warm"] and 0 < found.warm_steps < STEPS
    assert found.rates["sft"] == dict.fromkeys(SOURCES, 0.3)  # as the RL after it begins
    assert warm_start.teacher_rates(Job("teacher", TEACHER_SEED).at(tmp_path)) == dict.fromkeys(
        SOURCES, 0.8
    )


@pytest.mark.parametrize("is_run", [True, False])
def test_a_given_teacher_is_a_run_or_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_run: bool
):
    given = tmp_path / "given"
    write(given / ("config.yaml" if is_run else "config.json"), [{}])
    exported: list[Path] = []

    def braid(*arguments: object, log: Path) -> None:
        assert arguments[:3] == ("export", given, "latest")
        exported.append(Path(str(arguments[3])))
        exported[0].mkdir(parents=True)

    monkeypatch.setattr(warm_start, "braid", braid)
    job = Job("teacher", TEACHER_SEED)
    warm_start.make(job, tmp_path, STEPS, given)
    assert warm_start.is_made(job, tmp_path, STEPS) and len(exported) == is_run
    assert warm_start.teacher_rates(given) is None  # never evaluated: no row


def outcome(seed: int, best: float) -> Outcome:
    def rates(mean: float) -> dict[str, float]:
        return {"sums": mean - 0.1, "spelling": mean, "filtering": mean + 0.1}

    models = {"start": 0.3, "rl": 0.7, "sft": 0.5, "warm": best}
    models |= {"gentle": best + 0.05, "distillation": best + 0.1}
    return Outcome(
        seed=seed,
        rates={name: rates(mean) for name, mean in models.items()},
        costs={n: Cost(trained=1000.0 * (i + 1)) for i, n in enumerate(warm_start.MODELS)},
        warm_steps=30 + seed,
    )


def test_the_table_has_every_source_and_the_cost():
    found = [outcome(1, 0.6), outcome(2, 0.8)]
    rows = warm_start.table_rows(found, dict.fromkeys(SOURCES, 0.9))
    assert [row[0] for row in rows] == [
        "start",
        "teacher",
        "RL",
        "SFT",
        "SFT, then RL",
        "SFT, then RL at a quarter of the rate",
        "distillation",
    ]
    assert rows[4] == ["SFT, then RL", "60.0", "70.0", "80.0", "70.0", "60.0", "50.0", "9"]
    assert rows[0][-1] == rows[1][-1] == "-"
    assert len(warm_start.table_rows(found, None)) == len(rows) - 1
    page = warm_start.page_section(found, None, 40)
    assert "mean of seeds 1, 2; 40 steps" in page and "31, 32 of RL after" in page


def test_the_page_has_a_place_for_the_table():
    assert section(PAGE.read_text(), "warm start") is not None
