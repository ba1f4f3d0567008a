"""Kept batches: the plan of a replay is the run's, and what is missing or unread is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.fetch import fetch_stored, lay_out
from configs.errors import ConfigError
from configs.load import save_config
from configs.schema import RunConfig
from orchestrator.records.files import append_line
from orchestrator.records.run_dir import BATCHES
from orchestrator.resume.replay import differences, prepare
from orchestrator.resume.replay_files import begin_step, end_step, kept_steps, read_step
from rollouts.packing import assemble, plan_minibatches
from rollouts.sample_files import StoredSample, rank_file, write_samples
from rollouts.types import (
    MicroBatchPlan,
    SampleHandle,
    TrainBatch,
    TrainingSample,
    UpdateBounds,
)
from tests.made_groups import made_group

ROOT = Path(__file__).parents[3]
DP, BUDGET = 2, 60
STEPS = 4


def recipe(**more: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "kept",
            "num_steps": STEPS,
            "model": {"path": str(ROOT / "configs/models/tiny"), "max_model_len": 128},
            "sources": [
                {
                    "name": "a",
                    "data": {"procedural": "reasoning_gym/chain_sum", "size": 50},
                    "rewards": [{"name": "r", "use": "exact"}],
                    "sampling": {"max_tokens": 10},
                }
            ],
            "batch": {"groups_per_step": 3, "num_minibatches": 2},
            "replay": {"save": True},
            **more,
        }
    )


def sample(rng: np.random.Generator, group: int, index: int) -> TrainingSample:
    size = int(rng.integers(2, 30))
    values = {
        name: rng.normal(size=size).astype(np.float32)
        for name in (
            "rollout_logprobs",
            "advantages",
            "loss_weight",
            "kl_coef",
            "clip_low",
            "clip_high",
            "temperature",
        )
    }
    mask = np.arange(size) > 0
    ids = rng.integers(0, 99, size).astype(np.int32)
    return TrainingSample(
        group_id=f"a/train/{group}", index=index, token_ids=ids, loss_mask=mask, **values
    )


def train_on(run: Path, step: int, keep: int | None = None) -> TrainBatch:
    """Keep a step of made samples as loop and ranks do; return its batch, whose handles refer to
    the samples themselves."""
    rng = np.random.default_rng(step)
    groups = []
    for g in range(3):
        samples = tuple(sample(rng, g, i) for i in range(4))
        handles = tuple(
            SampleHandle(
                ref=samples,  # type: ignore[arg-type]
                row=i,
                num_tokens=len(s.token_ids),
                num_loss_tokens=int(s.loss_mask.sum()),
            )
            for i, s in enumerate(samples)
        )
        groups.append(made_group(group_id=f"a/train/{g}", samples=handles, step=step))
    batch = TrainBatch(
        step=step,
        bounds=UpdateBounds(grad_norm=7.5, lr_factor=0.5),
        minibatches=plan_minibatches(
            [h for g in groups for h in g.samples], dp=DP, num_minibatches=2, max_tokens=BUDGET
        ),
    )
    folder = begin_step(run / BATCHES, step)
    for rank in range(DP):
        handles = [h for m in batch.minibatches for p in m.grid[rank] for h in p.samples]
        stored = [StoredSample(sample=h.ref[h.row], ref_logprobs=None) for h in handles]  # type: ignore[index]
        write_samples(folder / rank_file(rank), stored)
    end_step(folder, groups, batch, keep=keep)
    append_line(run / "metrics.jsonl", {"step": step, "train/loss": 0.25 * step})
    return batch


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    save_config(recipe(), path / "config.yaml")
    return path


def arrays(plans: list[MicroBatchPlan]) -> list[bytes]:
    batches = [lay_out(stored) for stored in fetch_stored(plans, timeout_s=1)]
    return [b.token_ids.tobytes() + b.advantages.tobytes() + b.loss_mask.tobytes() for b in batches]


def test_the_plan_of_a_replay_is_the_runs(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray.get", lambda refs, timeout: [])
    made = [train_on(run, step) for step in range(1, STEPS + 1)]
    found = prepare(run, [], 0)
    assert [kept.step for kept, _ in found.steps] == [1, 2, 3, 4]
    for batch, (kept, handles) in zip(made, found.steps, strict=True):
        assert kept.update_bounds() == batch.bounds
        again = plan_minibatches(handles, dp=DP, num_minibatches=2, max_tokens=BUDGET)
        assert len(again) == len(batch.minibatches)
        for one, other in zip(batch.minibatches, again, strict=True):
            assert (one.num_loss_tokens, one.num_samples) == (
                other.num_loss_tokens,
                other.num_samples,
            )
            for row, same in zip(one.grid, other.grid, strict=True):
                original = [assemble([h.ref[h.row] for h in p.samples], None) for p in row]  # type: ignore[index]
                assert arrays(list(same)) == [
                    b.token_ids.tobytes() + b.advantages.tobytes() + b.loss_mask.tobytes()
                    for b in original
                ]


def test_another_objective_has_no_limits_of_the_runs(run: Path):
    for step in range(1, STEPS + 1):
        train_on(run, step)
    kept, _ = prepare(run, ["algorithm.loss.use=gspo"], 0).steps[0]
    assert kept.update_bounds() == UpdateBounds(lr_factor=0.5)


def test_missing_samples_are_named(run: Path):
    for step in range(1, STEPS + 1):
        train_on(run, step, keep=2)
    assert kept_steps(run / BATCHES) == (3, 4)
    with pytest.raises(ConfigError, match="lacks the batches of 2 of the steps 1 to 4: 1, 2"):
        prepare(run, [], 0)
    (run / BATCHES / "step_4" / rank_file(1)).unlink()
    with pytest.raises(ConfigError, match=r"rank_1\.npz: is missing or damaged"):
        read_step(run / BATCHES, 4)
    first = run / BATCHES / "step_3"
    (first / rank_file(0)).write_bytes((first / rank_file(1)).read_bytes())
    with pytest.raises(ConfigError, match="has not the samples of the step's plan"):
        read_step(run / BATCHES, 3)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("algorithm.kl.coef=0.5", "algorithm.kl.coef"),
        ("sources.a.weight=3", "sources.a.weight"),
        ("seed=9", "seed"),
    ],
)
def test_settings_that_are_in_the_samples_are_refused(run: Path, override: str, named: str):
    train_on(run, 1)
    with pytest.raises(ConfigError, match="is in the samples that the run kept already") as error:
        prepare(run, [override], 0)
    assert [p.where for p in error.value.problems] == [named]


@pytest.mark.parametrize("use", ["gae", "grpo"])
@pytest.mark.parametrize("change", ["placement=reward", "estimator=k1"])
def test_a_critics_values_know_the_kl_already(run: Path, use: str, change: str):
    """Its source's rewards were charged, or not, before they became advantages."""
    own = {**recipe().sources[0].model_dump(), "advantage": {"use": use}}
    kl = {"kl": {"coef": 0.1, "placement": "loss"}}
    save_config(recipe(sources=[own], algorithm=kl), run / "config.yaml")
    train_on(run, 1)
    if use == "grpo":
        assert len(prepare(run, [f"algorithm.kl.{change}"], 0).steps) == 1
        return
    with pytest.raises(ConfigError, match="is in the samples that the run kept already") as error:
        prepare(run, [f"algorithm.kl.{change}"], 0)
    assert [p.where for p in error.value.problems] == [f"algorithm.kl.{change.partition('=')[0]}"]


