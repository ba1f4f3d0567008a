"""The loop against fake actors, with the real recorder and run directory: which evaluations come
when, what stops a run early, and what a resumed one takes up."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from configs.schema import RunConfig
from mixing.mixer import Mixer
from orchestrator.loop import Stopped
from rollouts.types import GeneratedGroup, GroupRequest, GroupSummary, TextTraits
from tests.unit.orchestrator.fakes import FakeActors, MadeSource, attempt, graded, rows_of

NAMES = ("a", "b")
ITEMS = 20


def config(
    num_steps: int = 12, own: Mapping[str, object] | None = None, **evaluation: object
) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "fake",
            "num_steps": num_steps,
            "model": {"path": "nowhere"},
            "sources": [
                {
                    "name": name,
                    "data": {"procedural": "reasoning_gym/chain_sum"},
                    "rewards": [{"name": "r", "use": "exact"}],
                    "eval": (own or {}).get(name, {}),
                }
                for name in NAMES
            ],
            "batch": {"groups_per_step": 2},
            "eval": {"every": 2, **evaluation},
            "logging": {"rollout_groups": 0},
        }
    )


class Scripted(FakeActors):
    """Held-out items pass by a script, and all others."""

    def __init__(self, rates: Mapping[str, Sequence[float]], stop_at: int = -1):
        """Start.

        Args:
            rates: held-out pass rate of each source by policy version; the last one stays.
            stop_at: version in whose evaluation a signal comes.
        """
        super().__init__()
        self._rates, self._stop_at = rates, stop_at

    async def generate(self, request: GroupRequest) -> GeneratedGroup:
        if request.step < 0 and self.version == self._stop_at:
            self.stop.event.set()
            await asyncio.sleep(60)
        return await super().generate(request)

    def judge(self, request: GroupRequest) -> GroupSummary:
        if request.step >= 0:
            return super().judge(request)
        own = self._rates[request.task.source]
        item = int(request.task.task_id.rsplit("/", 1)[1])
        passed = float(item < own[min(self.version, len(own) - 1)] * ITEMS)
        return graded(request, [passed] * request.group_size, version=self.version)


@dataclass(frozen=True)
class Run:
    """One attempt, over."""

    text: str
    saved: list[int]
    evaluated: list[tuple[int, str]]


def run(path: Path, cfg: RunConfig, actors: FakeActors, *, after: int = 0) -> Run:
    """Run from a checkpoint of step `after` to the end or the signal."""
    mixer = Mixer(cfg, {name: MadeSource(name, held_out=ITEMS) for name in NAMES})
    with attempt(cfg, path, actors, after=after, mixer=mixer) as this:
        try:
            this.finish()
            this.parts.recorder.finished()
        except Stopped:
            this.out.write("stopped\n")
        saved = this.saved
    return Run(text=this.said, saved=saved, evaluated=actors.evaluated)


UP = [i / ITEMS for i in range(20)]
FLAT = {"a": [0.5, 0.5, 0.6, 0.6, 0.5], "b": [0.5, 0.5, 0.7, 0.7, 0.6, 0.6, 0.65]}


def test_each_source_at_its_own_cadence(tmp_path: Path):
    cfg = config(7, own={"a": {"every": 3}})
    done = run(tmp_path, cfg, Scripted({"a": UP, "b": UP}))
    assert done.evaluated == [
        *((0, n) for n in NAMES),
        (2, "b"),
        (3, "a"),
        (4, "b"),
        (6, "a"),
        (6, "b"),
        *((7, n) for n in NAMES),
    ]
    assert [(e["step"], e["source"]) for e in rows_of(tmp_path / "eval.jsonl")] == done.evaluated
    assert [r["step"] for r in rows_of(tmp_path / "spikiness.jsonl")] == [0, 2, 3, 4, 6, 7]
    assert done.saved == [7]


def test_patience_ends_the_run_with_a_checkpoint_and_the_table(tmp_path: Path):
    done = run(tmp_path, config(patience=2), Scripted(FLAT))
    assert "stopping after step 6: the mean held-out pass rate has not risen" in done.text
    assert "65.0% of step 2 in 2 evaluations (eval.patience=2)" in done.text
    assert done.saved == [6]
    assert [m["step"] for m in rows_of(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert "Held-out pass rate" in done.text


def test_an_early_end_evaluates_those_that_were_not_due(tmp_path: Path):
    cfg = config(patience=2, watch="b", own={"a": {"every": 5}})
    done = run(tmp_path, cfg, Scripted(FLAT))
    assert done.evaluated[-3:] == [(5, "a"), (6, "b"), (6, "a")]


def test_a_run_out_of_patience_stays_so_until_it_gets_more(tmp_path: Path):
    run(tmp_path, config(patience=2), Scripted(FLAT))
    again = run(tmp_path, config(patience=2), Scripted(FLAT), after=6)
    assert "stopping after step 6" in again.text
    assert again.evaluated == []
    more = run(tmp_path, config(patience=3), Scripted(FLAT), after=6)
    assert "stopping after step 8" in more.text
    assert [m["step"] for m in rows_of(tmp_path / "metrics.jsonl")] == list(range(1, 9))


@pytest.mark.parametrize("cut", [1, 2, 3, 5])
def test_killed_and_resumed_it_stops_where_the_uninterrupted_run_does(tmp_path: Path, cut: int):
    whole = run(tmp_path / "whole", config(patience=2), Scripted(FLAT))
    run(tmp_path / "cut", config(num_steps=5, patience=2, at_end=False), Scripted(FLAT))
    resumed = run(tmp_path / "cut", config(patience=2), Scripted(FLAT), after=cut)
    assert resumed.saved == whole.saved == [6]
    for name in ("eval.jsonl", "spikiness.jsonl"):
        assert rows_of(tmp_path / "cut" / name) == rows_of(tmp_path / "whole" / name)
    pairs = zip(*(rows_of(tmp_path / n / "metrics.jsonl") for n in ("whole", "cut")), strict=True)
    for one, other in pairs:
        assert {k: v for k, v in one.items() if k.startswith("source/")} == {
            k: v for k, v in other.items() if k.startswith("source/")
        }


def test_a_fall_below_the_best_is_said_and_written_down(tmp_path: Path):
    cluster = Scripted({"a": [0.5, 0.5, 1.0, 1.0, 0.5], "b": [0.5, 0.5, 0.6, 0.6, 0.7]})
    done = run(tmp_path, config(4, max_regression=0.3), cluster)
    assert (
        "warning: held-out pass rate of a is 50.0% after step 4, 0.500 below its best" in done.text
    )
    assert "warning: held-out pass rate of b" not in done.text
    last = rows_of(tmp_path / "spikiness.jsonl")[-1]
    assert (last["eval/spikiness"], last["eval/regressed"]) == (0.5, 1)
    assert (last["eval/a/regressed"], last["eval/b/regressed"]) == (1, 0)
    assert last["eval/spread"] == pytest.approx(0.2)
    assert "held-out pass rate of a is 50.0%" in (tmp_path / "log.txt").read_text()


def test_the_gap_between_training_and_held_out(tmp_path: Path):
    run(tmp_path, config(2), Scripted({"a": [0.25] * 3, "b": [0.75] * 3}))
    found = {
        (e["step"], e["source"]): (e["train_reward"], e["gap"])
        for e in rows_of(tmp_path / "eval.jsonl")
    }
    assert found == {
        (0, "a"): (None, None),
        (0, "b"): (None, None),
        (2, "a"): (1.0, 0.75),
        (2, "b"): (1.0, 0.25),
    }
    log = (tmp_path / "log.txt").read_text()
    assert "held-out pass rate at step 2: a 25.0%  b 75.0%  mean 50.0%" in log
    assert "training minus held-out reward: a +0.750  b +0.250" in log


def test_an_evaluation_that_a_signal_cut_off_comes_first_after_resuming(tmp_path: Path):
    cut = Scripted({"a": UP, "b": UP}, stop_at=4)
    stopped = run(tmp_path, config(6), cut)
    assert stopped.text.endswith("stopped\n") and stopped.saved == [4]
    assert {e["step"] for e in rows_of(tmp_path / "eval.jsonl")} == {0, 2}
    resumed = run(tmp_path, config(6), Scripted({"a": UP, "b": UP}), after=4)
    assert resumed.evaluated == [(s, n) for s in (4, 6) for n in NAMES]


def test_a_finished_run_evaluates_nothing_again(tmp_path: Path):
    run(tmp_path, config(4), Scripted({"a": UP, "b": UP}))
    again = run(tmp_path, config(4), Scripted({"a": UP, "b": UP}), after=4)
    assert again.evaluated == []
    assert "Held-out pass rate" in again.text


def test_cutting_back_to_before_the_first_evaluation_empties_the_report(tmp_path: Path):
    run(tmp_path, config(4, at_start=False), Scripted({"a": UP, "b": UP}))
    run(tmp_path, config(1, at_start=False, at_end=False), Scripted({"a": UP, "b": UP}))
    assert (tmp_path / "spikiness.jsonl").read_text() == ""


LOOPING = TextTraits(answer=1, repeated=0.9, looping=True, well_formed=True)
HEALTHY = TextTraits(answer=1, repeated=0.0, looping=False, well_formed=True)


class Hacked(Scripted):
    """A policy that begins to repeat itself at step 8."""

    def judge(self, request: GroupRequest) -> GroupSummary:
        summary = super().judge(request)
        traits = LOOPING if summary.step >= 8 else HEALTHY
        rollouts = tuple(replace(r, traits=traits) for r in summary.rollouts)
        return replace(summary, rollouts=rollouts)


def watched(num_steps: int = 20, **monitors: object) -> RunConfig:
    cfg = config(num_steps, every=0).model_dump(mode="json")
    return RunConfig.model_validate({**cfg, "monitors": {"window": 3, "persist": 2, **monitors}})


def hacked() -> Hacked:
    return Hacked({"a": UP, "b": UP})


def test_an_alarm_is_said_written_down_and_measured(tmp_path: Path):
    done = run(tmp_path, watched(), hacked())
    alarms = rows_of(tmp_path / "alarms.jsonl")
    assert {(a["source"], a["monitor"], a["event"]) for a in alarms} == {
        (name, "repetition", "raised") for name in NAMES
    }
    (step,) = {a["step"] for a in alarms}
    assert 8 <= step <= 12
    assert f"ALARM (repetition) after step {step}: a: " in done.text
    assert "still standing: ALARM (repetition) after step 20" in done.text
    rows = rows_of(tmp_path / "metrics.jsonl")
    assert [r["source/a/alarm/repetition"] for r in rows] == [
        float(r["step"] >= step) for r in rows
    ]


def test_an_alarm_that_is_to_stop_the_run_does_until_told_otherwise(tmp_path: Path):
    stop = watched(repetition={"action": "stop"})
    done = run(tmp_path, stop, hacked())
    (step,) = {a["step"] for a in rows_of(tmp_path / "alarms.jsonl")}
    assert done.saved == [step]
    assert "monitors.repetition.action set to warn" in done.text
    again = run(tmp_path, stop, hacked(), after=step)
    assert "The run ends here" in again.text
    assert len(rows_of(tmp_path / "metrics.jsonl")) == step
    warned = run(tmp_path, watched(), hacked(), after=step)
    assert "standing since before: ALARM (repetition)" in warned.text
    assert len(rows_of(tmp_path / "metrics.jsonl")) == 20
    assert len(rows_of(tmp_path / "alarms.jsonl")) == 2  # each was raised once


@pytest.mark.parametrize("cut", range(6, 16))
def test_killed_and_resumed_it_has_the_same_alarms(tmp_path: Path, cut: int):
    run(tmp_path / "whole", watched(), hacked())
    run(tmp_path / "cut", watched(15), hacked())
    if cut % 2:  # the crash came between the step's row and its alarm
        (tmp_path / "cut" / "alarms.jsonl").unlink()
    run(tmp_path / "cut", watched(), hacked(), after=cut)
    one, other = (rows_of(tmp_path / name / "alarms.jsonl") for name in ("whole", "cut"))
    assert one == other


def test_a_clean_run_has_no_file_of_alarms(tmp_path: Path):
    done = run(tmp_path, watched(), Scripted({"a": UP, "b": UP}))
    assert not (tmp_path / "alarms.jsonl").exists()
    assert "ALARM" not in done.text
