"""Stability guards in the loop, on fake actors with real mixer, ledger, checkpoints and recorder: a
learning rate ten times too high, poisoned batches, rollbacks; killed and resumed."""

import asyncio
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from configs.validate import find_warnings, validate_run
from orchestrator.commands.ledger import read_report
from orchestrator.publisher import SyncReport
from rollouts.types import GeneratedGroup, GroupRequest, GroupSummary, StepResult, TrainBatch
from tests.unit.orchestrator.fakes import FakeActors, attempt, graded, rows_of

STEPS = 44
LR = 0.3
"""Of the fake trainer's problem; above 2 it diverges."""


def recipe(
    folder: Path, *, steps: int = STEPS, staleness: int = 0, every: int = 4, **guards: object
) -> RunConfig:
    path = folder / "a.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"a {i}", "answer": "x"}) for i in range(302)))
    return RunConfig.model_validate(
        {
            "name": "guarded",
            "num_steps": steps,
            "model": {"path": "nowhere"},
            "sources": [
                {
                    "name": "a",
                    "group_size": 2,
                    "data": {"jsonl": str(path), "held_out": 2},
                    "rewards": [{"name": "r", "use": "exact"}],
                }
            ],
            "batch": {"groups_per_step": 3, "max_staleness": staleness},
            "eval": {"at_start": False, "at_end": False},
            "checkpoint": {"every": every},
            "logging": {"rollout_groups": 0},
            "guards": guards,
        }
    )


class Actors(FakeActors):
    """The policy is one number x, whose step is x -= lr (x + noise): it stays near 0 for lr < 2,
    and with lr = 3 doubles each step. Its loss is the step's size."""

    def __init__(self, lr: float = LR, poison: Callable[[int], float] = lambda step: 0.0):
        """Start.

        Args:
            poison: gives what is added to the gradient of a step.
        """
        super().__init__()
        self.lr, self.poison = lr, poison
        self.x = 1.0
        self.published: list[tuple[int, float]] = []
        self.loaded: list[str] = []
        self.factors: list[float] = []

    async def generate(self, request: GroupRequest) -> GeneratedGroup:
        await asyncio.sleep(0)
        return await super().generate(request)

    def judge(self, request: GroupRequest) -> GroupSummary:
        return graded(request, (1.0, 0.0), version=self.version)

    async def train_step(self, batch: TrainBatch) -> StepResult:
        await asyncio.sleep(0)
        bounds = batch.bounds
        rng = random.Random(batch.step)
        noise = rng.choice((-1, 1)) * rng.uniform(0.2, 0.4)
        grad = self.x + noise + self.poison(batch.step)
        loss = abs(grad)
        finite = math.isfinite(loss)
        if not finite and not bounds.skip_non_finite:
            raise RuntimeError("not finite")
        applied = finite and loss <= bounds.loss and abs(grad) <= bounds.grad_norm
        if applied:
            self.x -= self.lr * bounds.lr_factor * grad
        self.factors.append(bounds.lr_factor)
        metrics = {
            "loss": loss,
            "loss_max": loss,
            "grad_norm": abs(grad),
            "grad_norm_max": abs(grad),
            "skipped": float(not applied),
            "non_finite": float(not finite),
            "entropy": 1.0,
            "x": self.x,
        }
        return StepResult(policy_version=batch.step, metrics=metrics, seconds={})

    async def save(self, folder: Path) -> None:
        (folder / "policy.json").write_text(json.dumps(self.x))
        await asyncio.sleep(0)

    async def load(self, folder: Path) -> None:
        self.loaded.append(folder.parent.name)
        self.x = json.loads((folder / "policy.json").read_text())

    async def publish(self, version: int) -> SyncReport:
        await asyncio.sleep(0)
        self.published.append((version, self.x))
        return await super().publish(version)


def run(cfg: RunConfig, path: Path, actors: Actors) -> str:
    """Run to the end; return what was said."""
    with attempt(cfg, path, actors) as run:
        run.finish()
        return run.said


