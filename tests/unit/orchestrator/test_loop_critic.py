"""The critic in the loop, with fake groups: who scores and trains when, what is saved."""

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.errors import ConfigError
from configs.schema import RunConfig
from orchestrator.clock import PhaseClock
from orchestrator.guards import Guards
from orchestrator.loop import _checkpoint, _step
from orchestrator.publisher import SyncReport
from orchestrator.records.checkpoints import CheckpointError, CheckpointRef, CheckpointStore
from orchestrator.records.step_metrics import TrainedStep
from orchestrator.resume.state import load_actors
from rollouts.types import GroupSummary, MicroBatchPlan, SampleHandle, StepResult, TrainBatch
from tests.made_groups import made_group


def recipe(**critic: object) -> RunConfig:
    def source(name: str, use: str) -> dict[str, object]:
        return {
            "name": name,
            "data": {"procedural": "reasoning_gym/lcm"},
            "rewards": [{"name": "r", "use": "exact"}],
            "advantage": {"use": use},
        }

    return RunConfig.model_validate(
        {
            "name": "t",
            "num_steps": 9,
            "model": {"path": "m"},
            "batch": {"groups_per_step": 2},
            "sources": [source("valued", "gae"), source("plain", "rloo")],
            "critic": critic,
            "logging": {"rollout_groups": 0},
        }
    )


@dataclass
class Fakes:
    """Every group of actors in one; notes what is asked."""

    log: list[str] = field(default_factory=list)
    trained: TrainBatch | None = None
    dp_size: int = 1

    def __post_init__(self) -> None:
        self.reference = SimpleNamespace(score=self._reference)
        self.trainer = SimpleNamespace(train_step=self._policy, dp_size=1)
        self.critic = SimpleNamespace(score=self._values, train_step=self._critic)

    async def _reference(self, batch: TrainBatch) -> TrainBatch:
        self.log.append("reference")
        return batch

    async def _values(self, batch: TrainBatch) -> TrainBatch:
        self.log.append("values")

        def scored(plan: MicroBatchPlan) -> MicroBatchPlan:
            samples = (
                replace(s, advantage=float(s.row), advantage_variance=1.0) if s.needs_values else s
                for s in plan.samples
            )
            return replace(plan, samples=tuple(samples), advantages="a", targets="t")

        minibatches = tuple(
            replace(m, grid=tuple(tuple(map(scored, row)) for row in m.grid))
            for m in batch.minibatches
        )
        return replace(batch, minibatches=minibatches)

    async def _policy(self, batch: TrainBatch) -> StepResult:
        self.log.append("policy")
        self.trained = batch
        await asyncio.sleep(0)
        return StepResult(policy_version=batch.step, metrics={"loss": 1.0}, seconds={"fetch": 0.1})

    async def _critic(self, batch: TrainBatch) -> StepResult | None:
        self.log.append("critic")
        own = [s for m in batch.minibatches for r in m.grid for p in r for s in p.samples]
        if not any(s.needs_values for s in own):
            return None
        return StepResult(policy_version=batch.step, metrics={"loss": 2.0}, seconds={})

    async def publish(self, version: int) -> SyncReport:
        self.log.append("publish")
        return SyncReport(seconds={}, bytes=1, gap_median=None, gap_max=None)

    async def save(self, step: int, ranks: dict[str, object], *_: object, **__: object) -> None:
        self.log.append(f"save {' '.join(ranks)}")


def group(source: str, number: int, *, samples: int = 2) -> GroupSummary:
    handles = (
        SampleHandle(
            ref=f"{source}/{number}",
            row=row,
            num_tokens=4,
            num_loss_tokens=1 + 2 * row,
            needs_values=source == "valued",
        )
        for row in range(samples)
    )
    return made_group(group_id=f"{source}/{number}", source=source, samples=handles)


def run_step(
    cfg: RunConfig, fakes: Fakes, step: int, groups: list[GroupSummary]
) -> tuple[StepResult, list[GroupSummary]]:
    seen: list[GroupSummary] = []

    def trained(_: int, __: int, groups: list[GroupSummary], batch: TrainBatch) -> None:
        seen.extend(groups)

    steps: list[TrainedStep] = []
    mixer = SimpleNamespace(observe_trained=lambda *_: None, target_shares=lambda _: {})
    producer: Any = SimpleNamespace(
        trained=trained, advance=lambda _: None, take_rejected=lambda _: ()
    )
    parts: Any = SimpleNamespace(
        cfg=cfg,
        cluster=fakes,
        clock=PhaseClock(),
        publisher=fakes,
        mixer=mixer,
        recorder=SimpleNamespace(
            guards=Guards(cfg), trained=steps.append, rollouts_path=lambda step: None
        ),
    )
    rolled_back, _ = asyncio.run(_step(parts, producer, step, groups))
    assert not rolled_back
    return steps[0].result, seen


