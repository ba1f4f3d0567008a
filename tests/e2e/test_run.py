"""`braid run` as a user meets it: real Ray, vLLM and DeepSpeed; killed, interrupted and resumed."""

import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean

import pytest

from actors.processes import identify
from tests.e2e.recipes import judged, recipe
from tests.e2e.runs import (
    BRAID,
    ROOT,
    Job,
    assert_gone,
    assert_no_secret_was_written,
    command_line,
    ledger,
    records,
    steps,
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def start():
    jobs: list[Job] = []

    def starting(*arguments, **kwargs) -> Job:
        jobs.append(Job(*arguments, **kwargs))
        return jobs[-1]

    yield starting
    for job in jobs:
        family = job.family()
        if job.process.poll() is None:
            job.process.kill()
            job.process.wait(timeout=30)
        for process in family:
            if identify(process.pid) == process:
                os.kill(process.pid, signal.SIGKILL)


def assert_judged(run_dir: Path, shown: str) -> None:
    """Assert that verdicts of the run's own judge came, each of the asked form."""
    for metrics in records(run_dir, "metrics.jsonl"):
        assert metrics["judge/tiny/verdicts"] > 0
        assert metrics["judge/tiny/failed_server"] == metrics["judge/tiny/failed_parse"] == 0
        part = "source/spell/all/reward_part"
        assert 0 <= metrics[f"{part}/score"] <= 1 and 0 <= metrics[f"{part}/rubric"] <= 1
        assert isfinite(metrics[f"{part}/classifier"])
        assert metrics["source/spell/all/invalid"] == 0
    (calibration,) = records(run_dir, "calibrations.jsonl")
    assert (calibration["judge"], calibration["anchors"], calibration["failed"]) == ("tiny", 3, {})
    assert "judge tiny against people on spell/rubric" in shown


def assert_tokens(rollouts: Sequence[dict]) -> None:
    """Assert that tokens were written down, and that engine and trainer agree on them: each step
    here is trained on by the policy that sampled it."""
    for rollout in rollouts:
        tokens = rollout["tokens"]
        ((start, end),) = tokens["sampled"]
        assert end == len(tokens["text"]) and end - start == rollout["completion_tokens"]
        said = re.sub(r"<\|\w+\|>", "", "".join(tokens["text"][start:]))
        assert said == rollout["completions"][0]  # in which special tokens are left out
        assert rollout["prompt"][-1]["content"] in "".join(tokens["text"][:start])
        gaps = zip(tokens["logprob"], tokens["trainer_logprob"], strict=True)
        assert max(abs(a - b) for a, b in gaps) < 1e-3
    groups = {r["group_id"]: list[float]() for r in rollouts}
    for rollout in rollouts:
        groups[rollout["group_id"]].append(rollout["reward"])
    for rollout in rollouts:
        if rollout["source"] != "spell":  # whose advantages its teacher adds to
            above = rollout["reward"] - fmean(groups[rollout["group_id"]])
            assert (abs(rollout["tokens"]["advantage"]) > 1e-6) == (abs(above) > 1e-6)


def test_a_run_leaves_everything_a_user_expects(start, tmp_path):
    run_dir = tmp_path / "run"
    job = start(recipe(tmp_path, taught=True, **judged(tmp_path)), run_dir)
    job.wait_for_steps(1)
    family = job.family()
    assert job.wait() == 0, job.text()
    assert_gone(family)
    assert_no_secret_was_written(job)

    assert steps(run_dir) == [1, 2, 3, 4, 5, 6]
    assert_judged(run_dir, job.text())
    for metrics in records(run_dir, "metrics.jsonl"):
        times = {k: v for k, v in metrics.items() if k.startswith("time/") and k != "time/step"}
        assert sum(times.values()) >= 0.95 * metrics["time/step"], "a phase without a name"
        assert metrics["staleness/max"] == 0
        assert metrics["source/sums/groups"] == 4
        assert metrics["source/spell/groups"] == 2
        assert metrics["source/sums/all/gold/mean"] == metrics["source/sums/all/gold/reward"]
        assert 0 <= metrics["source/sums/all/answers/reference_same"] < 1
        assert metrics["source/sums/alarm/gold"] == 0
        assert metrics["train/ratio/first_minibatch_max_deviation"] < 1e-4
        assert metrics["sync/logprob_gap_median"] < 1e-4
        assert metrics["sync/logprob_gap_max"] < 1e-3
    kl = [m["source/spell/all/teacher/kl"] for m in records(run_dir, "metrics.jsonl")]
    assert (
        abs(kl[0]) < 1e-4 < max(map(abs, kl))
    )  # the policy leaves its teacher, which stands still
    assert "source/sums/all/teacher/kl" not in records(run_dir, "metrics.jsonl")[0]
    evaluations = records(run_dir, "eval.jsonl")
    assert [(e["step"], e["source"], e["n"]) for e in evaluations] == [
        (s, name, 8) for s in (0, 6) for name in ("sums", "spell")
    ]
    assert all(0 <= e["pass_rate"] <= 1 for e in evaluations)
    rollouts = records(run_dir, "rollouts/step_6.jsonl")
    assert len(rollouts) == 16
    assert {r["versions"][0] for r in rollouts} == {5}
    assert {"prompt", "completions", "reward", "reward_parts", "status"} <= rollouts[0].keys()
    assert Counter(r["source"] for r in rollouts) == {"sums": 8, "spell": 8}
    assert_tokens(rollouts)
    golds = [r["gold"] for r in rollouts if r["gold"] is not None]
    assert 0 < len(golds) < 16 and golds == [r["reward"] for r in rollouts if r["gold"] is not None]
    assert sorted(p.name for p in (run_dir / "checkpoints").glob("step_*")) == ["step_4", "step_6"]
    assert list((run_dir / "tensorboard").glob("events*"))
    assert list(run_dir.rglob("*.wandb"))
    assert "Held-out pass rate" in job.text()
    assert "Traceback" not in job.text()

    again = start(tmp_path / "recipe.yaml", run_dir)
    assert again.wait(60) == 2
    assert "--resume auto" in again.text()

    out = tmp_path / "exported"
    command = [BRAID, "export", run_dir, "6", out]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(out).num_parameters() > 100_000
    assert AutoTokenizer.from_pretrained(out).chat_template


@pytest.mark.timeout(1200)  # four starts
def test_killed_interrupted_and_resumed_it_trains_every_step_once(start, tmp_path):
    run_dir, path = tmp_path / "run", recipe(tmp_path, num_steps=500)

    killed = start(path, run_dir)
    killed.wait_for_steps(3)
    family = killed.family()
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.wait(30)
    assert_gone(family)
    assert ledger(run_dir)["balanced"]
    committed = max(int(p.name[5:]) for p in (run_dir / "checkpoints").glob("step_*"))

    interrupted = start(path, run_dir, "--resume", "auto")
    interrupted.wait_until_said("resuming after step")  # the killed one's later steps are gone
    interrupted.wait_for_steps(committed + 2)
    in_use = start(path, run_dir, "--resume", "auto")
    assert in_use.wait(60) == 2
    assert f"in use by pid {interrupted.process.pid}" in in_use.text()
    family = interrupted.family()
    interrupted.process.send_signal(signal.SIGINT)
    assert interrupted.wait(120) == 130, interrupted.text()
    assert_gone(family)
    assert "Traceback" not in interrupted.text()
    done = steps(run_dir)
    assert (run_dir / "checkpoints" / f"step_{done[-1]}").exists(), "the signal's checkpoint"

    terminated = start(path, run_dir, "--resume", "auto")
    terminated.wait_for_steps(done[-1] + 1)
    terminated.process.send_signal(signal.SIGTERM)
    assert terminated.wait(120) == 143, terminated.text()

    last = steps(run_dir)[-1] + 2
    finished = start(path, run_dir, "--resume", "auto", "--set", f"num_steps={last}")
    assert finished.wait() == 0, finished.text()
    assert steps(run_dir) == list(range(1, last + 1))
    trained = Counter(
        (r["group_id"], r["index"])
        for s in range(1, last + 1)
        for r in records(run_dir, f"rollouts/step_{s}.jsonl")
    )
    assert set(trained.values()) == {1}
    account = ledger(run_dir)
    assert (account["balanced"], account["lost"], account["trained_twice"]) == (True, [], [])
    assert (account["step"], account["attempts"], account["in_flight"]) == (last, 4, 0)
    assert {n: s["trained"]["groups"] for n, s in account["sources"].items()} == {
        "sums": 4 * last,
        "spell": 2 * last,
    }


def two_of_each(folder: Path) -> Path:
    """Write a recipe of two engines, trainer ranks, references and critic ranks, all at work.

    The critic's source has a reward for how near an answer comes: under right or wrong alone, a
    step may have no right answer, all returns are the new head's 0, and there is no gradient.
    """
    quarter = {"count": 2, "cpus": 0.25}
    batch = {
        "groups_per_step": 6,
        "max_staleness": 1,
        "num_minibatches": 2,
        "epochs_per_step": 2,
    }
    nearness = {
        "type": "text_similarity",
        "evaluation_metric": "fuzzy_match",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
    }
    return recipe(
        folder,
        rewards=[{"name": "near", "grader": nearness}],
        num_steps=1000,
        batch={**batch, "max_tokens_per_microbatch": 1024},
        trainer={"actors": quarter, "zero_stage": 3, "optimizer": {"lr": 1e-4}},
        critic={
            "actors": {"count": 2, "cpus": 0},
            "zero_stage": 3,
            "optimizer": {"lr": 1e-3},
            "warmup_steps": 1,
        },
        rollout={"actors": quarter, "max_num_seqs": 64},
        eval={"at_start": False, "at_end": False},
        logging={"rollout_groups": 0},
        reference={"actors": {"count": 2, "cpus": 0.1}, "refresh": {"every": 2}},
    )


def assert_critic_learns(run_dir: Path) -> None:
    """Assert that the critic learns of its source alone, and first while the policy waits."""
    metrics = records(run_dir, "metrics.jsonl")
    assert "train/loss" not in metrics[0], "the policy waits while the critic warms up"
    for m in metrics:
        assert isfinite(m["train/critic/loss"]) and m["train/critic/grad_norm"] > 0
        assert m["train/critic/loss_tokens"] == m["source/spell/loss_tokens"]
        assert m.get("train/critic/explained_variance", 0.0) <= 1
    assert metrics[0]["train/critic/value"] == 0, "a new head says 0"
    assert metrics[-1]["train/critic/value"] != 0


def test_two_engines_two_ranks_and_staleness_run_and_a_dead_engine_ends_it(start, tmp_path):
    """With a critic of two ranks for one source, two epochs, and ReMax's baseline for the other."""
    run_dir = tmp_path / "run"
    estimators = {"spell": "gae", "sums": "remax"}
    use = [f"--set=sources.{n}.advantage.use={u}" for n, u in estimators.items()]
    job = start(two_of_each(tmp_path), run_dir, *use)
    job.wait_for_steps(5)
    log = (run_dir / "log.txt").read_text()
    assert [f"followed the policy of step {s} " in log for s in (1, 2, 3, 4)] == [False, True] * 2
    metrics = records(run_dir, "metrics.jsonl")
    assert max(m["staleness/max"] for m in metrics) == 1
    assert all(m["train/minibatches"] == 4 for m in metrics[1:])
    assert all(m["source/sums/all/greedy/tokens"] > 0 for m in metrics)
    assert_critic_learns(run_dir)

    family = job.family()
    cores = [p for p in family if "EngineCore" in command_line(p.pid)]
    assert len(cores) == 2
    os.kill(cores[0].pid, signal.SIGKILL)
    assert job.wait(120) == 1, job.text()
    assert_gone(family)
    last = job.text()
    assert "rollout[" in last
    assert "Traceback" not in last


def timeless(metrics: dict) -> dict:
    return {
        k: v
        for k, v in metrics.items()
        if not k.startswith("time/") and not k.endswith(("_s", "_per_s"))
    }


def test_deterministic_runs_are_equal_bit_for_bit_and_so_is_a_replay(start, tmp_path):
    path = recipe(
        tmp_path,
        num_steps=2,
        deterministic=True,
        replay={"save": True},
        eval={"at_start": False, "at_end": False},
        checkpoint={"every": 0},
        logging={"rollout_groups": 0},
    )
    rows = []
    for name in ("one", "other"):
        job = start(path, tmp_path / name)
        assert job.wait() == 0, job.text()
        rows.append([timeless(m) for m in records(tmp_path / name, "metrics.jsonl")])
    assert len(rows[0]) == 2 and rows[0] == rows[1]
    command = [BRAID, "train", "--replay", tmp_path / "one"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 steps have the run's metrics, bit for bit" in done.stdout
    (tmp_path / "one" / "replay" / "step_2" / "rank_0.npz").unlink()
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "rank_0.npz" in refused.stderr


def test_more_gpus_than_there_are_is_said_at_once(start, tmp_path):
    path = recipe(tmp_path)
    gpus = [f"--set={role}.actors.gpus=1" for role in ("rollout", "reference", "trainer")]
    job = start(path, tmp_path / "run", *gpus)
    assert job.wait(120) == 2, job.text()
    assert "3 GPU demanded in all, 0 there" in job.text()
    assert "trainer[0]: demands 0.5 CPU, 1 GPU" in job.text()
    assert "Traceback" not in job.text()
