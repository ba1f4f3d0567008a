import json
import logging
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from orchestrator.records.metrics import MetricSinks
from orchestrator.records.run_dir import RunDir
from orchestrator.sinks.sink import Sink, by_section
from rewards.monitors.alarms import Alarm

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
    assert {"train/loss", "source-sums/held_out/pass_rate"} <= set(tags)
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


ROLLOUT = {
    "step": 10,
    "group_id": "sums/train/0#e0a0",
    "source": "sums",
    "prompt": [{"role": "user", "content": "1+1?"}],
    "completions": ["it is 2"],
    "status": "completed",
    "reward": 1.0,
    "reward_parts": {"correct": 1.0},
    "gold": None,
}
ALARM = Alarm(
    step=10,
    source="sums",
    monitor="length",
    event="raised",
    action="warn",
    text="grows longer and not better",
    figures={},
)


def wandb_records(folder: Path) -> list[Any]:
    """Return what an offline W&B run holds: records in LevelDB's log format, after 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, part = file.read_bytes(), 7, b""
    found: list[Any] = []
    while at < len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            found.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return found


def test_wandb_gets_sections_by_source_tables_and_alerts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cfg = config(wandb="offline", samples_every=10)
    with RunDir.open(tmp_path / "run", cfg, "never") as directory:
        with MetricSinks(cfg, directory) as sinks:
            for step in (9, 10):
                row = json.dumps({**ROLLOUT, "step": step})
                directory.rollouts_path(step).write_text(row + "\n")
                sinks.log({"step": step, "source/sums/trained/reward/mean": 0.5, "train/loss": 1.0})
            sinks.log_eval({"step": 10, "source": "sums", "n": 10, "pass_rate": 0.5})
            sinks.log_alarm(ALARM)
        assert [a["monitor"] for a in directory.read_alarms()] == ["length"]
    records = wandb_records(tmp_path / "run")
    rows = [
        {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in r.history.item
        }
        for r in records
        if r.HasField("history")
    ]
    assert [r["step"] for r in rows if "train/loss" in r] == [9, 10]
    assert {r["source-sums/trained/reward/mean"] for r in rows if "train/loss" in r} == {0.5}
    assert [r["source-sums/held_out/pass_rate"] for r in rows if "source-sums/held_out/n" in r] == [
        0.5
    ]
    shown_at = "source-sums/rollouts/path"
    (table,) = [r[shown_at] for r in rows if shown_at in r]
    (file,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*/files/{table}")
    shown = json.loads(file.read_text())
    cells = dict(zip(shown["columns"], shown["data"][0], strict=True))
    assert (cells["step"], cells["completion"], cells["reward"]) == (10, "it is 2", 1.0)
    axes = {
        r.metric.name or r.metric.glob_name: r.metric.step_metric
        for r in records
        if r.HasField("metric")
    }
    assert axes["*"] == "step"
    (alert,) = [r.alert for r in records if r.HasField("alert")]
    assert "length" in alert.title and "grows longer" in alert.text


class Breaking(Sink):
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
        "import sys, orchestrator.records.metrics;"
        "print([m for m in ('torch','wandb','tensorboard','ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_tracker_that_groups_by_the_first_word_has_a_section_a_source():
    assert by_section("source/a.b/trained/reward/mean") == "source-a.b/trained/reward/mean"
    assert by_section("eval/a.b/pass@4") == "source-a.b/held_out/pass@4"
    assert [by_section(n) for n in ("eval/mean", "train/loss", "step")] == [
        "eval/mean",
        "train/loss",
        "step",
    ]
