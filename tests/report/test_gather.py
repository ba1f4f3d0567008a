"""What is read of a run directory, whole or not, and what two runs differ in."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from configs.errors import ConfigError
from configs.load import load_recipe
from orchestrator.cli import app
from orchestrator.report.columns import Columns
from orchestrator.report.cost import cost
from orchestrator.report.diff import changes, compare
from orchestrator.report.gather import RunReader, is_locked
from orchestrator.report.lines import Tail
from orchestrator.report.page import embed
from orchestrator.report.samples import BYTES, SampleReader, spread


@pytest.mark.parametrize("seed", range(20))
def test_a_tail_reads_what_was_appended_once(tmp_path: Path, seed: int):
    rng = random.Random(seed)
    path = tmp_path / "x.jsonl"
    tail, seen = Tail(path), list[Any]()
    whole = b"".join(b'{"n": %d, "t": "\xc3\xa9\xe2\x80\xa8"}\n' % i for i in range(30))
    assert tail.read() == (False, [])
    at = 0
    while at < len(whole):
        size = rng.randint(1, 60)
        with path.open("ab") as file:
            file.write(whole[at : at + size])
        at += size
        seen += tail.read()[1]
    assert [r["n"] for r in seen] == list(range(30)) and not tail.torn and tail.damaged == 0
    path.write_bytes(whole[:26] + b"[3]\n{")
    anew, rows = tail.read()
    assert anew and [r["n"] for r in rows] == [0] and tail.torn and tail.damaged == 1


@pytest.mark.parametrize("seed", range(20))
def test_columns_hold_each_number_and_only_it(seed: int):
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    columns = Columns()
    step = 0
    for _ in range(40):
        step += rng.choice([1, 1, 1, 2, 5])
        if rng.random() < 0.1:
            step = max(1, step - 7)  # a run that went on from a checkpoint
        row: dict[str, Any] = {"step": step, "odd": "text", "is": True}
        row |= {n: rng.uniform(-1, 1) for n in "abcd" if rng.random() < 0.8}
        row |= {"e": None, "f": 2.5} if rng.random() < 0.5 else {}
        rows = [r for r in rows if r["step"] < step] + [row]
        assert columns.add(row)
    assert not columns.add({"a": 1.0}) and not columns.add({"step": math.nan})
    found = columns.to_json()
    assert found["steps"] == [r["step"] for r in rows] and found["every"] == 1
    for name in "abcdf":
        wanted = [r.get(name) for r in rows]
        got = found["series"][name]
        got = got if isinstance(got, list) else [got] * len(rows)
        assert [v is None for v in got] == [v is None for v in wanted]
        assert all(
            v is None or v == pytest.approx(w, rel=1e-4) for v, w in zip(got, wanted, strict=True)
        )
    assert "e" not in found["series"] and found["not_numbers"] == ["is", "odd"]


def test_many_steps_are_means_with_their_range():
    columns = Columns()
    values = np.sin(np.arange(5000) / 40) + (np.arange(5000) == 777) * 50
    for step, value in enumerate(values, 1):
        columns.add({"step": step, "a": float(value), "same": 3})
    found = columns.to_json(numbers=3000)
    every, means = found["every"], found["series"]["a"]
    assert every > 1 and 3 * 2 * len(means) <= 3000 and found["series"]["same"] == 3
    assert max(found["high"]["a"]) == pytest.approx(values[776:779].max(), rel=1e-4)
    for i in (0, 7, len(means) - 1):
        bucket = values[i * every : (i + 1) * every]
        assert means[i] == pytest.approx(bucket.mean(), rel=1e-3, abs=1e-4)
        assert found["low"]["a"][i] == pytest.approx(bucket.min(), rel=1e-3, abs=1e-4)
        assert found["steps"][i] == min((i + 1) * every, 5000)


def test_cost_is_shared_out_whole(make: Callable[..., Path], tmp_path: Path):
    cfg = load_recipe(make(tmp_path / "run", steps=1) / "config.yaml")
    columns = Columns()
    for step in (1, 2):
        row: dict[str, Any] = {"step": step, "time/step": 1800.0}
        for name, share in (("sums", 1), ("spelling", 3)):
            more = {"all/tokens": share * step, "loss_tokens": 1, "all/grade_s": 2 - share}
            row |= {f"source/{name}/{k}": v for k, v in more.items()}
            row[f"source/{name}/all/groups"] = 1 if share == 1 else 0
        columns.add(row)
    found = cost(cfg, columns, held_s=7200)
    roles = {r["role"]: r for r in found["roles"]}
    assert found["unit"] == "CPU" and found["step_hours"] == 1 and found["outside_hours"] == 1
    assert roles["rollout"]["sources"] == pytest.approx({"sums": 0.125, "spelling": 0.375})
    assert roles["trainer"]["sources"] == pytest.approx({"sums": 0.25, "spelling": 0.25})
    assert roles["reward"]["sources"] == pytest.approx({"sums": 0.5, "spelling": 0})
    for role in roles.values():
        spent = sum(role["sources"].values()) + role["unassigned"]
        assert spent == pytest.approx(role["hours"])
    assert cost(cfg, Columns(), held_s=None)["outside_hours"] is None


def test_what_the_guards_did_is_told(
    make: Callable[..., Path], add_rollback: Callable[..., None], tmp_path: Path
):
    run = make(tmp_path / "run", steps=8)
    assert RunReader(run).read()["guards"] == {"rollbacks": [], "refused": 0, "shrunk": 0}
    add_rollback(run, 6, 4)
    guards = RunReader(run).read()["guards"]
    assert guards == {"rollbacks": [{"step": 6, "to": 4}], "refused": 1, "shrunk": 0}


@pytest.mark.parametrize("recipe", ["sft", "reward_model"])
def test_a_run_that_learns_from_rows_is_read_as_one(
    make: Callable[..., Path],
    learn_from_rows: Callable[[Path, str], None],
    tmp_path: Path,
    recipe: str,
):
    run = make(tmp_path / "run", steps=8)
    learn_from_rows(run, recipe)
    found = RunReader(run).read()
    assert found["lessons"] and found["standings"] == [] and found["ledger"] is None
    assert [row["loss"] for row in found["eval"]] == [0.5] * 3
    assert ("accuracy" in found["eval"][0]) is (recipe == "reward_model")
    assert found["notes"] == ["it learns from rows: nothing is sampled, graded or mixed"]
    both = compare(found, RunReader(make(tmp_path / "other", steps=3)).read())
    assert {c["path"] for c in both["config"]} >= {"type", "num_steps"}


def test_runs_of_different_sources_are_compared_side_by_side(
    make: Callable[..., Path], tmp_path: Path
):
    one = RunReader(make(tmp_path / "a", sources=("sums", "spelling"))).read()
    other = RunReader(make(tmp_path / "b", sources=("filtering", "sums"), steps=5)).read()
    found = compare(one, other)
    rates = {row["source"]: row for row in found["held_out"]}
    assert set(rates) == {"sums", "spelling", "filtering"}
    assert rates["spelling"]["b"] is None and rates["spelling"]["difference"] is None
    assert rates["filtering"]["a"] is None and rates["sums"]["difference"] is not None
    paths = {row["path"] for row in found["config"]}
    assert "sources[spelling].name" in paths and "sources[sums].name" not in paths


def test_attempts_faults_and_ends_are_told(make: Callable[..., Path], tmp_path: Path):
    run = make(tmp_path / "run", steps=12, attempts=3, text="it broke")
    found = RunReader(run).read()
    attempts = found["attempts"]
    assert [(a["from_step"], a["to_step"], a["undone"]) for a in attempts] == [
        *((0, 4, 3), (1, 8, 3), (5, 12, 0)),
    ]
    assert len(found["failed_groups"]) == 18 and found["failed_groups"][0]["why"] == "it broke"
    assert found["log"]["repairs"]["weight sync tried again"] == 1
    assert found["log"]["num_loud"] == 3 and "it broke" in found["log"]["loud"][2]["trace"]
    assert found["log"]["checks"] == [{"version": 0, "median": 0, "largest": 2.5e-6, "tokens": 14}]
    assert found["status"]["state"] == "complete"
    assert [s["source"] for s in found["standings"]] == ["spelling", "sums"]
    assert found["standings"][0]["regressed"]
    with (run / "log.txt").open("a") as log:
        log.write("2026-09-21 14:12:00,000 ERROR braid.run_dir: the run ended with RunError\n")
        log.write("Traceback:\nactors.errors.RunError: rollout[1] on n died\n")
    assert RunReader(run).read()["status"] == {
        "state": "failed",
        "text": "actors.errors.RunError: rollout[1] on n died",
    }


def test_a_lock_that_is_held_is_seen_and_not_touched(make: Callable[..., Path], tmp_path: Path):
    import fcntl

    run = make(tmp_path / "run", steps=2, num_steps=9)
    assert is_locked(run) is False
    assert RunReader(run).read()["status"]["state"] == "ended"
    with (run / "run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_locked(run) is True
        assert RunReader(run).read()["status"]["state"] == "running"
    assert is_locked(run) is False
    (run / "run.lock").write_text("pid 1 on another-node\n")
    assert RunReader(run).read()["status"]["state"] == "unknown"


def test_samples_keep_to_their_bytes_and_tell_of_all_sources(
    make: Callable[..., Path], tmp_path: Path
):
    run = make(tmp_path / "run", steps=42, tokens=700, text="long " * 300, sources=("a", "b", "c"))
    found = SampleReader(run / "rollouts").read()
    assert found["steps"] == 42 and found["steps_shown"] == 40
    assert len(embed({"x": found})) < BYTES * 1.02
    for step in spread(range(1, 43), 40):
        assert {r["source"] for r in found["rows"] if r["step"] == step} == {"a", "b", "c"}
    for row in found["rows"]:
        tokens = row["tokens"]
        sampled = sum(b - a for a, b in tokens["sampled"])
        assert len(tokens["logprob"]) == len(tokens["advantage"]) == sampled
        assert all(b <= len(tokens["text"]) for _, b in tokens["sampled"])
        assert tokens["after"] == 700 - len(tokens["text"])


def test_changes_match_sources_by_name():
    a = {
        "x": [{"name": "s", "w": 1}, {"name": "t", "w": 2}],
        "l": [1, 2],
        "only": {"k": 1},
        "n": None,
    }
    b = {"x": [{"name": "t", "w": 3}, {"name": "s", "w": 1}], "l": [1, 3, 4], "n": None}
    assert changes(a, b) == [
        {"path": "x[t].w", "a": 2, "b": 3},
        {"path": "l[1]", "a": 2, "b": 3},
        {"path": "only.k", "a": 1, "b": None},
        {"path": "l[2]", "a": None, "b": 4},
    ]
    assert changes(a, a) == []


def test_two_runs_are_told_apart(make: Callable[..., Path], tmp_path: Path, browser: Any):
    a = make(tmp_path / "a", steps=12)
    b = make(tmp_path / "b", steps=8, sources=("sums", "other"), text="</script>other")
    record = json.loads((b / "run.json").read_text())
    record["attempts"][0]["hashes"]["sources.sums.data"]["hash"] = "beef"
    (b / "run.json").write_text(json.dumps(record))
    with (b / "eval.jsonl").open("a") as file:
        other = {"step": 9, "source": "sums", "pass_rate": 0.5, "items": 7}
        file.write(json.dumps(other) + "\n")
    found = compare(RunReader(a).read(), RunReader(b).read())
    assert found["hashes"] == [{"path": "sources.sums.data", "a": "cafe", "b": "beef"}]
    rates = {r["source"]: r for r in found["held_out"]}
    assert rates["sums"]["difference"] is None and not rates["sums"]["alike"]  # other items
    assert rates["other"]["a"] is None
    page = tmp_path / "diff.html"
    done = CliRunner().invoke(app, ["diff", str(a), str(b), "-o", str(page)])
    assert done.exit_code == 0
    for said in ("measured otherwise", "num_steps", "beef", "versions: no difference"):
        assert said in done.output
    browser.open(page)
    browser.js("document.querySelector('[data-compared=\"all/length/mean\"]').click()")
    assert browser.complaints() == [] and browser.requests() == [page.as_uri()]
    titles = browser.js(
        "return [...document.querySelectorAll('figure h3')].map(e => e.textContent)"
    )
    assert {"Length: sums", "Length: other", "Held-out pass rate", "Entropy"} <= set(titles)
    assert "could not be drawn" not in browser.js("return document.body.innerText")
    assert browser.count('[data-chart="all/length/mean sums"] .plot path.ln') == 2


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="is no run directory"):
        RunReader(tmp_path)


def test_report_writes_into_the_run_unless_told(make: Callable[..., Path], tmp_path: Path):
    run = make(tmp_path / "run", steps=2)
    done = CliRunner().invoke(app, ["report", str(run)])
    assert done.exit_code == 0 and (run / "report.html").stat().st_size > 50_000
    assert "report.html" in done.output
