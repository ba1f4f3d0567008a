"""The loop of fine-tuning, with a trainer and an encoder that only take notes."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from actors.lessons import EncodedRows
from configs.errors import ConfigError, Problem
from configs.load import load_sft
from orchestrator.loop import Stopped, StopRequest
from orchestrator.records.metrics import MetricSinks
from orchestrator.records.run_dir import RunDir
from orchestrator.sft.loop import School
from orchestrator.sft.plan import Prepared, prepare
from rollouts.conversations import Conversation
from rollouts.types import SampleHandle, StepResult, TrainBatch

TINY = str(Path(__file__).parents[3] / "configs/models/tiny")
ROWS, PER_STEP, HELD_OUT = 22, 4, 5


class Encoder:
    """Makes row `qN` a sample of N + 2 tokens, of which N + 1 are learnt."""

    def __init__(self) -> None:
        self.long: set[str] = set()
        self.bad: str | None = None

    async def encode(self, rows: Sequence[Conversation]) -> EncodedRows:
        asked = [row.messages[0].content for row in rows]
        if self.bad in asked:
            raise ConfigError(Problem(where=f"row {self.bad}", what="is bad"))
        kept = [a for a in asked if a not in self.long]
        handles = [
            SampleHandle(ref=a, row=0, num_tokens=int(a[1:]) + 2, num_loss_tokens=int(a[1:]) + 1)
            for a in kept
        ]
        return EncodedRows(
            samples=tuple(handles), too_long=tuple(a for a in asked if a in self.long)
        )


class Trainer:
    """Notes what it was given; its weights are that note."""

    dp_size = 2

    def __init__(self) -> None:
        self.seen: list[tuple[int, tuple[str, ...]]] = []
        self.stop: StopRequest | None = None
        self.stop_after = -1

    async def train_step(self, batch: TrainBatch) -> StepResult:
        (minibatch,) = batch.minibatches
        assert len(minibatch.grid) == 2
        rows = [str(h.ref) for row in minibatch.grid for plan in row for h in plan.samples]
        self.seen.append((batch.step, tuple(sorted(rows))))
        if batch.step == self.stop_after and self.stop is not None:
            self.stop.event.set()
        return StepResult(policy_version=batch.step, metrics={"loss": 1.0}, seconds={})

    async def held_out(self, batch: TrainBatch) -> dict[str, float]:
        """Every row's loss per token is its number."""
        handles = [
            h for m in batch.minibatches for row in m.grid for plan in row for h in plan.samples
        ]
        tokens = sum(h.num_loss_tokens for h in handles)
        loss = sum(int(str(h.ref)[1:]) * h.num_loss_tokens for h in handles)
        return {"loss": loss, "count": tokens}

    async def save(self, folder: Path) -> None:
        (folder / "seen.json").write_text(json.dumps(self.seen))

    async def load(self, folder: Path) -> None:
        seen = json.loads((folder / "seen.json").read_text())
        self.seen = [(step, tuple(rows)) for step, rows in seen]


@pytest.fixture
def made(tmp_path: Path) -> Prepared:
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]}
        for i in range(ROWS + HELD_OUT)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    recipe = {
        "type": "sft",
        "name": "t",
        "epochs": 2,
        "model": {"path": TINY, "dtype": "float32", "max_model_len": 128},
        "data": {"jsonl": "rows.jsonl", "held_out": HELD_OUT},
        "batch": {"rows_per_step": PER_STEP},
        "eval": {"every": 4},
        "checkpoint": {"every": 3},
    }
    (tmp_path / "sft.yaml").write_text(json.dumps(recipe))
    return prepare(load_sft(tmp_path / "sft.yaml"))


