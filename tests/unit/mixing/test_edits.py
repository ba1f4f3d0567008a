"""Live edits: taken at the next planned step, refused where they make no sense, exact on resume."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.schema import RunConfig
from mixing.mixer import Mixer
from mixing.quota.edits import EditLog

MakeRun = Callable[..., RunConfig]


@pytest.fixture
def log(tmp_path: Path) -> EditLog:
    return EditLog(tmp_path / "mix_edits.jsonl")


def counts(mixer: Mixer, step: int) -> dict[str, int]:
    return dict(Counter(r.task.source for r in mixer.plan_step(step)))


def test_an_edit_counts_from_the_next_planned_step_on(make_run: MakeRun, log: EditLog) -> None:
    mixer = Mixer(make_run({"a": 40, "b": 40}, groups=4), edits=log)
    assert counts(mixer, 1) == {"a": 2, "b": 2}
    log.ask({"a": 3.0})
    assert log.read()[0].taken is None
    assert counts(mixer, 2) == {"a": 3, "b": 1}
    (edit,) = log.read()
    assert (edit.taken, edit.weights, edit.refused) == (2, {"a": 3.0}, "")
    log.ask({"b": 0.0})
    assert counts(mixer, 3) == {"a": 4}
    log.ask({"a": None, "b": None})
    assert counts(mixer, 4) == {"a": 2, "b": 2}
    assert [(e.kind, e.step) for e in mixer.take_events()] == [("edit", s) for s in (2, 3, 4)]
    assert [e.taken for e in mixer.edits] == [2, 3, 4]


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        ({"c": 1.0}, "no source `c`"),
        ({"a": -1.0}, "negative"),
        ({"a": 0.0, "b": 0.0}, "nothing to train on"),
        ({"b": 0.0}, "only 0.5 of a step"),
    ],
)
def test_the_driver_refuses_what_the_command_would_not_have_written(
    make_run: MakeRun, log: EditLog, weights: dict[str, float | None], why: str
) -> None:
    mixer = Mixer(
        make_run({"a": 40, "b": 40}, groups=4, limits={"a": {"max_share": 0.5}}), edits=log
    )
    log.ask(weights)
    assert counts(mixer, 1) == {"a": 2, "b": 2}
    (event,) = mixer.take_events()
    assert event.kind == "edit_refused" and why in event.text
    assert why in log.read()[0].refused and log.read()[0].taken == 1
    assert counts(mixer, 2) == {"a": 2, "b": 2} and mixer.take_events() == ()


def test_a_line_that_is_no_edit_is_refused_and_said(
    make_run: MakeRun, log: EditLog, tmp_path: Path
) -> None:
    path = tmp_path / "mix_edits.jsonl"
    path.write_text('{"weights": {"a": "two"}}\nrubbish\n{"weights": {"a": 3')  # torn by a crash
    mixer = Mixer(make_run({"a": 40, "b": 40}, groups=4), edits=log)
    assert counts(mixer, 1) == {"a": 2, "b": 2}
    log.ask({"a": 3.0})
    assert counts(mixer, 2) == {"a": 3, "b": 1}
    kinds = [e.kind for e in mixer.take_events()]
    assert kinds == ["edit_refused", "edit_refused", "edit_refused", "edit"]


def test_an_edit_that_is_half_written_waits_until_it_is_whole(
    make_run: MakeRun, log: EditLog, tmp_path: Path
) -> None:
    path = tmp_path / "mix_edits.jsonl"
    mixer = Mixer(make_run({"a": 40, "b": 40}, groups=4), edits=log)
    path.write_text('{"time": "now", "weights": {"a"')
    assert counts(mixer, 1) == {"a": 2, "b": 2}
    with path.open("a") as file:
        file.write(": 3.0}}\n")
    assert counts(mixer, 2) == {"a": 3, "b": 1}


def test_many_writers_lose_no_edit(log: EditLog, tmp_path: Path) -> None:
    def write(name: str) -> None:
        own = EditLog(tmp_path / "mix_edits.jsonl")
        for weight in range(50):
            own.ask({name: float(weight)})

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asked = [(n, w) for edit in log.read() for n, w in edit.weights.items()]
    assert Counter(asked) == Counter((n, float(w)) for n in "abcd" for w in range(50))
    assert [edit.number for edit in log.read()] == list(range(200))


@pytest.mark.parametrize("resumed_from", range(1, 12))
def test_a_resumed_run_meets_every_edit_at_the_step_of_the_first_attempt(
    make_run: MakeRun, tmp_path: Path, resumed_from: int
) -> None:
    """Edits come after steps 3, 5 (two of them, one refused) and 8; the run dies after step 11."""
    cfg = make_run({"a": 40, "b": 40}, groups=5)
    log = EditLog(tmp_path / "mix_edits.jsonl")
    asks: dict[int, list[dict[str, float | None]]] = {
        3: [{"a": 3.0}],
        5: [{"b": -1.0}, {"b": 0.5}],
        8: [{"a": None}],
    }
    first = Mixer(cfg, edits=log)
    planned: dict[int, list[str]] = {}
    states = {0: first.state_dict()}
    for step in range(1, 12):
        planned[step] = [r.group_id for r in first.plan_step(step)]
        states[step] = json.loads(json.dumps(first.state_dict()))
        for weights in asks.get(step, []):
            log.ask(weights)
    lines = (tmp_path / "mix_edits.jsonl").read_text()
    resumed = Mixer(cfg, edits=EditLog(tmp_path / "mix_edits.jsonl"))
    resumed.load_state_dict(states[resumed_from])
    for step in range(resumed_from + 1, 12):
        assert [r.group_id for r in resumed.plan_step(step)] == planned[step]
    assert resumed.edits == first.edits and len(first.edits) == 4
    assert [e.taken for e in first.edits] == [4, 6, 6, 9]
    assert (tmp_path / "mix_edits.jsonl").read_text() == lines  # nothing is taken twice


def test_an_edit_asked_while_the_run_is_down_is_taken_when_it_resumes(
    make_run: MakeRun, log: EditLog, tmp_path: Path
) -> None:
    cfg = make_run({"a": 40, "b": 40}, groups=4)
    first = Mixer(cfg, edits=log)
    counts(first, 1)
    state = first.state_dict()
    log.ask({"a": 0.0})
    resumed = Mixer(cfg, edits=EditLog(tmp_path / "mix_edits.jsonl"))
    resumed.load_state_dict(state)
    assert counts(resumed, 2) == {"b": 4}
    assert log.read()[0].taken == 2


def test_an_edit_may_empty_a_stage_that_is_over_and_not_one_to_come(
    make_run: MakeRun, log: EditLog
) -> None:
    stages = [
        {"until": {"step": 2}, "weights": {"b": 0}},
        {"until": {"step": 4}, "weights": {"a": 0, "b": 1}},
        {"weights": {"a": 1, "b": 1}},
    ]
    mixer = Mixer(make_run({"a": 40, "b": 40}, groups=4, stages=stages), edits=log)
    log.ask({"a": 0.0})
    assert counts(mixer, 1) == {"a": 4}
    assert counts(mixer, 3) == {"b": 4}
    log.ask({"a": 0.0})
    assert counts(mixer, 5) == {"b": 4}
    assert [e.kind for e in mixer.take_events()] == ["edit_refused", "stage", "edit", "stage"]
