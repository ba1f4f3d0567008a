"""The loop with its mixer, ledger and checkpoints, on fake actors: killed at random moments and
resumed, it trains on the tasks of an uninterrupted run, and the ledger accounts for all of them."""

import asyncio
import json
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from mixing.ledger.events import Trained, from_row
from mixing.ledger.ledger import rows
from mixing.slates.group_ids import parse_group_id
from orchestrator.commands.ledger import read_life, read_report
from orchestrator.loop import Stopped
from orchestrator.publisher import SyncReport
from orchestrator.records.checkpoints import FileLayer
from rollouts.types import (
    Boundary,
    GeneratedGroup,
    GroupRequest,
    GroupSummary,
    RolloutError,
    StepResult,
    TrainBatch,
)
from tests.unit.orchestrator.fakes import Attempt, FakeActors, attempt, graded, rows_of

STEPS = 14
FATES = ("fine", "fine", "fine", "flaky", "hopeless")
"""Of tasks: `flaky` fails at its first attempt, `hopeless` at each. Besides, tasks of `c` may be
flat: all their rewards are equal."""


Bounds = tuple[int | None, int | None, int | None]
"""Staleness of each source, None for the batch's."""


def recipe(folder: Path, staleness: int, bounds: Bounds = (None, None, None)) -> RunConfig:
    own = dict(zip("abc", bounds, strict=True))

    def source(name: str, weight: float, size: int) -> dict[str, Any]:
        path = folder / f"{name}.jsonl"
        lines = [json.dumps({"prompt": f"{name} {i}", "answer": "x"}) for i in range(size + 2)]
        path.write_text("\n".join(lines))
        return {
            "name": name,
            "weight": weight,
            "group_size": 2,
            "max_staleness": own[name],
            "difficulty": {"drop_zero_variance": name == "c"},
            "data": {"jsonl": str(path), "held_out": 2},
            "rewards": [{"name": "r", "use": "exact"}],
        }

    return RunConfig.model_validate(
        {
            "name": "mix",
            "num_steps": STEPS,
            "model": {"path": "nowhere"},
            "sources": [source("a", 2.0, 40), source("b", 1.0, 7), source("c", 0.7, 100)],
            "batch": {
                "groups_per_step": 7,
                "max_staleness": staleness,
                "max_attempts": 2,
                "max_failed_groups": 10_000,
            },
            "reward": {"max_error_rate": 1.0},
            "eval": {"at_start": False, "at_end": False},
            "checkpoint": {"every": 3},
            "logging": {"rollout_groups": 0},
        }
    )


class Actors(FakeActors):
    """The policy is the list of samples that it was trained on."""

    dp_size = 2

    def __init__(self, seed: int, fates: Sequence[str]):
        super().__init__()
        self._random = random.Random(seed)
        self._fates = fates
        self.policy: list[list[str]] = []

    async def generate(self, request: GroupRequest) -> GeneratedGroup:
        for _ in range(self._random.randrange(12)):
            await asyncio.sleep(0)
        return await super().generate(request)

    def judge(self, request: GroupRequest) -> GroupSummary:
        task_id, epoch, attempt = parse_group_id(request.group_id)
        fate = random.Random(f"{task_id}/{epoch}").choice(self._fates)
        flat = random.Random(f"{task_id}/{epoch}/reward").random() < 0.4
        rewards: Sequence[float | None] = (1.0, 1.0) if flat else (1.0, 0.0)
        if fate == "hopeless" or (fate == "flaky" and attempt == 0):
            rewards = (None, None)
        return graded(request, rewards, version=self.version)

    async def train_step(self, batch: TrainBatch) -> StepResult:
        await asyncio.sleep(0)
        plans = [p for m in batch.minibatches for rank in m.grid for p in rank]
        self.policy.append(sorted(f"{s.ref}/{s.row}" for p in plans for s in p.samples))
        return StepResult(policy_version=len(self.policy), metrics={}, seconds={})

    async def save(self, folder: Path) -> None:
        (folder / "policy.json").write_text(json.dumps(self.policy))
        for _ in range(3):
            await asyncio.sleep(0)

    async def load(self, folder: Path) -> None:
        self.policy = json.loads((folder / "policy.json").read_text())

    async def publish(self, version: int) -> SyncReport:
        await asyncio.sleep(0)
        return await super().publish(version)


def uninterrupted(cfg: RunConfig, path: Path, seed: int, fates: Sequence[str]) -> Actors:
    actors = Actors(seed, fates)
    with attempt(cfg, path, actors) as run:
        run.finish()
    return actors


def trained_tasks(path: Path) -> list[tuple[int, list[str]]]:
    """Return the groups of each step, as the ledger's rows that count say."""
    events = (from_row(r.text) for r in rows(path / "ledger.jsonl") if not r.undone)
    steps = (e for e in events if isinstance(e, Trained))
    return [(e.step, sorted(g.group_id for g in e.groups)) for e in steps]


ALIKE: Bounds = (None, None, None)


