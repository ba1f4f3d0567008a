import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.load import load_recipe
from configs.schema import RunConfig
from orchestrator.records.files import append_line
from orchestrator.records.run_dir import RunDir

ROOT = Path(__file__).parents[3]


def config(**changes: object) -> RunConfig:
    base = {
        "name": "small",
        "num_steps": 10,
        "model": {"path": "org/model"},
        "sources": [
            {
                "name": "sums",
                "data": {"procedural": "reasoning_gym/chain_sum"},
                "rewards": [{"use": "exact", "name": "correct"}],
            }
        ],
        "batch": {"groups_per_step": 4},
    }
    return RunConfig.model_validate({**base, **changes})


def refused(path: Path, cfg: RunConfig, resume: str) -> str:
    with pytest.raises(ConfigError) as caught:
        RunDir.open(path, cfg, resume)
    return str(caught.value)


def test_a_new_run_has_its_record_and_config(tmp_path: Path):
    path, cfg = tmp_path / "runs" / "small", config(seed=7)
    with RunDir.open(path, cfg, "never") as directory:
        assert directory.attempt == 1
        run_id = directory.run_id
    record = json.loads((path / "run.json").read_text())
    assert record["id"] == run_id and run_id.startswith("small-")
    assert (record["seed"], record["attempt"]) == (7, 1)
    attempt = record["attempts"][0]
    assert attempt["pid"] == os.getpid()
    assert attempt["command"] == sys.argv
    assert attempt["versions"]["ray"]
    assert load_recipe(path / "config.yaml") == cfg
    assert (path / "rollouts").is_dir() and (path / "checkpoints").is_dir()


def test_resume_counts_attempts_and_keeps_the_id(tmp_path: Path):
    with RunDir.open(tmp_path, config(), "auto") as first:
        run_id = first.run_id
    with RunDir.open(tmp_path, config(), "auto") as second:
        assert (second.attempt, second.run_id) == (2, run_id)
    record = json.loads((tmp_path / "run.json").read_text())
    assert [a["attempt"] for a in record["attempts"]] == [1, 2]


def test_a_run_is_not_overwritten(tmp_path: Path):
    RunDir.open(tmp_path, config(), "never").close()
    said = refused(tmp_path, config(), "never")
    assert "--resume auto" in said and "--run-dir" in said


def test_a_directory_of_something_else_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    for resume in ("auto", "never"):
        assert "thesis.tex" in refused(tmp_path, config(), resume)
    assert {p.name for p in tmp_path.iterdir()} == {"thesis.tex"}


def test_a_file_is_refused(tmp_path: Path):
    (tmp_path / "run").write_text("x")
    assert "is a file" in refused(tmp_path / "run", config(), "never")


def test_a_damaged_record_is_said(tmp_path: Path):
    RunDir.open(tmp_path, config(), "never").close()
    (tmp_path / "run.json").write_text("{")
    assert "is damaged" in refused(tmp_path, config(), "auto")


HOLDER = """
import sys, time, pathlib
sys.path.insert(0, {root!r})
from configs.load import load_recipe
from orchestrator.records.run_dir import RunDir
directory = RunDir.open(pathlib.Path(sys.argv[1]), load_recipe(sys.argv[2]), "auto")
print("held", flush=True)
time.sleep(60)
"""


def test_a_directory_in_use_names_its_owner_until_that_is_killed(tmp_path: Path):
    from configs.load import save_config

    path, recipe = tmp_path / "run", tmp_path / "small.yaml"
    save_config(config(), recipe)
    code = HOLDER.format(root=str(ROOT))
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(recipe)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        said = refused(path, config(), "auto")
        assert f"in use by pid {holder.pid} on " in said
        assert "Wait for it" in said
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=10)
    with RunDir.open(path, config(), "auto") as directory:
        assert directory.attempt == 2


