"""The loop tells the mixer what was trained and evaluated, and ends where the mix does."""

import asyncio
import json
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.schema import RunConfig
from mixing.ledger.ledger import Ledger
from mixing.mixer import Mixer
from mixing.quota.allocator import MixExhausted
from mixing.quota.edits import EditLog
from orchestrator.clock import PhaseClock
from orchestrator.evaluator import EvalResult
from orchestrator.loop import Parts, StopRequest, train
from orchestrator.records.recorder import Recorder
from orchestrator.records.run_dir import RunDir
from orchestrator.resume.state import Restored
from rollouts.types import (
    GeneratedGroup,
    GroupRequest,
    GroupSummary,
    RolloutStats,
    RolloutStatus,
    SampleHandle,
)


def recipe(tmp_path: Path, **sections: object) -> RunConfig:
    sources = []
    for name in "ab":
        rows = "".join(f'{{"prompt": "{name}{i}", "answer": "{i}"}}\n' for i in range(40))
        (tmp_path / f"{name}.jsonl").write_text(rows)
        source = {"name": name, "rewards": [{"name": "r", "use": "exact"}], "group_size": 2}
        data = {"jsonl": str(tmp_path / f"{name}.jsonl"), "held_out": 4}
        sources.append(source | {"data": data} | sections.pop(name, {}))  # type: ignore[operator]
    base = {
        "name": "t",
        "num_steps": 12,
        "model": {"path": "m"},
        "sources": sources,
        "batch": {"groups_per_step": 4},
        "eval": {"every": 2, "at_start": True, "at_end": False},
    }
    return RunConfig.model_validate(base | sections)


@dataclass
class FakeCluster:
    """Engine, grader and trainer in one: rollouts of `a` have ten times the tokens of `b`'s.

    The pass rate of evaluations is `rates[n]` at the nth one.
    """

    rates: Sequence[float] = (0.0,)
    evaluated: int = 0
    trained: list[int] = field(default_factory=list)
    scales: list[set[tuple[str, float]]] = field(default_factory=list)
    """Source and factor on the advantages of each step's samples."""
    version: int = 0
    dp_size: int = 1
    reference: None = None
    critic: None = None

    def __post_init__(self) -> None:
        self.rollout = self.reward = self.trainer = self.supervisor = self

    async def until_failed(self, work: Awaitable[Any], *, doing: str, timeout_s: float) -> Any:
        return await asyncio.wait_for(work, 10)

    async def generate(self, request: GroupRequest) -> GeneratedGroup:
        return GeneratedGroup(
            group_id=request.group_id, ref=request, num_completion_tokens=2, generate_s=0.0
        )

    async def grade(self, generated: GeneratedGroup) -> GroupSummary:
        request = generated.ref
        assert isinstance(request, GroupRequest)
        tokens = 100 if request.task.source == "a" else 10
        rate = self.rates[min(self.evaluated, len(self.rates) - 1)]
        one = RolloutStats(
            reward=rate,
            reward_parts={},
            num_completion_tokens=tokens,
            status=RolloutStatus.COMPLETED,
            error=None,
        )
        handles = (
            SampleHandle(
                ref=request.group_id,
                row=i,
                num_tokens=tokens,
                num_loss_tokens=tokens,
                advantage=(-1) ** i * (4.0 if request.task.source == "a" else 0.5),
            )
            for i in range(request.group_size)
        )
        return GroupSummary(
            group_id=request.group_id,
            task_id=request.task.task_id,
            source=request.task.source,
            step=request.step,
            rollouts=(one,) * request.group_size,
            samples=tuple(handles),
            group_ref=None,
            oldest_version=self.version,
            newest_version=self.version,
            generate_s=0.0,
            grade_s=0.0,
        )

    async def train_step(self, batch: Any) -> Any:
        self.trained.append(batch.step)
        plans = [p for m in batch.minibatches for rank in m.grid for p in rank]
        self.scales.append(
            {(str(h.ref)[0], round(h.advantage_scale, 3)) for p in plans for h in p.samples}
        )
        return SimpleNamespace(policy_version=batch.step, metrics={}, seconds={})

    async def spell(self, *arguments: object) -> None:
        pass

    async def record(self, *arguments: object) -> None:
        pass

    async def open(self) -> None:
        pass

    async def publish(self, version: int) -> Any:
        self.version = version
        return SimpleNamespace(bytes=0, gap_median=None, gap_max=None, seconds={})


