"""`braid mix`: what it writes for the run, what it refuses, what it shows."""

from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from configs.errors import ConfigError
from configs.load import load_recipe, save_config
from configs.schema import RunConfig
from mixing.mixer import Mixer
from mixing.quota.edits import EditLog
from orchestrator.cli import _main
from orchestrator.commands.mix import ask_edit, render_mix
from orchestrator.records.files import append_line


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory of two sources, one with a dot in its name, after three steps."""
    (tmp_path / "rows.jsonl").write_text(
        "".join(f'{{"prompt": "{i}", "answer": "{i}"}}\n' for i in range(60))
    )
    source = {
        "data": {"jsonl": str(tmp_path / "rows.jsonl"), "held_out": 2},
        "rewards": [{"use": "exact", "name": "e"}],
    }
    cfg = RunConfig.model_validate(
        {
            "name": "small",
            "num_steps": 9,
            "model": {"path": "org/model"},
            "sources": [{"name": "a", **source}, {"name": "b.v2", "weight": 3, **source}],
            "stages": [{"until": {"step": 2}, "weights": {"a": 0}}, {"weights": {"a": 2}}],
            "batch": {"groups_per_step": 4},
        }
    )
    path = tmp_path / "run"
    path.mkdir()
    save_config(cfg, path / "config.yaml")
    for step in (1, 2, 3):
        append_line(path / "metrics.jsonl", {"step": step})
    return path


def shown(run_dir: Path) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_mix(run_dir))
    return console.export_text()


def test_an_edit_reaches_the_run_and_is_shown_with_its_step(run_dir: Path) -> None:
    said = ask_edit(run_dir, ["a.weight=1.5", "b.v2.weight=0"], [])
    assert "a.weight = 1.5, b.v2.weight = 0" in said
    assert "waits" in shown(run_dir)
    mixer = Mixer(load_recipe(run_dir / "config.yaml"), edits=EditLog(run_dir / "mix_edits.jsonl"))
    assert Counter(r.task.source for r in mixer.plan_step(4)) == {"a": 4}
    ask_edit(run_dir, [], ["b.v2.weight"])
    assert Counter(r.task.source for r in mixer.plan_step(5)) == {"a": 1, "b.v2": 3}
    table = shown(run_dir)
    assert "step 4" in table and "step 5" in table and "as in the recipe" in table
    assert "1.5" in next(line for line in table.splitlines() if line.split()[:1] == ["a"])


@pytest.mark.parametrize(
    ("sets", "unsets", "where", "what"),
    [
        (["c.weight=1"], [], "--set c.weight=1", "no source `c`"),
        (["a.weight=-1"], [], "--set a.weight=-1", "0 or more"),
        (["a.weight=nan"], [], "--set a.weight=nan", "finite"),
        (["a.weight=inf"], [], "--set a.weight=inf", "finite"),
        (["a.weight=two"], [], "--set a.weight=two", "no number"),
        (["a.group_size=4"], [], "--set a.group_size=4", "only weights change live"),
        (["a.weight"], [], "--set a.weight", "SOURCE.weight=W"),
        ([], ["a.weight=1"], "--unset a.weight=1", "as SOURCE.weight"),
        (["a.weight=1", "a.weight=2"], [], "--set a.weight=2", "given twice"),
        (["a.weight=0", "b.v2.weight=0"], [], "stages.1.weights", "nothing to train on"),
    ],
)
def test_a_bad_edit_is_refused_and_nothing_written(
    run_dir: Path, sets: list[str], unsets: list[str], where: str, what: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ask_edit(run_dir, sets, unsets)
    (problem,) = caught.value.problems
    assert problem.where == where and what in problem.what
    assert not (run_dir / "mix_edits.jsonl").exists()


def test_all_problems_of_an_edit_are_told_at_once(run_dir: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ask_edit(run_dir, ["x.weight=1", "a.weight=-2"], ["y.weight"])
    assert len(caught.value.problems) == 3


def test_edits_before_count_in_the_check(run_dir: Path) -> None:
    ask_edit(run_dir, ["a.weight=0"], [])
    with pytest.raises(ConfigError, match="nothing to train on"):
        ask_edit(run_dir, ["b.v2.weight=0"], [])
    ask_edit(run_dir, ["b.v2.weight=0"], ["a.weight"])


def test_the_command(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main(["mix", str(run_dir), "--set", "a.weight=4"]) == 0
    assert "a.weight = 4, from the next step" in capsys.readouterr().out.replace("\n", " ")
    assert _main(["mix", str(run_dir)]) == 0
    assert "waits" in capsys.readouterr().out
    assert _main(["mix", str(run_dir), "--set", "a.weight=x"]) == 2
    assert "no number" in capsys.readouterr().err
    assert _main(["mix", str(run_dir.parent), "--show"]) == 2
    assert "is no run directory" in capsys.readouterr().err