def test_values_come_after_the_reference_and_before_training() -> None:
    fakes = Fakes()
    groups = [group("valued", 0), group("plain", 1)]
    result, trained = run_step(recipe(), fakes, 1, groups)
    assert fakes.log == ["reference", "values", "policy", "critic", "publish"]
    assert dict(result.metrics) == {"loss": 1.0, "critic/loss": 2.0}
    assert result.seconds == {"fetch": 0.1}
    # advantages 0 and 1 over one and three tokens, of variance 1: mean 3/4, variance 3/16 + 1
    valued, plain = trained
    assert [s.advantage_shift for s in valued.samples] == pytest.approx([0.75] * 2)
    assert [s.advantage_scale for s in valued.samples] == pytest.approx(
        [(19 / 16) ** -0.5] * 2, rel=1e-5
    )
    assert [(s.advantage_shift, s.advantage_scale) for s in plain.samples] == [(0, 1)] * 2
    assert fakes.trained is not None
    planned = [s for m in fakes.trained.minibatches for r in m.grid for p in r for s in p.samples]
    assert {id(s) for s in planned} == {id(s) for g in trained for s in g.samples}


def test_the_policy_stays_while_the_critic_warms_up() -> None:
    cfg, groups = recipe(warmup_steps=2), [group("valued", 0)]
    for step in (1, 2):
        fakes = Fakes()
        result, trained = run_step(cfg, fakes, step, groups)
        assert fakes.log == ["reference", "values", "critic", "publish"]
        assert (result.policy_version, dict(result.metrics)) == (step, {"critic/loss": 2.0})
        assert len(trained) == 1
    fakes = Fakes()
    run_step(cfg, fakes, 3, groups)
    assert "policy" in fakes.log


def test_a_step_without_values_leaves_the_critic_as_it_is() -> None:
    result, _ = run_step(recipe(), Fakes(), 1, [group("plain", 0)])
    assert dict(result.metrics) == {"loss": 1.0}


def test_the_critic_is_in_the_checkpoint() -> None:
    fakes = Fakes()
    parts: Any = SimpleNamespace(
        cluster=fakes,
        clock=PhaseClock(),
        checkpoints=fakes,
        mixer=None,
        recorder=SimpleNamespace(guards=None),
    )
    asyncio.run(_checkpoint(parts, None, 1))  # type: ignore[arg-type]
    fakes.critic = None  # type: ignore[assignment]
    asyncio.run(_checkpoint(parts, None, 2))  # type: ignore[arg-type]
    assert fakes.log == ["save trainer critic", "save trainer"]


def test_a_checkpoint_without_its_critic_is_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2, attempt=1)

    def write(step: int, *ranks: str) -> None:
        folder = store.begin(step)
        for name in ranks:
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "state").write_text("x")
        store.write_driver(step, {})

    write(1, "trainer")
    with pytest.raises(CheckpointError, match="nothing was written to critic"):
        store.commit(1, ("trainer", "critic"))
    write(2, "trainer", "critic")
    found = store.commit(2, ("trainer", "critic"))
    assert found.critic == found.path / "critic"
    write(3, "trainer")
    assert store.commit(3).critic is None


def test_both_are_loaded_and_a_missing_critic_is_named(tmp_path: Path) -> None:
    loaded: list[Path] = []

    async def load(folder: Path) -> None:
        loaded.append(folder)

    ranks = SimpleNamespace(load=load)
    both: Any = SimpleNamespace(trainer=ranks, critic=ranks, reference=None)
    alone: Any = SimpleNamespace(trainer=ranks, critic=None, reference=None)
    cfg: Any = None  # read for a reference alone
    found = CheckpointRef(step=2, path=tmp_path)
    asyncio.run(load_actors(cfg, found, alone))
    with pytest.raises(ConfigError, match="holds no critic"):
        asyncio.run(load_actors(cfg, found, both))
    found.path.joinpath("critic").mkdir()
    asyncio.run(load_actors(cfg, found, both))
    policy = tmp_path / "trainer"
    assert loaded == [policy, policy, policy, tmp_path / "critic"]