@dataclass
class FakeCheckpoints:
    saved: list[int] = field(default_factory=list)

    async def save(self, step: int, *arguments: object, last: bool, **__: object) -> None:
        self.saved.append(step)


class Said(Recorder):
    """A recorder whose lines can be read."""

    lines: list[str]

    def say(self, text: str) -> None:
        self.lines.append(text)

    @property
    def of_the_mix(self) -> list[str]:
        return [line for line in self.lines if line.startswith("mix, ")]

    def evaluated(self, results: Sequence[EvalResult]) -> None:
        self.cluster.evaluated += 1
        super().evaluated(results)

    cluster: FakeCluster


@dataclass
class Ran:
    mixer: Mixer
    cluster: FakeCluster
    recorder: Said
    saved: list[int]


def run(
    cfg: RunConfig,
    path: Path,
    *,
    rates: Sequence[float] = (0.0,),
    from_step: int = 0,
    mixer: Mixer | None = None,
) -> Ran:
    cluster, checkpoints = FakeCluster(rates=rates), FakeCheckpoints()
    with RunDir.open(path, cfg, "auto") as directory, Said(cfg, directory) as recorder:
        recorder.lines, recorder.cluster = [], cluster
        ran = Ran(
            mixer or Mixer(cfg, edits=EditLog(directory.mix_edits)),
            cluster,
            recorder,
            checkpoints.saved,
        )
        # A ledger of each attempt's own: how one resumes is another test's matter.
        account = path / f"ledger-{directory.attempt}.jsonl"
        ledger = Ledger.open(account, attempt=1, step=0, offset=0, pending=())
        parts = Parts(
            cfg=cfg,
            cluster=cluster,  # type: ignore[arg-type]
            mixer=ran.mixer,
            ledger=ledger,
            publisher=cluster,  # type: ignore[arg-type]
            recorder=recorder,
            checkpoints=checkpoints,  # type: ignore[arg-type]
            clock=PhaseClock(),
            stop=StopRequest(),
        )
        restored = Restored(
            step=from_step, checkpoint=None, pending=(), rejected=(), ledger_offset=0
        )

        async def bounded() -> None:
            parts.stop.event = asyncio.Event()
            with ledger:
                await asyncio.wait_for(train(parts, restored), 30)

        asyncio.run(bounded())
    return ran


@pytest.mark.parametrize(
    ("scopes", "scales"),
    [
        (("group", "group"), {("a", 1.0), ("b", 1.0)}),
        (("source", "source"), {("a", 0.25), ("b", 2.0)}),
        (("batch", "batch"), {("a", 0.351), ("b", 0.351)}),  # ((16 + 1/4) / 2) ** -1/2
        (("source", "group"), {("a", 0.25), ("b", 1.0)}),
    ],
)
def test_the_trainer_is_told_the_scale_of_each_advantage(
    tmp_path: Path, scopes: tuple[str, str], scales: set[tuple[str, float]]
) -> None:
    own = {name: {"advantage_scope": scope} for name, scope in zip("ab", scopes, strict=True)}
    batch = {"groups_per_step": 4, "num_minibatches": 2}
    ran = run(recipe(tmp_path, num_steps=3, batch=batch, **own), tmp_path / "run")
    assert ran.cluster.scales == [scales] * 3


def test_loss_tokens_reach_the_mixer_and_steer_it(tmp_path: Path) -> None:
    cfg = recipe(tmp_path, mix={"unit": "loss_tokens"}, num_steps=30, eval={"at_end": False})
    ran = run(cfg, tmp_path / "run")
    groups = [f"source/{name}/groups" for name in "ab"]
    shares = [[m.get(g, 0) for g in groups] for m in ran_metrics(tmp_path)]
    a, b = (sum(float(s[i]) for s in shares[5:]) for i in (0, 1))
    assert b / a == pytest.approx(10, rel=0.35)
    assert ran.cluster.trained == list(range(1, 31))


