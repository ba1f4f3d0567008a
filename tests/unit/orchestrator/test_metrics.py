import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from configs.schema import RunConfig
from orchestrator.metrics import MetricSinks
from orchestrator.run_dir import RunDir

ROOT = Path(__file__).parents[3]


def config(**logging_section: object) -> RunConfig:
    return RunConfig.model_validate(
        {
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
            "logging": logging_section,
        }
    )


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_go_to_the_two_files(tmp_path: Path):
    cfg = config()
    with RunDir.open(tmp_path, cfg, "never") as directory, MetricSinks(cfg, directory) as sinks:
        sinks.log({"step": 1, "time/train": 0.5, "source/sums/reward/mean": float("nan")})
        sinks.log_eval({"step": 0, "source": "sums", "n": 10, "pass_rate": 0.5})
    assert read(tmp_path / "metrics.jsonl") == [
        {"step": 1, "time/train": 0.5, "source/sums/reward/mean": None}
    ]
    assert read(tmp_path / "eval.jsonl") == [
        {"step": 0, "source": "sums", "n": 10, "pass_rate": 0.5}
    ]


def test_tensorboard_files_read_back(tmp_path: Path):
    cfg = config(tensorboard=True)
    with RunDir.open(tmp_path, cfg, "never") as directory, MetricSinks(cfg, directory) as sinks:
        for step in (1, 2):
            sinks.log({"step": step, "train/loss": step / 4})
        sinks.log_eval({"step": 2, "source": "sums", "n": 10, "pass_rate": 0.75})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["tensors"]
    assert {"train/loss", "eval/sums/pass_rate"} <= set(tags)
    values = [
        (e.step, e.tensor_proto.float_val or e.tensor_proto.tensor_content)
        for e in events.Tensors("train/loss")
    ]
    assert [step for step, _ in values] == [1, 2]


def test_wandb_offline_writes_into_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cfg = config(wandb="offline")
    with RunDir.open(tmp_path / "run", cfg, "never") as directory:
        with MetricSinks(cfg, directory) as sinks:
            sinks.log({"step": 1, "train/loss": 0.25})
        run_id = directory.run_id
    assert list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert "wandb failed" not in (tmp_path / "run" / "log.txt").read_text()


class Breaking:
    """A sink whose service is gone."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, metrics: object, step: int) -> None:
        self.calls += 1
        raise ConnectionError("service is gone")

    def close(self) -> None:
        raise AssertionError("a sink left out is not closed")


def test_a_failing_sink_is_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    cfg, sink = config(), Breaking()
    with (
        caplog.at_level(logging.WARNING),
        RunDir.open(tmp_path, cfg, "never") as directory,
        MetricSinks(cfg, directory) as sinks,
    ):
        sinks.add("tracker", lambda: sink)
        for step in (1, 2, 3):
            sinks.log({"step": step})
    assert sink.calls == 1
    assert len(read(tmp_path / "metrics.jsonl")) == 3
    assert [r.getMessage() for r in caplog.records if "tracker" in r.getMessage()] == [
        "tracker failed and is left out from here on (ConnectionError: service is gone); "
        "metrics.jsonl goes on"
    ]


def test_a_sink_that_cannot_start_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def start() -> Breaking:
        raise OSError("no route to host")

    cfg = config()
    with RunDir.open(tmp_path, cfg, "never") as directory, MetricSinks(cfg, directory) as sinks:
        sinks.add("tracker", start)
        sinks.log({"step": 1})
    assert "no route to host" in caplog.text


def test_nothing_heavy_is_imported_when_only_files_are_written():
    code = (
        "import sys, orchestrator.metrics;"
        "print([m for m in ('torch','wandb','tensorboard','ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout.strip() == "[]", done.stderr