def lines(path: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return rows_of(path / name)


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.startswith("time/") and "per_s" not in k}


def poisoned(at: int, size: float = 60.0) -> Callable[[int], float]:
    return lambda step: size if step == at else 0.0


def test_without_guards_a_rate_ten_times_too_high_diverges(tmp_path: Path):
    actors = Actors(lr=10 * LR)
    said = run(recipe(tmp_path), tmp_path / "run", actors)
    assert abs(actors.x) > 1e9
    assert "ALARM (guards/grad_norm) after step " in said  # the default is to warn
    assert actors.factors == [1.0] * STEPS


@pytest.mark.parametrize("guard", ["grad_norm", "loss"])
def test_shrinking_keeps_it_alive(tmp_path: Path, guard: str):
    actors = Actors(lr=10 * LR)
    run(
        recipe(tmp_path, shrink_steps=STEPS, **{guard: {"action": "shrink"}}),
        tmp_path / "run",
        actors,
    )
    assert abs(actors.x) < 1
    first = actors.factors.index(0.1) + 1
    assert 10 < first < 15 and set(actors.factors[first:]) == {0.1}


def test_a_smaller_rate_holds_for_its_steps(tmp_path: Path):
    actors = Actors(poison=poisoned(20))
    cfg = recipe(tmp_path, steps=40, shrink_steps=7, grad_norm={"action": "shrink"})
    run(cfg, tmp_path / "run", actors)
    assert [i + 1 for i, f in enumerate(actors.factors) if f == 0.1] == list(range(21, 28))


@pytest.mark.parametrize("guard", ["grad_norm", "loss"])
def test_a_spike_is_skipped_before_it_is_applied(tmp_path: Path, guard: str):
    actors, clean = Actors(poison=poisoned(30)), Actors()
    other = {"loss": "grad_norm", "grad_norm": "loss"}[guard]
    cfg = recipe(tmp_path, steps=36, **{guard: {"action": "skip"}, other: {"enabled": False}})
    said = run(cfg, tmp_path / "run", actors)
    run(cfg, tmp_path / "clean", clean)
    rows = lines(tmp_path / "run")
    assert [r["step"] for r in rows if r["train/skipped"]] == [30]
    assert rows[29]["train/x"] == rows[28]["train/x"]
    assert "step 30: 1 updates were not applied" in said
    assert abs(actors.x - clean.x) < 0.1
    raised = [a for a in lines(tmp_path / "run", "alarms.jsonl") if a["event"] == "raised"]
    assert [(a["step"], a["monitor"], a["action"]) for a in raised] == [
        (30, f"guards/{guard}", "skip")
    ]


def test_too_many_skips_in_a_row_end_the_run_with_the_reason(tmp_path: Path):
    actors = Actors(poison=lambda step: 60.0 if step > 30 else 0.0)
    cfg = recipe(tmp_path, grad_norm={"action": "skip"}, max_skips=4)
    said = run(cfg, tmp_path / "run", actors)
    assert lines(tmp_path / "run")[-1]["step"] == 35
    assert "updates of 5 steps in a row were skipped, more than guards.max_skips=4" in said
    assert "more than guards.max_skips" in run(cfg, tmp_path / "run", Actors())  # still


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_what_is_not_finite_is_skipped_or_rolled_back(tmp_path: Path, action: str):
    actors = Actors(poison=poisoned(30, math.nan))
    cfg = recipe(tmp_path, non_finite={"action": action})
    run(cfg, tmp_path / "run", actors)
    rows = lines(tmp_path / "run")
    assert rows[29]["train/loss"] is None and rows[29]["train/skipped"] == 1
    assert math.isfinite(actors.x) and len(rows) == STEPS
    assert actors.loaded == ([] if action == "skip" else ["step_24"])


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_so_is_an_update_of_the_critic(tmp_path: Path, action: str):
    class WithCritic(Actors):
        async def train_step(self, batch: TrainBatch) -> StepResult:
            result = await super().train_step(batch)
            lost = {"critic/non_finite": float(batch.step in (30, 40, 41, 42))}
            return replace(result, metrics={**result.metrics, **lost})

    actors = WithCritic()
    said = run(recipe(tmp_path, non_finite={"action": action}, max_skips=2), tmp_path / "r", actors)
    assert "optimizer steps (1 of the critic) was not finite" in said
    assert actors.loaded == ([] if action == "skip" else ["step_24", "step_32"])
    told = "updates of 3 steps in a row were skipped" in said
    assert told == (action == "skip" and lines(tmp_path / "r")[-1]["step"] == 42)


