"""The loop tells the mixer what was trained and evaluated, and ends where the mix does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema import RunConfig
from mixing.mixer import Mixer
from mixing.quota.allocator import MixExhausted
from mixing.quota.edits import EditLog
from rollouts.types import GroupRequest, GroupSummary, StepResult, TrainBatch
from tests.unit.orchestrator.fakes import FakeActors, attempt, graded, rows_of


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


class Actors(FakeActors):
    """Rollouts of `a` have ten times the tokens of `b`'s, and eight times the advantages."""

    def __init__(self, rates: Sequence[float]):
        """Start.

        Args:
            rates: pass rate of the first evaluation, of the next, and so on; the last one stays.
        """
        super().__init__()
        self._rates = rates
        self.scales: list[set[tuple[str, float]]] = []
        """Source and factor on the advantages of each step's samples."""

    @property
    def evaluations(self) -> int:
        return len({version for version, _ in self.evaluated})

    def judge(self, request: GroupRequest) -> GroupSummary:
        tokens, advantage = (100, 4.0) if request.task.source == "a" else (10, 0.5)
        rate = self._rates[min(max(self.evaluations, 1), len(self._rates)) - 1]
        rewards = [rate] * request.group_size
        summary = graded(request, rewards, version=self.version, tokens=tokens)
        samples = (replace(s, advantage=(-1) ** s.row * advantage) for s in summary.samples)
        return replace(summary, samples=tuple(samples))

    async def train_step(self, batch: TrainBatch) -> StepResult:
        plans = [p for m in batch.minibatches for rank in m.grid for p in rank]
        self.scales.append(
            {(str(h.ref)[0], round(h.advantage_scale, 3)) for p in plans for h in p.samples}
        )
        return await super().train_step(batch)


@dataclass
class Ran:
    actors: Actors
    said: list[str]
    saved: list[int]

    @property
    def of_the_mix(self) -> list[str]:
        return [line for line in self.said if line.startswith("mix, ")]


def run(
    cfg: RunConfig,
    path: Path,
    *,
    rates: Sequence[float] = (0.0,),
    from_step: int = 0,
    mixer: Mixer | None = None,
) -> Ran:
    actors = Actors(rates)
    with attempt(cfg, path, actors, after=from_step, mixer=mixer) as this:
        this.finish()
        return Ran(actors, this.said.splitlines(), this.saved)


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
    assert ran.actors.scales == [scales] * 3


def test_loss_tokens_reach_the_mixer_and_steer_it(tmp_path: Path) -> None:
    cfg = recipe(tmp_path, mix={"unit": "loss_tokens"}, num_steps=30, eval={"at_end": False})
    ran = run(cfg, tmp_path / "run")
    groups = [f"source/{name}/groups" for name in "ab"]
    shares = [[m.get(g, 0) for g in groups] for m in ran_metrics(tmp_path)]
    a, b = (sum(float(s[i]) for s in shares[5:]) for i in (0, 1))
    assert b / a == pytest.approx(10, rel=0.35)
    assert ran.actors.trained == list(range(1, 31))


def ran_metrics(tmp_path: Path) -> Sequence[dict[str, Any]]:
    return rows_of(tmp_path / "run" / "metrics.jsonl")


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
    assert ran.of_the_mix == [f"mix, from step {first_of_b}: stage 1 begins"]


def test_a_resumed_run_hears_of_evaluations_and_catches_up_on_a_missed_one(tmp_path: Path) -> None:
    cfg = recipe(tmp_path)
    first = run(cfg.model_copy(update={"num_steps": 5}), tmp_path / "run")
    assert first.actors.evaluations == 3  # after 0, 2 and 4
    path = tmp_path / "run" / "eval.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))  # 4's was cut off
    again = run(cfg, tmp_path / "run", from_step=4, mixer=advance(cfg, 4))
    steps = [line["step"] for line in rows_of(path)]
    assert steps == [s for s in (0, 2, 4, 6, 8, 10, 12) for _ in "ab"]
    assert again.actors.trained == list(range(5, 13))


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
    assert ran.actors.trained == [1, 2, 3, 4, 5]
    assert ran.saved[-1] == 5 and ran.actors.evaluations == 2
    assert any("the run ends after step 5" in line for line in ran.said)


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
    (line,) = ran.of_the_mix
    assert "b.weight = 0" in line
    assert all(m["source/b/groups"] == 0 for m in ran_metrics(tmp_path))