def test_what_was_rolled_back_is_refused(run: Path):
    for step in range(1, STEPS + 1):
        train_on(run, step)
    rows = (run / "metrics.jsonl").read_text().splitlines()
    rows[2] = json.dumps({**json.loads(rows[2]), "guards/rolled_back_to": 1.0})
    (run / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(ConfigError, match="was rolled back after step 3"):
        prepare(run, [], 0)
    assert len(prepare(run, ["num_steps=2"], 0).steps) == 2
    with pytest.raises(ConfigError, match="no such checkpoint"):
        prepare(run, [], 3)


def test_differences_are_bit_for_bit():
    row = {"step": 1.0, "train/loss": 0.1, "train/grad_norm": float("nan")}
    assert differences(row, {"step": 1, "train/loss": 0.1, "train/grad_norm": None}) == {}
    near = 0.1 + 2**-56
    assert near != 0.1
    assert differences(row, {"train/loss": near, "train/grad_norm": None}).keys() == {"train/loss"}


def test_what_a_critic_learnt_is_not_compared():
    recorded = {"train/loss": 0.1, "train/critic/loss": 2.0, "train/clip/low": 0.0}
    assert differences({"train/loss": 0.1, "train/clip/low": 0.0}, recorded) == {}
    assert differences({"train/loss": 0.1}, recorded).keys() == {"train/clip/low"}