def rolled_back_recipe(folder: Path, staleness: int = 0) -> RunConfig:
    return recipe(
        folder, staleness=staleness, grad_norm={"action": "rollback"}, loss={"enabled": False}
    )


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_rollback_takes_weights_back_and_nothing_else(tmp_path: Path, staleness: int):
    path = tmp_path / "run"
    actors = Actors(poison=lambda step: 60.0 if step == 31 else 0.0)
    said = run(rolled_back_recipe(tmp_path, staleness), path, actors)
    rows = lines(path)
    # good: 24, as steps 25 to 29 came without an alarm; 28 is not known to be good
    assert actors.loaded == ["step_24"]
    assert "rolled back after step 31: weights and optimizer are those of step 24 again" in said
    assert [
        (r["step"], r["guards/rolled_back_to"]) for r in rows if "guards/rolled_back_to" in r
    ] == [(31, 24)]
    # the engines got the good weights under the next version, and each version once
    assert [v for v, _ in actors.published] == list(range(STEPS + 1))
    assert actors.published[31][1] == rows[23]["train/x"]
    # the mix went on, and all of it is accounted for
    report = read_report(path)
    assert report.balanced and not report.trained_twice
    assert report.sources["a"].trained.groups == 3 * STEPS
    assert report.sources["a"].rolled_back == rows[-1]["ledger/rolled_back"] == 3 * 7
    alarms = [(a["step"], a["event"]) for a in lines(path, "alarms.jsonl")]
    assert alarms == [(31, "raised"), (31, "cleared")]
    assert (path / "checkpoints" / "step_44").is_dir()


def test_a_run_rolls_back_so_often_and_no_more(tmp_path: Path):
    """Steps 26, 35 and 41 are bad: two rollbacks, then the end with the reason."""
    actors = Actors(poison=lambda step: 80.0 if step in (26, 35, 41) else 0.0)
    said = run(rolled_back_recipe(tmp_path), tmp_path / "run", actors)
    assert actors.loaded == ["step_20", "step_28"]
    assert lines(tmp_path / "run")[-1]["step"] == 41
    assert "A rollback is wanted, but guards.max_rollbacks=2 were made" in said


def test_a_rate_ten_times_too_high_is_stopped_with_the_reason(tmp_path: Path):
    actors = Actors(lr=10 * LR)
    said = run(rolled_back_recipe(tmp_path), tmp_path / "run", actors)
    assert "A rollback is wanted, but " in said
    assert lines(tmp_path / "run")[-1]["step"] < 30 and abs(actors.x) < 1e6


def test_without_a_good_checkpoint_the_run_ends(tmp_path: Path):
    actors = Actors(poison=poisoned(14))
    said = run(recipe(tmp_path, every=12, grad_norm={"action": "rollback"}), tmp_path / "r", actors)
    assert "A rollback is wanted, but no checkpoint is known to be good" in said
    assert lines(tmp_path / "r")[-1]["step"] == 14
    again = run(
        recipe(tmp_path, every=12, grad_norm={"action": "rollback"}), tmp_path / "r", actors
    )
    assert "no checkpoint is known to be good" in again
    assert lines(tmp_path / "r")[-1]["step"] == 14


