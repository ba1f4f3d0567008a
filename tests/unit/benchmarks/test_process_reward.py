"""The rule and the figures of benchmarks/process_reward.py, without a run."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import process_reward
from benchmarks.process_reward import (
    TINY,
    Outcome,
    careless,
    judge,
    make_rows,
    outcomes,
    page_section,
    recipe,
    run_name,
)
from benchmarks.stack import PAGE, section
from configs.errors import Problem
from configs.schema import RunConfig
from configs.validate import validate_run
from rewards.graders import validate_rewards
from rewards.objective import validate_objectives

ROW = {"answer": "even", "terms": "4 -1 -7"}


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("4-1=3\n3-7=-4\neven", (True, True)),
        ("4-1=3\n3-7=-4\nodd", (False, True)),
        ("4-1=2\n2-7=-5\neven", (True, False)),  # a slip
        ("4-1=3\n3-6=-3\neven", (True, False)),  # another term
        ("4-1=3\n2-7=-5\neven", (True, False)),  # does not go on from the step before
        ("4-1=3\neven", (True, False)),  # a step left out
        ("4-1=3\n3-7=-4\n0+0=0\neven", (True, False)),  # padded
        ("even", (True, False)),
        ("", (False, False)),
    ],
)
def test_right_answers_and_right_steps(text: str, right: tuple[bool, bool]) -> None:
    assert judge(text, ROW) == right


def test_the_rows_are_different_questions_with_their_parity() -> None:
    rows = make_rows()
    assert len({str(r["prompt"]) for r in rows}) == len(rows) == 9**3 * 4
    for row in rows:
        odd = sum(int(n) for n in str(row["terms"]).split()) % 2
        assert row["answer"] == ("odd" if odd else "even")


def test_the_warm_start_is_careless_and_of_the_form() -> None:
    dice = random.Random(0)
    graded = [judge(careless(row, dice), row) for row in make_rows()[:600]]
    answers, steps = (sum(g[i] for g in graded) / len(graded) for i in (0, 1))
    assert 0.5 < answers < 0.7 and 0.4 < steps < 0.6


@pytest.mark.parametrize("kind", ["outcome", "process", "credit"])
def test_the_recipes_are_sound(kind: str, tmp_path: Path) -> None:
    for name in ("train", "held_out"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    cfg = RunConfig.model_validate(recipe(kind, tmp_path, TINY, seed=1, steps=2))
    found: list[Problem] = [
        *validate_run(cfg),
        *validate_rewards(cfg.sources),
        *validate_objectives(cfg.sources),
    ]
    assert found == []
    groups = (cfg.trainer, cfg.rollout, cfg.reward)
    assert not cfg.needs_reference
    assert sum(g.actors.cpus * g.actors.count for g in groups) <= 2


START = {"answer": 0.608, "steps": 0.46, "both": 0.338}


def outcome(kind: str, seed: int, steps: float) -> Outcome:
    shares = {"answer": 0.9, "steps": steps, "both": steps - 0.01}
    return Outcome(kind=kind, seed=seed, held_out=shares, answer=[0.6, 0.9], steps=[0.4, steps])


def keep(out: Path, *runs: Outcome) -> None:
    for run in runs:
        (out / f"{run_name(run.kind, run.seed)}.json").write_text(json.dumps(asdict(run)))


def test_only_seeds_with_all_kinds_are_shown(tmp_path: Path) -> None:
    kinds, seeds = ["outcome", "process"], [1, 2, 3]
    assert outcomes(tmp_path, kinds, seeds) == {}
    keep(tmp_path, outcome("outcome", 1, 0.5), outcome("process", 1, 0.8))
    keep(tmp_path, outcome("outcome", 2, 0.6))
    found = outcomes(tmp_path, kinds, seeds)
    assert {kind: [run.seed for run in own] for kind, own in found.items()} == {
        "outcome": [1],
        "process": [1],
    }
    keep(tmp_path, outcome("process", 2, 0.7), outcome("credit", 1, 0.9))
    found = outcomes(tmp_path, kinds, seeds)
    assert list(found) == kinds and [run.seed for run in found["process"]] == [1, 2]
    keep(tmp_path, outcome("credit", 2, 0.8))
    assert list(outcomes(tmp_path, kinds, seeds)) == [*kinds, "credit"]


def test_the_page_says_what_each_seed_gained(tmp_path: Path) -> None:
    runs = {
        "outcome": [outcome("outcome", 1, 0.5), outcome("outcome", 2, 0.7)],
        "process": [outcome("process", 1, 0.8), outcome("process", 2, 0.6)],
    }
    page = page_section(START, runs)
    assert "mean of seeds 1, 2 " in page
    assert "| start | 60.8 | 46.0 | 33.8 |" in page
    assert "| process | 90.0 (90.0 to 90.0) | 70.0 (60.0 to 80.0) | 69.0 (59.0 to 79.0) |" in page
    gain = "`process` against `outcome`, right steps: +30.0, -10.0 points, seed by seed; more in 1"
    assert gain in page
    alone = page_section(START, {"process": runs["process"][:1]})
    assert "seed 1 alone" in alone and "against" not in alone
    process_reward.draw(runs, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_a_folder_of_other_settings_is_refused_and_its_own_taken_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def warm_start(rows: object, out: Path, steps: int) -> None:
        made.append(steps)
        out.mkdir()

    monkeypatch.setattr(process_reward, "warm_start", warm_start)
    monkeypatch.setattr(process_reward, "measure", lambda policy, rows: START)
    for _ in range(2):
        start, held_out = process_reward.prepare(tmp_path, steps=30, warm_steps=7)
        assert (start, len(held_out), made) == (START, 200, [7])
    with pytest.raises(SystemExit, match="give another --out"):
        process_reward.prepare(tmp_path, steps=20, warm_steps=7)
    rows = (tmp_path / "train.jsonl").read_text().splitlines()
    asked = {json.loads(row)["prompt"] for row in rows}
    assert len(asked) == 400 and not asked & {row["prompt"] for row in held_out}


def test_what_is_measured_already_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a whole, with runs in place of which a fake writes what they leave."""
    asked: list[str] = []

    def braid(command: str, *arguments: object, log: Path) -> None:
        if command != "run":
            return
        file, run_dir = Path(str(arguments[0])), Path(str(arguments[2]))
        asked.append(run_dir.name)
        assert arguments[3:] == ("--resume", "auto") and file.is_file()
        run_dir.mkdir()
        row = {f"source/parity/all/reward_part/{part}": 0.5 for part in ("answer", "steps")}
        (run_dir / "metrics.jsonl").write_text(json.dumps(row) + "\n")

    monkeypatch.setattr(process_reward, "warm_start", lambda rows, out, steps: out.mkdir())
    monkeypatch.setattr(process_reward, "measure", lambda policy, rows: START)
    monkeypatch.setattr(process_reward, "braid", braid)
    figures, plot, out = tmp_path / "f.json", tmp_path / "p.png", tmp_path / "out"
    given = ["x", "--out", str(out), "--json", str(figures), "--plot", str(plot), "--seeds"]
    for seeds in (["1"], ["1", "2"]):
        monkeypatch.setattr("sys.argv", [*given, *seeds])
        process_reward.main()
    wanted = [run_name(kind, seed) for seed in (1, 2) for kind in ("outcome", "process")]
    assert asked == wanted
    record = json.loads(figures.read_text())
    assert sorted(run_name(r["kind"], r["seed"]) for r in record["runs"]) == sorted(wanted)
    assert record["start"] == START and plot.exists()


def test_the_page_has_a_place_for_the_table() -> None:
    assert section(PAGE.read_text(), "process reward")