def go(
    made: Prepared, folder: Path, *, stop_after: int = -1, encoder: Encoder | None = None
) -> Trainer:
    """Run one attempt to its end, or until it is stopped."""
    trainer = Trainer()

    async def attempt() -> None:
        trainer.stop, trainer.stop_after = StopRequest(), stop_after
        directory = RunDir.open(folder, made.cfg, "auto")
        with directory, MetricSinks(made.run, directory) as sinks:
            school = School(
                made,
                lessons=cast(Any, encoder or Encoder()),
                trainer=cast(Any, trainer),
                directory=directory,
                sinks=sinks,
                say=lambda text: None,
            )
            await school.train(trainer.stop)

    asyncio.run(attempt())
    return trainer


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_is_trained_on_once_an_epoch(made: Prepared, tmp_path: Path):
    trainer = go(made, tmp_path / "run")
    assert [step for step, _ in trainer.seen] == list(range(1, 12))
    drawn = [row for _, rows in trainer.seen for row in rows]
    held_out = {made.held_out[i].messages[0].content for i in range(HELD_OUT)}
    expected = [f"q{i}" for i in range(ROWS + HELD_OUT) if f"q{i}" not in held_out]
    assert sorted(drawn) == sorted(2 * expected)
    rows = lines(tmp_path / "run/metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, 12))
    assert rows[-1]["epoch"] == 2 and rows[0]["epoch"] == pytest.approx(PER_STEP / ROWS)
    assert sum(r["samples"] for r in rows) == 2 * ROWS


def test_a_stopped_run_goes_on_with_the_rows_that_come_next(made: Prepared, tmp_path: Path):
    whole = go(made, tmp_path / "whole").seen
    with pytest.raises(Stopped):
        go(made, tmp_path / "cut", stop_after=5)
    assert sorted(p.name for p in (tmp_path / "cut/checkpoints").glob("step_*")) == [
        "step_3",
        "step_5",
    ]
    assert go(made, tmp_path / "cut").seen == whole
    for name in ("metrics.jsonl", "eval.jsonl"):
        steps = [[r["step"] for r in lines(tmp_path / run / name)] for run in ("whole", "cut")]
        assert steps[0] == steps[1]


def test_a_killed_run_goes_on_from_its_newest_checkpoint(made: Prepared, tmp_path: Path):
    whole = go(made, tmp_path / "whole").seen
    encoder = Encoder()
    encoder.bad = whole[6][1][0]
    first = next(step for step, rows in whole if encoder.bad in rows)
    with pytest.raises(ConfigError, match="is bad"):
        go(made, tmp_path / "cut", encoder=encoder)
    assert go(made, tmp_path / "cut").seen == whole
    assert first <= 7
    assert [r["step"] for r in lines(tmp_path / "cut/metrics.jsonl")] == list(range(1, 12))


def test_held_out_loss_is_over_tokens(made: Prepared, tmp_path: Path):
    go(made, tmp_path / "run")
    numbers = [int(made.held_out[i].messages[0].content[1:]) for i in range(HELD_OUT)]
    expected = sum(n * (n + 1) for n in numbers) / sum(n + 1 for n in numbers)
    rows = lines(tmp_path / "run/eval.jsonl")
    assert [r["step"] for r in rows] == [0, 4, 8, 11]
    assert all(r["loss"] == pytest.approx(expected) for r in rows)
    assert rows[0]["count"] == sum(n + 1 for n in numbers)


def test_rows_that_are_too_long_are_counted(made: Prepared, tmp_path: Path):
    encoder = Encoder()
    encoder.long = {made.training[0].messages[0].content, made.training[1].messages[0].content}
    go(made, tmp_path / "run", encoder=encoder)
    rows = lines(tmp_path / "run/metrics.jsonl")
    assert sum(r["rows/too_long"] for r in rows) == 4
    assert sum(r["samples"] for r in rows) == 2 * (ROWS - 2)


def test_a_step_of_which_nothing_is_left_is_an_error_with_a_remedy(made: Prepared, tmp_path: Path):
    encoder = Encoder()
    encoder.long = {f"q{i}" for i in range(ROWS + HELD_OUT)}
    with pytest.raises(ConfigError) as error:
        go(made, tmp_path / "run", encoder=encoder)
    (problem,) = error.value.problems
    assert problem.where == "data.too_long" and "max_model_len" in str(problem.fix)


def test_a_changed_seed_is_another_run(made: Prepared, tmp_path: Path):
    go(made, tmp_path / "run")
    other = Prepared(
        cfg=made.cfg.model_copy(update={"seed": 2}),
        run=made.run,
        training=made.training,
        held_out=made.held_out,
    )
    with pytest.raises(ConfigError, match="seed"):
        go(other, tmp_path / "run")
