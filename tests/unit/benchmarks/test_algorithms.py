import json
import shutil
from pathlib import Path

import pytest

from benchmarks import algorithms
from benchmarks.algorithms import (
    ALGORITHMS,
    COMPARED,
    RECIPES,
    SOURCES,
    Job,
    Outcome,
    lost_share,
)
from benchmarks.stack import PAGE, ROOT, overrides, section
from configs.load import load_recipe
from configs.validate import validate_run


def outcome(name: str, seed: int, after: float, rewards: tuple[float, ...] = ()) -> Outcome:
    return Outcome(
        algorithm=name,
        seed=seed,
        before=dict.fromkeys(SOURCES, 0.3),
        after={"sums": after - 0.1, "spelling": after, "filtering": after + 0.1},
        rewards=rewards or tuple(0.3 + 0.02 * i for i in range(20)),
        samples=7680,
    )


def test_all_objectives_get_the_same_model_tasks_and_samples(tmp_path):
    shutil.copytree(ROOT / "configs/models/tiny", tmp_path / "seed3/teacher")
    cfgs = []
    for name in COMPARED:
        fields = algorithms.settings(Job(name, 3), 40, tmp_path)
        cfgs.append(load_recipe(RECIPES / f"{name}.yaml", overrides(fields)[1::2]))
    assert not any(validate_run(cfg) for cfg in cfgs)
    told = [
        (
            cfg.seed,
            cfg.num_steps,
            Path(cfg.model.path).resolve(),
            (cfg.batch.groups_per_step, cfg.batch.num_minibatches),
            [(s.name, s.data, s.group_size, s.sampling, s.weight) for s in cfg.sources],
            cfg.eval,
        )
        for cfg in cfgs
    ]
    assert all(t == told[0] for t in told)


def test_every_recipe_is_run_and_passes_the_checks():
    assert ALGORITHMS.keys() == {path.stem for path in RECIPES.glob("*.yaml")}
    for name in ALGORITHMS.keys() - {"distillation"}:
        fields = algorithms.settings(Job(name, 3), 40, ROOT)
        cfg = load_recipe(RECIPES / f"{name}.yaml", overrides(fields)[1::2])
        assert validate_run(cfg) == [], name
        assert cfg.name == name


def test_a_teacher_is_there_before_its_pupil():
    jobs = algorithms.plan(["distillation", "remax", "grpo", "dapo", "rloo"], [1, 2])
    compared, others = ["grpo", "rloo", "distillation"] * 2, ["dapo", "remax"]
    assert [j.algorithm for j in jobs] == compared + others
    assert [j.seed for j in jobs] == [1] * 3 + [2] * 3 + [1] * 2, "the others once"
    with pytest.raises(SystemExit, match="grpo"):
        algorithms.plan(["distillation"], [1])


def test_a_fall_from_the_best_is_a_share_of_the_gain():
    up = [0.2] * 5 + [0.8] * 5
    assert lost_share(up) == 0
    assert lost_share([*up, *[0.2] * 5]) == pytest.approx(1)
    assert lost_share([*up, *[0.5] * 5]) == pytest.approx(0.5)
    assert lost_share([0.5] * 10) == 1, "nothing gained is all lost"
    with pytest.raises(ValueError, match="too few"):
        lost_share([0.1] * 9)


def test_a_run_counts_once_its_last_evaluation_is_there(tmp_path, monkeypatch):
    job = Job("grpo", 1)
    account = {"sources": {n: {"trained": {"samples": 10}} for n in SOURCES}}
    monkeypatch.setattr(algorithms, "ledger", lambda _: account)
    run_dir = job.run_dir(tmp_path)
    run_dir.mkdir(parents=True)
    rows = [{f"source/{n}/all/pass@1": 0.1 * s for n in SOURCES} for s in (1, 2)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with (run_dir / "eval.jsonl").open("w") as file:
        for step, rate in ((0, 0.3), (2, 0.6)):
            assert algorithms.outcome(job, tmp_path, 2) is None
            for name in SOURCES:
                file.write(json.dumps({"step": step, "source": name, "pass_rate": rate}) + "\n")
            file.flush()
    found = algorithms.outcome(job, tmp_path, 2)
    assert found is not None
    assert (found.mean, found.samples) == (pytest.approx(0.6), 30)
    assert found.rewards == (pytest.approx(0.1), pytest.approx(0.2))


def test_the_table_is_ordered_and_names_what_collapsed(tmp_path):
    fallen = tuple([0.2] * 5 + [0.8] * 5 + [0.2] * 10)
    runs = {
        "grpo": [outcome("grpo", 1, 0.7), outcome("grpo", 2, 0.6)],
        "gspo": [outcome("gspo", 1, 0.8), outcome("gspo", 2, 0.8, fallen)],
    }
    start, first, second = algorithms.table_rows(runs)
    assert start == ["start", "30.0", "30.0", "30.0", "30.0", "30.0", "30.0", "-"]
    assert first == ["GSPO", "70.0", "80.0", "90.0", "80.0", "80.0", "70.0", "100.0"]
    assert second == ["GRPO", "55.0", "65.0", "75.0", "65.0", "60.0", "50.0", "0.0"]
    assert "Collapsed: GSPO (seed 2)." in algorithms.page_section(runs, [1, 2])
    assert "None collapsed." in algorithms.page_section({"grpo": runs["grpo"]}, [1, 2])
    algorithms.draw(runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_the_page_has_a_place_for_the_table():
    assert section(PAGE.read_text(), "algorithms") is not None