def ran_metrics(tmp_path: Path) -> Sequence[dict[str, Any]]:
    return read(tmp_path / "run" / "metrics.jsonl")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("staleness", [0, 1])
def test_an_evaluation_ends_a_stage_at_a_step_that_it_alone_decides(
    tmp_path: Path, staleness: int
) -> None:
    """Evaluations after 0, 2, 4, 6, ...: the third in a row at the threshold is that after 6."""
    until = {"metric": "eval/a/pass_rate", "gte": 0.75, "patience": 2}
    cfg = recipe(
        tmp_path,
        stages=[{"until": until, "weights": {"b": 0}}, {"weights": {"a": 0, "b": 1}}],
        batch={"groups_per_step": 4, "max_staleness": staleness},
    )
    ran = run(cfg, tmp_path / "run", rates=[1.0, 0.0, 1.0, 1.0, 0.0])
    first_of_b = next(m["step"] for m in ran_metrics(tmp_path) if m["source/b/groups"])
    assert first_of_b == 6 + 2 + staleness
    assert ran.recorder.of_the_mix == [f"mix, from step {first_of_b}: stage 1 begins"]


def test_a_resumed_run_hears_of_evaluations_and_catches_up_on_a_missed_one(tmp_path: Path) -> None:
    cfg = recipe(tmp_path)
    first = run(cfg.model_copy(update={"num_steps": 5}), tmp_path / "run")
    assert first.cluster.evaluated == 3  # after 0, 2 and 4
    path = tmp_path / "run" / "eval.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))  # 4's was cut off
    again = run(cfg, tmp_path / "run", from_step=4, mixer=advance(cfg, 4))
    steps = [line["step"] for line in read(path)]
    assert steps == [s for s in (0, 2, 4, 6, 8, 10, 12) for _ in "ab"]
    assert again.cluster.trained == list(range(5, 13))


def advance(cfg: RunConfig, steps: int) -> Mixer:
    mixer = Mixer(cfg)
    for step in range(1, steps + 1):
        mixer.plan_step(step)
    return mixer


@pytest.mark.parametrize("staleness", [0, 2])
def test_stop_trains_what_is_under_way_then_ends_the_run_with_a_checkpoint(
    tmp_path: Path, staleness: int
) -> None:
    cfg = recipe(
        tmp_path,
        a={"limits": {"max_items": 11}},
        mix={"on_exhausted": "stop"},
        batch={"groups_per_step": 4, "max_staleness": staleness},
        eval={"at_end": True},
    )
    ran = run(cfg, tmp_path / "run")
    assert ran.cluster.trained == [1, 2, 3, 4, 5]
    assert ran.saved[-1] == 5 and ran.cluster.evaluated == 2
    assert any("the run ends after step 5" in line for line in ran.recorder.lines)


def test_a_mix_with_nothing_left_fails_after_a_checkpoint(tmp_path: Path) -> None:
    limited = {"limits": {"max_epochs": 1}}
    cfg = recipe(tmp_path, a=limited, b={"limits": {"max_items": 4}}, num_steps=50)
    with pytest.raises(MixExhausted, match="a, b used up"):
        run(cfg, tmp_path / "run")
    assert ran_metrics(tmp_path)[-1]["step"] == 10  # 36 rows and 4 draws


def test_a_live_edit_is_said(tmp_path: Path) -> None:
    cfg = recipe(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").touch()
    EditLog(tmp_path / "run" / "mix_edits.jsonl").ask({"b": 0.0})
    ran = run(cfg, tmp_path / "run")
    (line,) = ran.recorder.of_the_mix
    assert "b.weight = 0" in line
    assert all(m["source/b/groups"] == 0 for m in ran_metrics(tmp_path))
