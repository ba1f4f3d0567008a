"""`braid sft` as a user meets it: real Ray and DeepSpeed on the tiny model, resumed, exported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

ROOT = Path(__file__).parents[2]
BRAID = Path(sys.executable).with_name("braid")
pytestmark = pytest.mark.timeout(600)


def braid(*arguments: object) -> str:
    """Run to the end; return what was said."""
    done = subprocess.run(
        [BRAID, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_learnt_over_two_attempts_and_exported(tmp_path: Path):
    words = ["lamp", "tree", "stone", "river", "cloud", "bread", "chair", "glass"]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{word}?"},
                {"role": "assistant", "content": word[::-1]},
                {"role": "user", "content": "Again."},
                {"role": "assistant", "content": word[::-1]},
            ]
        }
        for word in words
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = {"path": str(ROOT / "configs/models/tiny"), "dtype": "float32", "max_model_len": 128}
    recipe = {
        "type": "sft",
        "name": "sft",
        "num_steps": 10,
        "model": model,
        "data": {"jsonl": "rows.jsonl", "held_out": 2},
        "batch": {"rows_per_step": 3, "max_tokens_per_microbatch": 128},
        "trainer": {
            "actors": {"count": 2, "cpus": 0.5},
            "zero_stage": 3,
            "optimizer": {"lr": 1e-3},
        },
        "eval": {"every": 5},
        "health": {"start_s": 240, "silence_s": 30},
    }
    path, run_dir = tmp_path / "sft.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe))
    braid("sft", path, "--run-dir", run_dir, "--set", "num_steps=5")
    said = braid("sft", path, "--run-dir", run_dir, "--resume", "auto")
    assert "resuming after step 5" in said

    metrics = lines(run_dir / "metrics.jsonl")
    assert [m["step"] for m in metrics] == list(range(1, 11))
    assert all(m["samples"] == 3 and m["train/grad_norm"] > 0 for m in metrics)
    assert metrics[-1]["train/loss"] < 0.8 * metrics[0]["train/loss"]
    evaluations = lines(run_dir / "eval.jsonl")
    assert [e["step"] for e in evaluations] == [0, 5, 10]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"]

    out = tmp_path / "exported"
    braid("export", run_dir, "latest", out)
    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 100_000


def test_a_reward_model_is_learnt_and_exported(tmp_path: Path):
    run_dir, out = tmp_path / "run", tmp_path / "exported"
    shorter = ("--set", "num_steps=8", "--set", "data.held_out=8", "--set", "eval.every=0")
    braid("reward-model", "configs/recipes/reward_model.yaml", "--run-dir", run_dir, *shorter)
    evaluations = lines(run_dir / "eval.jsonl")
    assert [e["step"] for e in evaluations] == [0, 8]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"]
    braid("export", run_dir, "latest", out)
    network = AutoModelForSequenceClassification.from_pretrained(out)
    assert network.config.num_labels == 1