@pytest.mark.parametrize(
    ("seed", "staleness", "bounds"),
    [
        (0, 0, ALIKE),
        (1, 1, ALIKE),
        (2, 2, ALIKE),
        (3, 0, (None, None, 3)),
        (4, 0, (2, 1, None)),
        (5, 1, (0, 4, 2)),
    ],
)
def test_killed_five_times_it_trains_on_the_same_tasks(
    tmp_path: Path, seed: int, staleness: int, bounds: Bounds
) -> None:
    cfg = recipe(tmp_path, staleness, bounds)
    whole = uninterrupted(cfg, tmp_path / "whole", seed, FATES)

    rng, path = random.Random(seed), tmp_path / "killed"
    for kill in range(5):
        actors = Actors(seed * 10 + kill, FATES)
        with attempt(cfg, path, actors) as run:
            run.kill(rng.randrange(60, 400))
        report = read_report(path)
        assert report.balanced, report.faults
        with (path / "ledger.jsonl").open("ab") as file:
            file.write(b'{"event":"accep')
    last = uninterrupted(cfg, path, seed + 99, FATES)

    assert last.policy == whole.policy and len(whole.policy) == STEPS
    assert trained_tasks(path) == trained_tasks(tmp_path / "whole")
    report = read_report(path)
    assert report.attempts == 6 and report.balanced and report.step == STEPS
    assert report.lost == report.trained_twice == [] and report.in_flight == 0
    assert sum(s.trained.groups for s in report.sources.values()) == 7 * STEPS
    assert {"failed", "given_up"} <= report.sources["a"].rejected.keys()
    assert report.sources["c"].rejected["zero_variance"] > 0
    metrics = rows_of(path / "metrics.jsonl")[-1]
    assert metrics["ledger/trained"] == 7 * STEPS and metrics["ledger/in_flight"] == 0
    assert metrics["source/b/total/groups"] == report.sources["b"].trained.groups


def test_stopped_by_signals_it_trains_on_the_same_tasks(tmp_path: Path) -> None:
    cfg = recipe(tmp_path, 1)
    whole = uninterrupted(cfg, tmp_path / "whole", 3, FATES)
    path = tmp_path / "stopped"

    async def stopped(run: Attempt, turns: int) -> None:
        training = asyncio.ensure_future(run.training())
        for _ in range(turns):
            await asyncio.sleep(0)
        run.parts.stop.signal_number = signal.SIGTERM
        run.parts.stop.event.set()
        with pytest.raises(Stopped):
            await training

    for seed in range(3):
        with attempt(cfg, path, Actors(seed, FATES)) as run:
            asyncio.run(stopped(run, 60 + 15 * seed))
        report = read_report(path)
        assert report.balanced and report.in_flight > 0
    assert uninterrupted(cfg, path, 4, FATES).policy == whole.policy
    assert read_report(path).in_flight == 0


def test_the_life_of_an_item_is_told_over_epochs_attempts_and_resumes(tmp_path: Path) -> None:
    cfg, path = recipe(tmp_path, 1), tmp_path / "run"
    for kill in range(2):
        with attempt(cfg, path, Actors(kill, ("flaky",))) as run:
            run.kill(140)
    uninterrupted(cfg, path, 5, ("flaky",))
    task_id = next(t for t in (f"b/train/{i}" for i in range(1, 10)) if read_life(path, t))
    life = read_life(path, task_id)
    assert life == read_life(path, task_id.rpartition("/")[2], source="b")
    counts = [m for m in life if not m.undone]
    assert {m.epoch for m in counts} >= {0, 1, 2}
    first = [m for m in counts if m.group == f"{task_id}#e0a0"]
    assert [m.event for m in first][-2:] == ["dispatched", "rejected"]
    assert first[-1].reason == "failed" and first[-1].why == "reward: too slow"
    second = [m for m in counts if m.group == f"{task_id}#e0a1"]
    assert [m.event for m in second][-2:] == ["accepted", "trained"]
    assert (second[-1].samples, second[-1].loss_tokens) == (2, 6)
    assert second[-1].version == second[-1].step
    assert any(m.undone for item in range(1, 10) for m in read_life(path, f"b/train/{item}"))


def test_what_a_checkpoint_rests_on_is_on_disk_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards, sums and patience are functions of these files: a power cut may not take rows from
    them that a checkpoint came after."""
    path, commits = tmp_path / "run", 0
    synced: dict[str, int] = {}
    late: list[str] = []
    fsync, rename = os.fsync, FileLayer.rename

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        synced[os.readlink(f"/proc/self/fd/{descriptor}")] = os.fstat(descriptor).st_size

    def committed(files: FileLayer, source: Path, target: Path) -> None:
        nonlocal commits
        if (driver := source / "driver.json").is_file() and target.name.startswith("step_"):
            commits += 1
            metrics, ledger = path / "metrics.jsonl", path / "ledger.jsonl"
            known = {metrics: metrics.stat().st_size}
            known[ledger] = json.loads(driver.read_bytes())["ledger_offset"]
            late.extend(f.name for f, size in known.items() if synced.get(str(f), 0) < size)
        rename(files, source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(FileLayer, "rename", committed)
    uninterrupted(recipe(tmp_path, 0), path, 0, ("fine",))
    assert commits == 5 and late == []


class HalfWritten(Actors):
    """What a model wrote as JSON stands in a grader's complaint: half of an emoji."""

    def judge(self, request: GroupRequest) -> GroupSummary:
        summary = super().judge(request)
        error = RolloutError(boundary=Boundary.REWARD, kind="ValueError", message="got '\ud83d'")
        rollouts = (replace(r, error=r.error and error) for r in summary.rollouts)
        return replace(summary, rollouts=tuple(rollouts))


def test_half_characters_of_models_and_data_stop_neither_ledger_nor_checkpoint(
    tmp_path: Path,
) -> None:
    cfg, path = recipe(tmp_path, 1), tmp_path / "run"
    data = tmp_path / "a.jsonl"
    data.write_text(data.read_text().replace('"x"', '"\\ud83d"'))
    with attempt(cfg, path, HalfWritten(0, FATES)) as run:
        run.kill_once(lambda: any((path / "checkpoints").glob("step_*")))
    last = HalfWritten(1, FATES)
    with attempt(cfg, path, last) as run:
        run.finish()
    assert len(last.policy) == STEPS and read_report(path).balanced
    assert r"got '\\ud83d'" in (path / "ledger.jsonl").read_text()