def test_an_alarm_of_an_evaluation_is_answered_after_the_next_step(tmp_path: Path):
    """Training's reward rises and the held-out one stays: `held_out` sees it at an evaluation."""

    class Overfit(Actors):
        def judge(self, request: GroupRequest) -> GroupSummary:
            high = request.step > 24
            rewards = (0.0, 0.0) if request.step < 0 else (1.0, 1.0) if high else (0.0, 0.1)
            return graded(request, rewards, version=self.version)

    base = recipe(tmp_path).model_dump(mode="json")
    base["eval"] = {"every": 5, "at_end": False}
    base["sources"][0]["data"]["held_out"] = 100
    base["sources"][0]["eval"] = {"samples": 2}
    base["monitors"] = {"held_out": {"action": "rollback", "evaluations": 1}}
    base["guards"] = {"reward": {"enabled": False}, "max_rollbacks": 1}
    cfg = RunConfig.model_validate(base)
    actors = Overfit()
    said = run(cfg, tmp_path / "run", actors)
    alarms = [a for a in lines(tmp_path / "run", "alarms.jsonl") if a["monitor"] == "held_out"]
    raised = alarms[0]["step"]
    assert raised % 5 == 0 and raised > 25
    assert f"rolled back after step {raised + 1}: " in said and len(actors.loaded) == 1
    assert (alarms[1]["step"], alarms[1]["event"]) == (raised + 1, "cleared")


def test_checkpoints_that_a_rollback_may_need_are_kept(tmp_path: Path):
    """The newest two, the last one that is good, and the next that may become so."""
    cases = {
        "rare": (4, "rollback", {16, 20, 24}),
        "often": (1, "rollback", {19, 22, 23, 24}),
        "plain": (4, "skip", {20, 24}),
    }
    for name, (every, action, kept) in cases.items():
        cfg = recipe(tmp_path, steps=24, every=every, grad_norm={"action": action})
        run(cfg, tmp_path / name, Actors())
        folders = (tmp_path / name / "checkpoints").glob("step_*")
        assert {int(p.name.removeprefix("step_")) for p in folders} == kept, name


def bad_luck(step: int) -> float:
    return 80.0 if step in (20, 32, 41) else 0.0


@pytest.mark.parametrize("seed", range(2))
def test_killed_and_resumed_it_does_the_same(tmp_path: Path, seed: int):
    """Rollbacks, smaller rates and skips, with three kills at random moments: the rows of an
    uninterrupted run."""
    cfg = recipe(
        tmp_path,
        grad_norm={"action": "rollback"},
        loss={"action": "shrink", "factor": 1.2, "sigmas": 3, "margin": 0.1},
        shrink_steps=5,
    )
    whole = Actors(poison=bad_luck)
    run(cfg, tmp_path / "whole", whole)
    assert whole.loaded and 0.1 in whole.factors
    rng = random.Random(seed)
    for _ in range(3):
        with attempt(cfg, tmp_path / "cut", Actors(poison=bad_luck)) as cut:
            cut.kill(rng.randrange(50, 900))
    last = Actors(poison=bad_luck)
    run(cfg, tmp_path / "cut", last)
    rows, same = (list(map(timeless, lines(tmp_path / n))) for n in ("whole", "cut"))
    assert rows == same
    assert lines(tmp_path / "whole", "alarms.jsonl") == lines(tmp_path / "cut", "alarms.jsonl")
    assert last.x == whole.x
    assert read_report(tmp_path / "cut").balanced


def test_a_rollback_needs_checkpoints_and_a_window_its_warm_up(tmp_path: Path):
    cfg = recipe(tmp_path, every=0, loss={"action": "rollback"}, warmup=30, max_rollbacks=0)
    wheres = [p.where for p in validate_run(cfg) if p.where.startswith("guards")]
    assert wheres == ["guards.warmup", "guards.loss.action", "guards.max_rollbacks"]
    blind = recipe(tmp_path, kl={"action": "shrink"})
    assert [p.where for p in find_warnings(blind) if "guards" in p.where] == ["guards.kl.action"]
