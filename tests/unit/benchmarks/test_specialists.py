import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks import specialists
from benchmarks.specialists import AVERAGE, MIX, OWN, RECIPE, SOURCES, START, Job
from benchmarks.stack import PAGE, overrides, section
from configs.load import load_recipe
from configs.validate import validate_run


def recipe(job: Job, averaged: Path | None = None):
    fields = specialists.settings(job, 40, averaged)
    return load_recipe(RECIPE, overrides(fields)[1::2])


def model(folder: Path, **tensors: np.ndarray) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def write_eval(run_dir: Path, step: int, rates: dict[str, float]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "eval.jsonl").open("a") as file:
        for source, rate in rates.items():
            row = {"step": step, "source": source, "pass_rate": rate, "pass_rate_stderr": 0.01}
            file.write(json.dumps(row) + "\n")


def test_a_seed_has_the_mix_a_specialist_of_each_source_and_then_their_average():
    jobs = specialists.plan([1, 2])
    assert [j.model for j in jobs] == [MIX, *SOURCES, AVERAGE] * 2
    assert [j.seed for j in jobs] == [1] * 5 + [2] * 5
    assert set(SOURCES) == {s.name for s in load_recipe(RECIPE).sources}


def test_specialists_see_together_the_groups_of_the_mix_in_as_many_steps():
    runs = {m: recipe(Job(3, m)) for m in (MIX, *SOURCES)}
    assert not any(validate_run(cfg) for cfg in runs.values())
    assert len({cfg.num_steps for cfg in runs.values()}) == 1
    groups = {m: cfg.batch.groups_per_step for m, cfg in runs.items()}
    assert sum(groups[name] for name in SOURCES) == groups[MIX]
    for name in SOURCES:
        weights = {s.name: s.weight for s in runs[name].sources}
        assert [n for n, w in weights.items() if w > 0] == [name]
    assert len({s.weight for s in runs[MIX].sources}) == 1
    assert {cfg.seed for cfg in runs.values()} == {3}


def test_all_models_are_evaluated_alike(tmp_path):
    folder = model(tmp_path / "averaged")
    runs = [recipe(Job(1, m)) for m in (MIX, *SOURCES)] + [recipe(Job(1, AVERAGE), folder)]
    assert len({cfg.eval.samples for cfg in runs}) == 1
    assert len({cfg.eval.temperature for cfg in runs}) == 1
    asked = [[(s.data, s.rewards, s.sampling) for s in cfg.sources] for cfg in runs]
    assert all(a == asked[0] for a in asked)
    assert runs[-1].model.path == str(folder)
    assert runs[-1].eval.at_start and all(cfg.eval.at_end for cfg in runs[:-1])


def test_a_run_counts_when_every_source_was_evaluated_at_its_end(tmp_path):
    mix, averaged = Job(1, MIX), Job(1, AVERAGE)
    assert specialists.result(mix, tmp_path, 40) is None
    write_eval(mix.run_dir(tmp_path), 0, dict.fromkeys(SOURCES, 0.2))
    assert specialists.result(mix, tmp_path, 40) is None
    write_eval(mix.run_dir(tmp_path), 40, {"sums": 0.5, "spelling": 0.6})
    assert specialists.result(mix, tmp_path, 40) is None
    write_eval(mix.run_dir(tmp_path), 40, {"filtering": 0.7})
    found = specialists.result(mix, tmp_path, 40)
    assert found is not None and [found[n].value for n in SOURCES] == [0.5, 0.6, 0.7]
    write_eval(averaged.run_dir(tmp_path), 0, dict.fromkeys(SOURCES, 0.4))
    assert specialists.result(averaged, tmp_path, 40) is not None