def test_two_in_one_process_are_refused_too(tmp_path: Path):
    with RunDir.open(tmp_path, config(), "auto"):
        assert f"pid {os.getpid()}" in refused(tmp_path, config(), "auto")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 20},
        {"logging": {"wandb": "offline"}},
        {"eval": {"every": 3}},
        {"checkpoint": {"every": 3}},
        {"health": {"silence_s": 99}},
        {"rollout": {"max_num_seqs": 7}},
        {"ray_address": "auto"},
    ],
)
def test_what_may_change(tmp_path: Path, changes: dict[str, object]):
    RunDir.open(tmp_path, config(), "never").close()
    RunDir.open(tmp_path, config(**changes), "auto").close()
    assert load_recipe(tmp_path / "config.yaml") == config(**changes)
    field = next(iter(changes))
    assert f"resuming with a changed recipe: {field}" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": {"path": "org/other"}}, "model.path"),
        ({"model": {"path": "org/model", "dtype": "float32"}}, "model.dtype"),
        ({"seed": 2}, "seed"),
        ({"batch": {"groups_per_step": 5}}, "batch.groups_per_step"),
        ({"trainer": {"optimizer": {"lr": 1.0}}}, "trainer.optimizer.lr"),
        ({"trainer": {"actors": {"count": 2}}}, "trainer.actors.count"),
    ],
)
def test_what_may_not_change(tmp_path: Path, changes: dict[str, object], field: str):
    RunDir.open(tmp_path, config(), "never").close()
    said = refused(tmp_path, config(**changes), "auto")
    assert field in said and "config.yaml" in said
    assert load_recipe(tmp_path / "config.yaml") == config()
    assert json.loads((tmp_path / "run.json").read_text())["attempt"] == 1


def test_how_a_source_is_evaluated_may_change(tmp_path: Path):
    RunDir.open(tmp_path, config(), "never").close()
    source = config().sources[0].model_dump()
    source["eval"]["samples"] = 4
    RunDir.open(tmp_path, config(sources=[source]), "auto").close()
    source["environment"]["args"] = {"eval": 1}
    assert "sources.sums.environment.args.eval" in refused(
        tmp_path, config(sources=[source]), "auto"
    )


def test_a_changed_source_is_named_by_its_name(tmp_path: Path):
    RunDir.open(tmp_path, config(), "never").close()
    source = config().sources[0].model_dump()
    source["data"]["seed"] = 5
    assert "sources.sums.data.seed: was 0" in refused(tmp_path, config(sources=[source]), "auto")


def test_no_step_twice_after_a_resume(tmp_path: Path):
    with RunDir.open(tmp_path, config(), "never") as directory:
        for step in range(1, 8):
            directory.append_metrics({"step": step, "loss": step / 2})
            directory.rollouts_path(step).write_text("{}\n")
        for step in (0, 3, 6):
            directory.append_eval({"step": step, "source": "sums", "pass_rate": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # torn by a crash
    with RunDir.open(tmp_path, config(), "auto") as directory:
        directory.truncate_after(4)
        for step in (5, 6):
            directory.append_metrics({"step": step, "loss": 9.0})
        assert [m["step"] for m in directory.read_metrics()] == [1, 2, 3, 4, 5, 6]
        assert [m["loss"] for m in directory.read_metrics()] == [0.5, 1.0, 1.5, 2.0, 9.0, 9.0]
        assert [e["step"] for e in directory.read_eval()] == [0, 3]
    assert {p.name for p in (tmp_path / "rollouts").iterdir()} == {
        f"step_{s}.jsonl" for s in (1, 2, 3, 4)
    }


def test_truncating_to_the_start_empties_the_records(tmp_path: Path):
    with RunDir.open(tmp_path, config(), "never") as directory:
        directory.truncate_after(0)
        directory.append_metrics({"step": 1})
        directory.append_eval({"step": 0, "source": "sums"})
        directory.truncate_after(0)
        assert tuple(directory.read_metrics()) == ()
        assert len(directory.read_eval()) == 1


def test_lines_are_json_even_for_nan(tmp_path: Path):
    path = tmp_path / "m.jsonl"
    append_line(path, {"a": float("nan"), "b": float("-inf"), "c": 1.5, "d": "ü\n"})
    assert path.read_text().count("\n") == 1
    assert json.loads(path.read_text()) == {"a": None, "b": None, "c": 1.5, "d": "ü\n"}


def test_the_log_has_ours_and_the_failure_s_trace(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), RunDir.open(tmp_path, config(), "never"):
        logging.getLogger("braid.x").info("hello there")
        logging.getLogger("other").info("chatter")
        logging.getLogger("other").warning("careful")
        raise ZeroDivisionError("oh")
    text = (tmp_path / "log.txt").read_text()
    assert "INFO braid.x: hello there" in text
    assert "careful" in text and "chatter" not in text
    assert "Traceback" in text and "ZeroDivisionError: oh" in text
    logging.getLogger("braid.x").info("after")
    assert "after" not in (tmp_path / "log.txt").read_text()


def test_a_full_disk_is_named_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.records.files.os.write", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        append_line(tmp_path / "metrics.jsonl", {"step": 1})
