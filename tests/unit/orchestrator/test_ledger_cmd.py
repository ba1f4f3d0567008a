"""`braid ledger` on the ledgers of runs that go on, ended and went wrong."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.load import save_config
from configs.schema import RunConfig
from mixing.ledger.events import (
    Accepted,
    Attempt,
    Dispatched,
    DispatchedGroup,
    Event,
    Moved,
    Rejected,
    Score,
    Trained,
    TrainedGroup,
    to_row,
)
from orchestrator.cli import _main


def score(samples: int) -> Score:
    return Score(
        valid=samples,
        invalid=2 - samples,
        truncated=0,
        reward=0.5 if samples else None,
        tokens=20,
        samples=samples,
        loss_tokens=10 * samples,
        versions=(0, 0),
    )


def dispatched(step: int, *groups: str) -> Dispatched:
    entries = tuple(DispatchedGroup(f"{g}#e0a0", g.split("/")[0], 2) for g in groups)
    return Dispatched(time=60 * step, step=step, version=step - 1, groups=entries)


def accepted(group: str) -> Accepted:
    return Accepted(time=70, group=f"{group}#e0a0", score=score(2))


HISTORY: list[Event] = [
    Attempt(time=0, attempt=1, step=0, offset=0),
    dispatched(1, "sums/train/1", "sums/train/11", "[b]/train/1"),
    accepted("sums/train/1"),
    Rejected(
        time=65, group="[b]/train/1#e0a0", reason="given_up", why="reward: [x]", score=score(0)
    ),
    dispatched(1, "[b]/train/2"),
    accepted("sums/train/11"),
    accepted("[b]/train/2"),
    Trained(
        time=80,
        step=1,
        version=1,
        groups=tuple(
            TrainedGroup(f"{g}#e0a0", 2, 20)
            for g in ("sums/train/1", "sums/train/11", "[b]/train/2")
        ),
    ),
    dispatched(2, "sums/train/2", "[b]/train/3"),
    accepted("sums/train/2"),
]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    def source(name: str, weight: float) -> dict[str, object]:
        return {
            "name": name,
            "weight": weight,
            "data": {"procedural": "reasoning_gym/lcm"},
            "rewards": [{"use": "exact", "name": "e"}],
        }

    cfg = RunConfig.model_validate(
        {
            "name": "small",
            "num_steps": 9,
            "model": {"path": "org/model"},
            "sources": [source("sums", 3.0), source("late", 1.0)],
            "batch": {"groups_per_step": 3},
        }
    )
    save_config(cfg, tmp_path / "config.yaml")
    return tmp_path


def write(run_dir: Path, events: Sequence[Event], torn: bytes = b"") -> None:
    (run_dir / "ledger.jsonl").write_bytes(b"".join(map(to_row, events)) + torn)


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = _main(["ledger", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_account_of_a_live_run_as_json(run_dir: Path, capsys) -> None:
    write(run_dir, HISTORY, torn=b'{"event":"trai')
    code, out, _ = ask(capsys, run_dir, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["balanced"], found["lost"], found["trained_twice"]) == (True, [], [])
    assert (found["step"], found["attempts"], found["in_flight"]) == (1, 1, 2)
    sums, b, late = (found["sources"][n] for n in ("sums", "[b]", "late"))
    assert (sums["target_share"], b["target_share"], late["target_share"]) == (0.75, 0.0, 0.25)
    assert sums["dispatched"] == {
        "groups": 3,
        "samples": 6,
        "tokens": 60,
        "share": {"groups": 0.5, "samples": 0.5, "tokens": 0.6},
    }
    assert sums["accepted"]["groups"] == 3 and sums["accepted"]["tokens"] == 60
    assert (sums["trained"]["groups"], sums["trained"]["tokens"]) == (2, 40)
    assert sums["trained"]["share"] == {"groups": 2 / 3, "samples": 2 / 3, "tokens": 2 / 3}
    assert (sums["survival"], b["survival"], late["survival"]) == (1.0, 0.5, None)
    assert b["rejected"] == {"given_up": 1} and b["in_flight"] == 1
    assert late["trained"]["share"] == {"groups": 0, "samples": 0, "tokens": 0}


def test_the_target_is_what_was_due_so_far(run_dir: Path, capsys) -> None:
    write(run_dir, HISTORY)
    due = {"sums": 0.625, "late": 0.375}  # as a stage or a live edit would have it
    metrics = {f"source/{n}/total/share/target": share for n, share in due.items()}
    (run_dir / "metrics.jsonl").write_text(json.dumps({"step": 1, **metrics}) + "\n")
    _, out, _ = ask(capsys, run_dir, "--json")
    found = json.loads(out)
    assert found["unit"] == "groups"
    assert {n: found["sources"][n]["target_share"] for n in due} == due


def test_one_source_keeps_its_shares_among_all(run_dir: Path, capsys) -> None:
    write(run_dir, HISTORY)
    _, out, _ = ask(capsys, run_dir, "--json", "--source", "sums")
    found = json.loads(out)["sources"]
    assert list(found) == ["sums"] and found["sums"]["trained"]["share"]["groups"] == 2 / 3


def test_the_account_as_a_table(run_dir: Path, capsys) -> None:
    write(run_dir, HISTORY)
    code, out, _ = ask(capsys, run_dir)
    assert code == 0
    assert "balanced: dispatched = trained + rejected + in flight" in out
    assert "[b] rejected: 1 given_up" in out
    found = [" ".join(s.split()) for s in out.splitlines() if s.strip().startswith("sums")]
    assert found == ["sums 3 2 0 1 3 100.0%", "sums 75.0% 66.7% 66.7% 66.7% 4 40"]


def test_a_ledger_that_does_not_add_up_exits_1_and_names_groups(run_dir: Path, capsys) -> None:
    lost = Trained(time=90, step=2, version=2, groups=(TrainedGroup("sums/train/1#e0a0", 2, 20),))
    write(run_dir, [*HISTORY, lost])
    code, out, _ = ask(capsys, run_dir, "--json")
    found = json.loads(out)
    assert (code, found["balanced"]) == (1, False)
    assert found["trained_twice"] == ["sums/train/1#e0a0"]
    assert found["lost"] == ["sums/train/2#e0a0", "[b]/train/3#e0a0"]
    code, out, _ = ask(capsys, run_dir)
    assert code == 1
    assert "trained twice: sums/train/1#e0a0" in out and "NOT balanced; lost: sums/train/2" in out


def test_the_life_of_an_item(run_dir: Path, capsys) -> None:
    offset = len(b"".join(map(to_row, HISTORY[:8])))
    again = [Attempt(time=100, attempt=2, step=1, offset=offset), dispatched(2, "sums/train/1")]
    write(run_dir, [*HISTORY, *again])
    code, out, _ = ask(capsys, run_dir, "--item", "sums/train/1", "--json")
    life = json.loads(out)
    assert code == 0
    assert [m["event"] for m in life] == ["dispatched", "accepted", "trained", "dispatched"]
    assert life[0] == {
        "time": "1970-01-01T00:01:00+00:00",
        "event": "dispatched",
        "group": "sums/train/1#e0a0",
        "epoch": 0,
        "attempt": 0,
        "run_attempt": 1,
        "undone": False,
        "step": 1,
        "version": 0,
    }
    assert life[1]["score"]["loss_tokens"] == 20
    assert (life[2]["samples"], life[2]["version"], life[3]["run_attempt"]) == (2, 1, 2)

    _, out, _ = ask(capsys, run_dir, "--item", "sums/train/2", "--json")
    assert [m["undone"] for m in json.loads(out)] == [True, True]
    _, out, _ = ask(capsys, run_dir, "--item", "1", "--json")
    assert {m["group"] for m in json.loads(out)} == {"sums/train/1#e0a0", "[b]/train/1#e0a0"}
    _, out, _ = ask(capsys, run_dir, "--item", "1", "--source", "sums", "--json")
    assert {m["group"] for m in json.loads(out)} == {"sums/train/1#e0a0"}


def test_the_life_of_an_item_in_words(
    run_dir: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    offset = len(b"".join(map(to_row, HISTORY[:8])))
    write(run_dir, [*HISTORY, Attempt(time=100, attempt=2, step=1, offset=offset)])
    _, out, _ = ask(capsys, run_dir, "--item", "[b]/train/1")
    assert out.splitlines() == [
        "[b]/train/1#e0a0, attempt 1 of the run",
        "  1970-01-01 00:01:00  dispatched for step 1 under version 0",
        "  1970-01-01 00:01:05  rejected as given_up, reward: [x], with 0 valid and 2 invalid "
        "rollouts, no reward",
    ]
    _, out, _ = ask(capsys, run_dir, "--item", "sums/train/1")
    assert "trained in step 1 on 2 samples with 20 loss tokens, giving version 1" in out
    _, out, _ = ask(capsys, run_dir, "--item", "sums/train/2")
    assert "attempt 1 of the run: undone, the run went on from a checkpoint before it" in out
    _, out, _ = ask(capsys, run_dir, "--item", "sums/train/99")
    assert out == "sums/train/99: never dispatched in this run\n"


def test_bad_input_exits_2(run_dir: Path, tmp_path: Path, capsys) -> None:
    code, _, err = ask(capsys, run_dir)
    assert code == 2 and "has no ledger.jsonl yet" in err
    write(run_dir, HISTORY)
    code, _, err = ask(capsys, run_dir, "--source", "sum")
    assert code == 2 and "Give one of sums, late." in err
    code, _, err = ask(capsys, tmp_path / "nowhere")
    assert code == 2 and "is no run directory" in err


def test_moves_and_what_they_came_to_are_told(run_dir: Path, capsys) -> None:
    history = [
        *HISTORY,
        Moved(time=85, group="[b]/train/3#e0a0", before=2, step=3, reason="late"),
        Rejected(
            time=90, group="[b]/train/3#e0a0", reason="stale", why="sampled by 0", score=score(2)
        ),
    ]
    write(run_dir, history)
    code, out, _ = ask(capsys, run_dir)
    assert code == 0
    assert "[b] rejected: 1 given_up, 1 stale" in out
    assert "[b] moved to a later step: 1 late" in out
    _, out, _ = ask(capsys, run_dir, "--json")
    b = json.loads(out)["sources"]["[b]"]
    assert b["moved"] == {"late": 1} and b["survival"] == 0.5
    _, out, _ = ask(capsys, run_dir, "--item", "[b]/train/3")
    assert "moved as late from step 2 to step 3" in out and "rejected as stale" in out