def test_the_average_is_the_mean_of_every_weight(tmp_path):
    draw = np.random.default_rng(1)
    models = [
        {"a": draw.normal(size=(3, 4)).astype(np.float32), "b": np.float32([k, 2 * k])}
        for k in range(3)
    ]
    folders = [model(tmp_path / f"m{k}", **m) for k, m in enumerate(models)]
    specialists.average(folders, tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert {name: t.dtype for name, t in found.items()} == {"a": np.float32, "b": np.float32}
    np.testing.assert_allclose(found["a"], sum(m["a"] for m in models) / 3, atol=1e-6)
    np.testing.assert_array_equal(found["b"], [1, 2])
    assert (tmp_path / "out/config.json").read_text() == "{}"


def test_the_average_of_one_model_with_itself_is_that_model(tmp_path):
    weights = np.random.default_rng(2).normal(size=100).astype(np.float32)
    folder = model(tmp_path / "m", w=weights)
    specialists.average([folder] * 3, tmp_path / "out")
    np.testing.assert_array_equal(load_file(tmp_path / "out/model.safetensors")["w"], weights)


@pytest.mark.parametrize(
    "other", [{"v": np.zeros(2, np.float32)}, {"w": np.zeros(3, np.float32)}, {"w": np.zeros(2)}]
)
def test_models_of_different_shape_have_no_average(tmp_path, other):
    folders = [model(tmp_path / "m", w=np.zeros(2, np.float32)), model(tmp_path / "n", **other)]
    with pytest.raises(ValueError, match="not of one shape"):
        specialists.average(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_integers_have_no_average(tmp_path):
    folders = [model(tmp_path / name, w=np.zeros(2, np.int64)) for name in "mn"]
    with pytest.raises(ValueError, match="not of floats"):
        specialists.average(folders, tmp_path / "out")


def seed_record(seed: int, **rates: tuple[float, float, float]) -> dict:
    return {
        "seed": seed,
        "pass_rate": {m: dict(zip(SOURCES, r, strict=True)) for m, r in rates.items()},
        "stderr": {m: dict.fromkeys(SOURCES, 0.01 * seed) for m in rates},
        "trained_tokens": {
            **{m: dict.fromkeys(SOURCES, 100 * seed) for m in (MIX, AVERAGE)},
            **{n: {o: 100 * seed if o == n else 0 for o in SOURCES} for n in SOURCES},
        },
    }


SEEDS = [
    seed_record(
        1,
        start=(0.1, 0.2, 0.3),
        mix=(0.8, 0.9, 0.7),
        average=(0.5, 0.4, 0.6),
        sums=(0.9, 0.1, 0.1),
        spelling=(0.1, 1.0, 0.1),
        filtering=(0.2, 0.2, 0.6),
    ),
    seed_record(
        3,
        start=(0.1, 0.2, 0.3),
        mix=(0.6, 1.0, 0.8),
        average=(0.3, 0.6, 0.6),
        sums=(0.7, 0.3, 0.1),
        spelling=(0.1, 0.8, 0.1),
        filtering=(0.2, 0.2, 0.8),
    ),
]


def test_rows_are_means_over_seeds_with_the_worst_source_and_seed():
    rows = {row.model: row for row in specialists.summarise(SEEDS)}
    mix = rows[MIX]
    assert [mix.rates[n].value for n in SOURCES] == pytest.approx([0.7, 0.95, 0.75])
    assert mix.rates["sums"].stderr == pytest.approx(0.02)
    assert mix.mean == pytest.approx(0.8)
    assert (mix.worst_source, mix.worst) == ("sums", pytest.approx(0.7))
    assert mix.mean_of_worst_seed == pytest.approx(0.8)
    assert mix.worst_of_worst_seed == pytest.approx(0.6)
    assert rows[AVERAGE].mean_of_worst_seed == pytest.approx(0.5)
    assert rows[AVERAGE].worst_source == "sums"


def test_specialists_are_also_counted_each_on_its_own_source_with_the_tokens_of_all():
    rows = {row.model: row for row in specialists.summarise(SEEDS)}
    assert [rows[OWN].rates[n].value for n in SOURCES] == pytest.approx([0.8, 0.9, 0.7])
    assert rows[OWN].tokens == rows[MIX].tokens == 600
    assert rows["specialist of sums"].tokens == 200
    assert rows[START].tokens is None


def test_table_and_plot_show_every_model(tmp_path):
    rows = specialists.summarise(SEEDS)
    table = specialists.render(rows, [1, 3])
    assert table.row_count == len(rows) == 7
    specialists.draw(rows, SEEDS, tmp_path / "plot.png")
    image = (tmp_path / "plot.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) < 300_000


def test_the_page_shows_the_recorded_figures():
    seeds = json.loads(specialists.BASELINE.read_text())["seeds"]
    assert section(PAGE.read_text(), "specialists") == specialists.page_section(seeds)
    assert specialists.PLOT.stat().st_size < 300_000
