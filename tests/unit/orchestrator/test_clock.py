import time

import pytest

from orchestrator.clock import PhaseClock


class FakeTime:
    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_phases_add_up_to_wall_time_and_overlap_is_counted_once(monkeypatch):
    at = FakeTime(monkeypatch)
    clock = PhaseClock()
    at.now = 1.0
    with clock.phase("generate"):
        at.now = 3.0
        with clock.phase("grade"):
            at.now = 4.0
    grading = clock.phase("grade")
    with grading:
        at.now = 6.0
    with clock.phase("train"):
        at.now = 9.0
    wall, split = clock.lap()
    assert wall == 9.0
    assert {k: v for k, v in split.items() if v} == {
        "idle": 1.0,
        "generate": 3.0,
        "grade": 2.0,
        "train": 3.0,
    }
    assert sum(split.values()) == wall


def test_train_outranks_generation_that_runs_ahead(monkeypatch):
    at = FakeTime(monkeypatch)
    clock = PhaseClock()
    with clock.phase("generate"):
        at.now = 1.0
        with clock.phase("train"):
            at.now = 4.0
    _, split = clock.lap()
    assert split["generate"] == 1.0
    assert split["train"] == 3.0


def test_lap_begins_anew(monkeypatch):
    at = FakeTime(monkeypatch)
    clock = PhaseClock()
    with clock.phase("train"):
        at.now = 2.0
    clock.lap()
    at.now = 5.0
    wall, split = clock.lap()
    assert wall == 3.0
    assert split["idle"] == 3.0
