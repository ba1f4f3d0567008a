import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import too_fast
from benchmarks.stack import PAGE, overrides, section
from benchmarks.too_fast import AFTER, ARMS, BEFORE, RECIPE, SOURCES, Job
from configs.guards import GuardsConfig
from configs.load import load_recipe
from configs.schema import RunConfig
from configs.validate import validate_run

LOG = """2026-01-01 10:00:00,000 INFO braid.recorder: grpo: starting, 50 steps
2026-01-01 10:01:00,000 WARNING braid.recorder: step 17: guards/grad_norm raised
"""
ENDS = "2026-01-01 10:01:01,000 INFO braid.recorder: gradient norm rose to 9. The run ends here; to"
DIVERGED = """Traceback (most recent call last):
trainer.errors.NonFiniteError: step 9: loss is nan on rank 0; the weights were not updated.
"""


def recipe(arm: str) -> RunConfig:
    fields = too_fast.settings(Job(arm, 2), 50, 10.0)
    return load_recipe(RECIPE, overrides(fields)[1::2])


def test_arms_differ_in_what_an_alarm_leads_to_and_in_nothing_else():
    cfgs = {arm: recipe(arm) for arm in ARMS}
    assert not any(validate_run(cfg) for cfg in cfgs.values())
    bare = {arm: cfg.model_copy(update={"guards": GuardsConfig()}) for arm, cfg in cfgs.items()}
    assert all(cfg == bare["none"] for cfg in bare.values())
    rate = load_recipe(RECIPE).trainer.optimizer.lr
    assert bare["none"].trainer.optimizer.lr == pytest.approx(10 * rate)
    updates = bare["none"].batch.updates
    assert bare["none"].trainer.optimizer.warmup_steps == too_fast.RISE * updates
    assert cfgs["none"].guards.warmup < too_fast.RISE  # they know what is usual by then


def test_every_guard_that_can_does_what_the_arm_is_called_after():
    names = {n for n in GuardsConfig.model_fields if hasattr(getattr(GuardsConfig(), n), "action")}
    assert names == {*BEFORE, *AFTER, "non_finite"}
    for arm in ("shrink", "rollback", "stop"):
        guards = recipe(arm).guards
        assert all(getattr(guards, name).action == arm for name in (*BEFORE, *AFTER))
    found = {n: getattr(recipe("skip").guards, n).action for n in (*BEFORE, *AFTER)}
    assert found == {**dict.fromkeys(BEFORE, "skip"), **dict.fromkeys(AFTER, "warn")}
    assert recipe("none").guards.non_finite.action == "stop"


def test_the_reason_is_what_the_log_says_last():
    assert too_fast.reason(LOG) == ""
    assert too_fast.reason(LOG + ENDS).startswith("gradient norm rose to 9. The run ends here")
    assert too_fast.reason(LOG + DIVERGED).startswith("step 9: loss is nan")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(run_dir: Path, steps: int) -> None:
    """A run that rises to 0.6 and falls, with an alarm, a skipped update and a rollback."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        share = 0.3 + 0.03 * min(step, 10) - 0.05 * max(0, step - 12)
        rows.append({"step": step, **{f"source/{n}/all/pass@1": share for n in SOURCES}})
        rows[-1] |= {"train/skipped": float(step == 13), "guards/shrunk_for": float(step > 14)}
    rows[13]["guards/rolled_back_to"] = 8.0
    write(run_dir / "metrics.jsonl", rows)
    rates = [(0, 0.3), (steps, 0.2)]
    evals = [{"step": s, "source": n, "pass_rate": r} for s, r in rates for n in SOURCES]
    write(run_dir / "eval.jsonl", evals)
    alarms = [
        {"step": 13, "monitor": "guards/grad_norm", "event": "raised"},
        {"step": 14, "monitor": "guards/grad_norm", "event": "cleared"},
        {"step": 14, "monitor": "length", "event": "raised"},
    ]
    write(run_dir / "alarms.jsonl", alarms)


@pytest.mark.parametrize(
    ("code", "log", "ended"),
    [(0, LOG, "at its last step"), (0, LOG + ENDS, "with the reason"), (1, LOG + DIVERGED, "with")],
)
def test_a_run_is_told_by_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, log: str, ended: str
):
    job = Job("stop", 1)

    def start(*arguments: object, log: Path) -> Any:
        run_dir = Path(str(arguments[arguments.index("--run-dir") + 1]))
        write_run(run_dir, 16)
        (run_dir / "log.txt").write_text(shown)
        return SimpleNamespace(wait=lambda: code)

    shown = log
    monkeypatch.setattr(too_fast, "start", start)
    assert too_fast.outcome(job, tmp_path) is None
    too_fast.run(job, tmp_path, 50, 10.0)
    found = too_fast.outcome(job, tmp_path)
    assert found is not None
    assert (found.skipped, found.shrunk, found.rolled_back) == (1, 2, ((14, 8),))
    assert found.alarms == ((13, "grad_norm"),)
    row = too_fast.cells(found)
    assert row[:8] == ["stop", "1", "16", "grad_norm, step 13", "1", "1", "2", "14 to 8"]
    assert row[8:11] == ["20.0"] * 3 and row[-1].startswith(ended)
    page = too_fast.page_section([found, replace(found, seed=2)], 10.0)
    assert page.count("| stop |") == 2, "a row for each seed, a reason for each action"
    assert page.count("- `stop`, seed 1: ") == (ended != "at its last step")
    assert "seed 2" not in page


def test_a_run_that_failed_otherwise_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(too_fast, "start", lambda *_, **__: SimpleNamespace(wait=lambda: 1))
    with pytest.raises(SystemExit, match="none ended with 1"):
        too_fast.run(Job("none", 1), tmp_path, 50, 10.0)
    assert too_fast.outcome(Job("none", 1), tmp_path) is None


def test_the_page_has_a_place_for_the_table():
    assert section(PAGE.read_text(), "too fast") is not None
